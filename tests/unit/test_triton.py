"""The kernels' own source: run by Triton's interpreter, and compiled for cards that are not here.

In processes of their own, since PyTorch looks for Triton as it is imported. Triton is large, and
not among what tests install: `pip install triton` brings it, or a folder with it on PYTHONPATH.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (1 GB, for the kernels of blocks alone)",
)

# In bf16 and fp16, with heads of the published width and of one that is no power of two.
INTERPRETED = """
import torch
from skyreels_model.kernels import Kernels, choose, triton_source

kernels = Kernels(triton_source.start)
for given in ((torch.bfloat16, 384, 128), (torch.float16, 288, 12)):
    wrong = choose.find_fault(kernels, torch.device("cpu"), *given)
    assert not wrong, (given, wrong)
print("right")
"""

# As blocks of the published widths start them, on cards of three generations, but not run.
COMPILED = """
import re

import torch
import triton
from triton.backends.compiler import GPUTarget

from skyreels_model.kernels import Kernels, choose, triton_source


class Card:
    capability = 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # what was compiled for another is not taken

    def get_current_stream(self, _device):
        return 0


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def compile(*given, **numbers):
            self.check(self.kernel.warmup(*given, grid=grid, **numbers))

        return compile

    def check(self, built):
        # Places are counted in 64 bits: a stream of 720P comes near to 2^31 numbers.
        assert not re.findall(r"arith\\.muli .*: i32", built.asm["ttir"])
        # Each access is of 128 bits, and none is of registers that did not suffice.
        ptx = built.asm["ptx"]
        kinds = set(re.findall(r"\\b(?:ld|st)\\.global[.\\w:]*", ptx))
        assert kinds == {"ld.global.v4.b32", "st.global.v4.b32"}, kinds
        assert ".local" not in ptx and built.asm["cubin"]
        compiled.add(built.hash)


triton.runtime.driver.set_active(Card())
for name, kernel in triton_source.KERNELS.items():
    triton_source.KERNELS[name] = Compiled(kernel)
compiled = set()
for Card.capability in (80, 90, 120):
    for dim in (1536, 5120):
        x, modulation, numbers = torch.zeros(1, 6, dim), torch.zeros(1, 3, 6, dim), torch.zeros(dim)
        rope = torch.zeros(1, 6, 1, 64, 2, 2)
        narrow = [t.bfloat16() for t in (x, numbers, numbers)]
        given = x, narrow[0], modulation, *narrow[1:], rope
        choose.run_all(Kernels(triton_source.start), *given)
# Three ways of the one kernel and one of the other.
assert len(compiled) == 3 * 2 * 4, len(compiled)
print("right")
"""


def run(script, tmp_path, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == "right", done.stderr


def test_the_kernels_are_right(tmp_path):
    run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compilers are Linux's")
def test_the_kernels_compile_for_cards(tmp_path):
    run(COMPILED, tmp_path, TRITON_INTERPRET="0")
