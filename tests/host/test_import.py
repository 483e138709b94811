"""What the host has to import for the pack."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import json, sys
root, host, work = sys.argv[1:]
sys.path.insert(0, root)
from pathlib import Path
from devtools import inprocess
inprocess.boot_host(Path(host), Path(work))
before = set(sys.modules)
inprocess.load_pack(Path(root))
new = {name.split(".")[0] for name in set(sys.modules) - before if "/" not in name}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""


def test_loading_the_pack_imports_nothing_optional(host, tmp_path):
    """Neither a tokenizer nor a mender of text, nor any library that the host had not imported."""
    command = [sys.executable, "-c", LOAD, str(ROOT), str(host), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
