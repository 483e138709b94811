"""What it costs the host to load the pack."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from devtools import inprocess
inprocess.boot_host(Path({host!r}), Path({work!r}))
before = set(sys.modules)
inprocess.load_pack(Path({root!r}))
new = {{name.split(".")[0] for name in set(sys.modules) - before if "/" not in name}}
print("NEW", sorted(new))
"""


def test_loading_the_pack_imports_nothing_optional(host, tmp_path):
    code = LOAD.format(root=str(ROOT), host=str(host), work=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new = done.stdout.split("NEW ")[1]
    # Neither a tokenizer nor a mender of text, nor any library the host has not imported itself.
    assert not set(eval_names(new)) - sys.stdlib_module_names, new


def eval_names(text):
    return [name.strip(" '[]\n") for name in text.split(",") if name.strip(" '[]\n")]
