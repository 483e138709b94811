"""Kernels between a block's products: what they compute, where they may, and what they move."""

import dataclasses
import logging
import sys
import types
from unittest import mock

import pytest
import torch
from torch import nn

from devtools.live_bytes import forward_peak, gpu_kernels
from devtools.rounding import rounding_errors
from skyreels_model.config import ModelConfig
from skyreels_model.kernels import FusedBlocks, Kernels, choose, find_kernels, plain
from skyreels_model.kernels.fused import cublas_gelu, frame_step
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.layers import BlockInputs
from skyreels_model.model.memory import forward_bytes
from skyreels_model.model.positions import rope_table
from toy.random_weights import PUBLISHED

CPU = torch.device("cpu")
GRID = (3, 5, 7)
SIZES = {"dim": 96, "ffn_dim": 192, "num_heads": 6, "num_layers": 2, "text_dim": 32}
CONFIG = ModelConfig(**SIZES)
IMAGE = {"model_type": "i2v", "in_dim": 36}


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = SkyReelsModel(CONFIG, dtype=torch.bfloat16).requires_grad_(False)
    model.blocks[0].modulation.weight.normal_(std=0.1)
    return model.blocks[0]


@pytest.fixture
def given():
    def attend(q, k, v, heads):
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)

    return BlockInputs(
        modulation=draw(2, GRID[0], 6, CONFIG.dim),
        context=draw(2, 9, CONFIG.dim).bfloat16(),
        rope=rope_table(GRID, CONFIG.head_dim, CPU),
        image_tokens=0,
        attend_self=attend,
        attend_context=attend,
        may_overwrite=True,
    )


@pytest.fixture
def stream():
    return draw(2, GRID[0] * GRID[1] * GRID[2], CONFIG.dim)


def never(*_args, **_kwargs):
    raise AssertionError("a kernel ran")


def fail(error):
    def call(*_args, **_kwargs):
        raise error

    return call


def relative(found, right):
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("product", [None, plain.product_gelu])
@pytest.mark.parametrize("pieces", [1, 3])
@torch.no_grad()
def test_a_block_is_the_same(block, given, stream, product, pieces, monkeypatch):
    monkeypatch.setattr("skyreels_model.kernels.block.hidden_pieces", lambda *_sizes: pieces)
    right = block.float()(stream.clone(), dataclasses.replace(given, context=given.context.float()))
    block.bfloat16()
    usual = relative(block(stream.clone(), given), right)
    run = FusedBlocks(Kernels(plain.start, product))
    x = stream.clone()
    out = run(0, block, x, given)
    assert out.data_ptr() == x.data_ptr() and out.dtype == torch.float32
    assert 0 < relative(out, right) < 1.1 * usual < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, IMAGE])
def test_bf16_is_no_less_precise_than_the_reference(kind):
    """Nor than PyTorch's operators, which round more often."""
    config = ModelConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, text_dim=64, **kind)
    usual, _ = rounding_errors(config)
    fused, reference = rounding_errors(config, run_block=FusedBlocks(plain.PLAIN))
    for ours, plainly, theirs in zip(fused, usual, reference, strict=True):
        assert 0 < ours / theirs <= 1.0
        assert ours < 1.1 * plainly


def hook(layer):
    layer.register_forward_hook(lambda *_call: None)


def compile_layer(layer):
    with mock.patch("torch.compile", lambda call, **_options: call):  # importing it takes seconds
        layer.compile()


def replace_forward(layer):
    layer.forward = type(layer).forward.__get__(layer)


# What others may do to a block, after which its layers have to be called as they are.
CHANGES = {
    "a hook of the block": hook,
    "another forward of attention": lambda b: replace_forward(b.self_attn),
    "a hook of a norm": lambda b: hook(b.self_attn.norm_q),
    "a hook of the queries": lambda b: hook(b.self_attn.q),
    "a compiled block": compile_layer,
    "a compiled feed-forward": lambda b: compile_layer(b.ffn),
    "another norm": lambda b: setattr(b, "norm3", nn.Identity()),
    "another GELU": lambda b: hook(b.ffn[1]),
    "another feed-forward": lambda b: setattr(b, "ffn", nn.Sequential(b.ffn)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_changed_block_runs_by_its_own_forward(block, given, stream, change, monkeypatch):
    change(block)
    called = []
    monkeypatch.setattr(type(block), "__call__", lambda _b, x, inputs: called.append(inputs) or x)
    assert FusedBlocks(Kernels(never))(0, block, stream, given) is stream
    assert called == [given]


@pytest.mark.parametrize(
    "changed",
    [
        {"after_context": lambda x: x},
        {"may_overwrite": False},
        {"context": draw(2, 9, CONFIG.dim)},
        {"rope": rope_table(GRID, CONFIG.head_dim, CPU).expand(2, -1, -1, -1, -1, -1)},
        {"rope": rope_table(GRID, 2 * CONFIG.head_dim, CPU)},
        {"rope": rope_table(GRID, CONFIG.head_dim, CPU).double()},
        {"modulation": draw(1, GRID[0], 6, CONFIG.dim)},
    ],
    ids=[
        "a patch in between",
        "gradients",
        "float32",
        "rotations by sample",
        "rotations of other heads",
        "other numbers",
        "one sample's time",
    ],
)
@torch.no_grad()
def test_other_inputs_run_plainly(block, given, stream, changed, monkeypatch):
    given, called = dataclasses.replace(given, **changed), []
    monkeypatch.setattr(type(block), "forward", lambda _b, x, inputs: called.append(inputs) or x)
    assert FusedBlocks(Kernels(never))(0, block, stream, given) is stream
    assert called == [given]


@torch.no_grad()
def test_a_compiler_sees_the_plain_block(block, given, stream, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    FusedBlocks(Kernels(never))(0, block, stream, given)


@torch.no_grad()
def test_layers_that_are_more_than_a_product_are_called(block, given, stream):
    """As those of a host, or with a LoRA's hook."""
    called = []
    block.ffn[0].register_forward_hook(lambda *_call: called.append("up"))
    right = FusedBlocks(Kernels(plain.start))(0, block, stream.clone(), given)
    found = FusedBlocks(Kernels(plain.start, never))(0, block, stream.clone(), given)
    assert called == ["up", "up"] and torch.equal(found, right)


def test_the_test_of_kernels_passes_right_ones():
    assert choose.find_fault(plain.PLAIN, CPU, torch.bfloat16, 96, 16) == ""
    assert choose.product_is_right(plain.product_gelu, CPU, torch.bfloat16, 96)


def change_numbers(change):
    """Kernels that are given a wrong number."""

    def start(name, rows, reads, writes, **numbers):
        plain.start(name, rows, reads, writes, **numbers | change(rows))

    return start


def change_steps(change):
    """Kernels that find the next frame's modulation where it is not."""

    def start(name, rows, reads, writes, **numbers):
        if numbers.get("step"):
            frames = rows // numbers["tokens"]
            numbers["step"] = change(numbers["step"], frames)
        plain.start(name, rows, reads, writes, **numbers)

    return start


def spoil(what):
    """Kernels whose last result is changed."""

    def start(name, rows, reads, writes, **numbers):
        plain.start(name, rows, reads, writes, **numbers)
        what(writes[-1])

    return start


FAULTS = {
    "one frame's modulation for all": change_numbers(lambda rows: {"tokens": rows}),
    "a wrong epsilon": change_numbers(lambda _rows: {"eps": 0.1}),
    "the last token not done": spoil(lambda out: out[-1, -1].zero_()),
    "numbers that are none": spoil(lambda out: out[0, 0].fill_(float("nan"))),
    "coarser numbers": spoil(lambda out: out.copy_(out.to(torch.float8_e4m3fn))),
    "one sample's modulation for both": change_steps(
        lambda step, frames: 1 if frames == 2 else step
    ),
}


@pytest.mark.parametrize("start", FAULTS.values(), ids=FAULTS)
def test_the_test_of_kernels_finds_wrong_ones(start):
    assert choose.find_fault(Kernels(start), CPU, torch.bfloat16, 96, 16)


def test_the_test_of_a_product_finds_wrong_ones():
    for wrong in (never, lambda *given: nn.functional.linear(*given)):
        assert not choose.product_is_right(wrong, CPU, torch.bfloat16, 96)


def test_a_time_for_all_frames_is_found_whatever_its_stride():
    """PyTorch gives a side of one any stride, and calls the tensor contiguous."""
    numbers = draw(2, 1, 6, 8).as_strided((2, 1, 6, 8), (48, 1, 8, 1))
    assert numbers.is_contiguous()
    assert {frame_step(row) for row in numbers.unbind(2)} == {48}
    assert frame_step(draw(2, 3, 8)) == 8 and frame_step(draw(8)) == frame_step(None) == 0


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, "there is no Triton"),
        ("broken", "Triton cannot work here (RuntimeError: Failed to find C compiler.)"),
        ("wrong", "not right"),
        ("right", "passed their test"),
    ],
)
def test_what_is_used_is_said(module, said, monkeypatch, caplog):
    def load(_name, _package):
        if module is None:
            raise ImportError("No module named 'triton'")
        return types.SimpleNamespace(start=starts[module])

    starts = {"right": plain.start, "wrong": FAULTS["a wrong epsilon"]}
    starts["broken"] = fail(RuntimeError("Failed to find\nC compiler."))
    monkeypatch.setattr(choose.importlib, "import_module", load)
    with caplog.at_level(logging.INFO):
        kernels = find_kernels(CPU, torch.bfloat16, 96, 16)
    assert (kernels is not None) == (module == "right")
    assert said in caplog.text


@pytest.mark.parametrize("where", ["kernel", "product"])
def test_memory_that_does_not_suffice_says_nothing_about_them(where, monkeypatch):
    """Neither that they are wrong, nor for good."""
    lack = fail(RuntimeError("Triton Error [CUDA]: out of memory"))
    start, product = (lack, None) if where == "kernel" else (plain.start, lack)
    monkeypatch.setattr(choose, "cublas_gelu", product)
    source = types.SimpleNamespace(start=start)
    monkeypatch.setattr(choose.importlib, "import_module", lambda *_of: source)
    with pytest.raises(RuntimeError, match="out of memory"):
        find_kernels(CPU, torch.bfloat16, 96, 16)


def test_importing_them_asks_for_no_triton():
    assert "skyreels_model.kernels.triton_source" not in sys.modules


@pytest.mark.parametrize("name", ["DF-1.3B-540P", "I2V-14B-540P"])
def test_they_need_no_more_memory(name):
    config = dataclasses.replace(PUBLISHED[name], num_layers=1)
    run = FusedBlocks(Kernels(lambda *_given, **_numbers: None, cublas_gelu))
    for batch in (1, 2):
        with gpu_kernels():
            needed = forward_peak(config, batch, (25, 68, 120), torch.bfloat16, run_block=run)
        estimate = forward_bytes(config, batch, 25, 68, 120, 2)
        assert abs(estimate / needed - 1) < 0.02
