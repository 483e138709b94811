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

# As blocks of the published widths start them, on cards of three generations.
COMPILED = """
import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from skyreels_model.kernels import triton_source as source

TYPES = {"x": "*fp32", "y": "*bf16", "gate": "*fp32", "shift": "*fp32", "scale": "*fp32",
         "x_out": "*fp32", "out": "*bf16", "weight": "*bf16", "rope": "*fp32", "eps": "fp32"}
NORM_ALONE = {"y": None, "gate": None, "x_out": None}


def compile(kernel, capability, dim, constants, **types):
    constants = {"DIM": dim, "BLOCK": triton.next_power_of_2(dim), **constants}
    names = kernel.arg_names
    signature = {n: types.get(n, TYPES.get(n, "i32")) for n in names}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(names.index(n),): v for n, v in constants.items()}
    # As Triton finds when it is called: addresses, and steps of a modulation.
    even = [n for n in names if signature[n][0] == "*" or "step" in n and n not in constants]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in even}
    made = ASTSource(kernel, signature=signature, constexprs=places, attrs=attributes)
    warps = source.count_warps(constants["BLOCK"])
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(made, target=target, options={"num_warps": warps})
    # Each access is of 128 bits: the kernels only move memory.
    ptx = built.asm["ptx"]
    kinds = set(re.findall(r"\\b(?:ld|st)\\.global[.\\w:]*", ptx))
    assert kinds == {"ld.global.v4.b32", "st.global.v4.b32"}, (capability, dim, kinds)
    assert ".local" not in ptx and built.asm["cubin"]


for capability in (80, 90, 120):
    for dim in (1536, 5120):
        compile(source.border, capability, dim, {"OFFSET": 1.0})
        compile(source.border, capability, dim, {"OFFSET": 0.0}, shift="*bf16", scale="*bf16")
        compile(source.border, capability, dim, {"OFFSET": 1.0, **NORM_ALONE})
        compile(source.turn, capability, dim, {"HEAD": 128}, x="*bf16")
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
