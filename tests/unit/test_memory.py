"""What a forward needs beyond the weights: bounded, and as the formulas say."""

import dataclasses
import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from devtools import live_bytes
from devtools.live_bytes import (
    LiveBytes,
    WithLayouts,
    allocated_peak,
    forward_peak,
    gpu_kernels,
)
from skyreels_model.attention import sdpa
from skyreels_model.cache.published import Rule, State, TeaCache
from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel, layers, positions
from skyreels_model.model.memory import Execution, forward_bytes, weights_bytes
from toy.random_weights import PUBLISHED

P540, P720 = (25, 68, 120), (31, 90, 160)  # latents of 97 frames at 960x544, 121 at 1280x720
SIZES = ((1, 8, 8), (3, 30, 52), (13, 24, 40), (5, 68, 120), P540, P720)
DTYPES = torch.bfloat16, torch.float32
# Any two of a batch, a size and a dtype meet; all three of them would take twice as long.
EVERY_TWO = [
    (batch, size, DTYPES[(batch + place) % 2])
    for place, size in enumerate(SIZES)
    for batch in (1, 2)
]


def published(name, **changes):
    """A published model with one block: every block needs the same, one after the other."""
    return dataclasses.replace(PUBLISHED[name], num_layers=1, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DF-14B-540P", "I2V-14B-540P"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("size", "limit"), [(P540, 6.5e9), (P720, 14.5e9)])
def test_14b_stays_under_its_limits(name, batch, size, limit):
    """For positive and negative prompt together, too; alone they need half of it."""
    needed = forward_peak(published(name), batch, size, torch.bfloat16)
    assert 0.9 * limit * batch / 2 / 1.2 < needed < limit * batch / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-1.3B-540P", "I2V-14B-540P"])
def test_the_estimate_is_the_peak(name):
    for batch, size, dtype in EVERY_TWO:
        needed = forward_peak(published(name), batch, size, dtype)
        estimate = forward_bytes(published(name), batch, *size, dtype.itemsize)
        assert abs(estimate / needed - 1) < 0.02, (batch, size, dtype, estimate, needed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_its_one_convolution_takes_inside_is_below_the_peak(dtype, monkeypatch):
    """That of the patches: input, weights and tokens once more are less than what blocks hold."""
    usual = forward_peak(published("I2V-14B-540P"), 1, P540, dtype)
    monkeypatch.setattr(live_bytes, "LiveBytes", WithLayouts)
    assert forward_peak(published("I2V-14B-540P"), 1, P540, dtype) == usual


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DF-1.3B-540P", "I2V-14B-540P"])
def test_a_gpus_kernels_need_no_more(name):
    for batch, size, dtype in (case for case in EVERY_TWO if case[1] in SIZES[3:]):
        with gpu_kernels():
            needed = forward_peak(published(name), batch, size, dtype)
        estimate = forward_bytes(published(name), batch, *size, dtype.itemsize)
        assert -0.01 < estimate / needed - 1 < 0.04, (batch, size, dtype, estimate, needed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-14B-540P"])
@pytest.mark.parametrize("kind", ["sage", "int8"])
def test_the_estimate_knows_the_copies_of_an_attention(name, kind):
    attend, execution = getattr(live_bytes, kind), Execution(attention=kind)
    for batch, size in ((1, SIZES[1]), (2, SIZES[2]), (1, P540), (2, P720)):
        needed = forward_peak(published(name), batch, size, torch.bfloat16, attend=attend)
        estimate = forward_bytes(published(name), batch, *size, 2, 512, execution)
        assert abs(estimate / needed - 1) < 0.02, (batch, size, estimate, needed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-14B-540P"])
def test_the_estimate_knows_products_in_8_bits(name, monkeypatch):
    linear = torch.nn.functional.linear

    def quantize_first(x, weight, bias=None):
        narrow = torch.empty_like(x, dtype=torch.int8) if x.ndim > 1 else None
        out = linear(x, weight, bias)
        del narrow
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", quantize_first)
    for batch, size in itertools.product((1, 2), (P540, P720)):
        needed = forward_peak(published(name), batch, size, torch.bfloat16)
        estimate = forward_bytes(published(name), batch, *size, 2, 512, Execution(quantizes=True))
        assert abs(estimate / needed - 1) < 0.02, (batch, size, estimate, needed)


@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-14B-540P"])
def test_the_estimate_knows_a_compiled_model(name, monkeypatch):
    """Without a compiler: its way through the layers, and what it fuses put in one kernel."""

    def fused(x, _shift, _scale, _eps, dtype, _overwrite):
        return torch.empty_like(x, dtype=dtype)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda self, x: torch.ops.aten.gelu_(x))
    monkeypatch.setattr(layers, "modulate", fused)
    for batch, size in itertools.product((1, 2), (P540, P720)):
        with gpu_kernels():
            turn = {"rotate": lambda x, rope, overwrite: torch.empty_like(x)}
            needed = forward_peak(published(name), batch, size, torch.bfloat16, **turn)
        estimate = forward_bytes(published(name), batch, *size, 2, 512, Execution(compiled=True))
        assert abs(estimate / needed - 1) < 0.05, (batch, size, estimate, needed)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_estimate_knows_what_a_cache_keeps(batch):
    """Both prompts' residuals, in one forward with both or in one of two."""
    name = "DF-14B-540P"
    for size in (P540, P720):
        cache = TeaCache(Rule("a test", (0.0,), True, 0, 0), 0.1)
        kept = torch.zeros(1, size[0] * size[1] * size[2] // 4, published(name).dim, device="meta")
        if batch == 1:
            cache.states["negative"] = State(kept[:, :0], kept)
        bound = cache.bind(["positive", "negative"][:batch])
        needed = forward_peak(published(name), batch, size, torch.bfloat16, cache=bound)
        needed += (2 - batch) * kept.nbytes
        estimate = forward_bytes(published(name), batch, *size, 2, 512, Execution(residuals=2))
        assert abs(estimate / needed - 1) < 0.02, (size, estimate, needed)
        assert sum(state.residual.nbytes for state in cache.states.values()) == 2 * kept.nbytes


@pytest.mark.parametrize("rows", [17, 512, 2048])
def test_the_estimate_knows_the_texts_length(rows):
    config, size = published("DF-1.3B-540P"), (1, 16, 30)
    needed = forward_peak(config, 1, size, torch.bfloat16, rows)
    assert abs(forward_bytes(config, 1, *size, 2, rows) / needed - 1) < 0.02


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_are_counted_as_they_are_held(name, dtype):
    config = published(name)
    model = SkyReelsModel(config, dtype=dtype, device="meta")
    held = sum(p.nbytes for p in model.parameters())
    assert weights_bytes(config, dtype.itemsize) == held


def test_what_is_alive_is_counted_exactly():
    with torch.no_grad(), LiveBytes() as live:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1
        del a
        view = b[::2]
        c = torch.cat([b, b])
        del b
    assert (live.peak, live.now) == (1200, 1200) and view.shape == (50,)
    del view, c
    assert live.now == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "size"), [(1, (2, 32, 40)), (2, (3, 16, 24))])
def test_the_estimate_is_what_the_allocator_hands_out(dtype, batch, size):
    """In a forward that really runs, with all that is made inside of operators."""
    config = ModelConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=2, text_dim=64)
    model = SkyReelsModel(config, dtype=dtype).requires_grad_(False)
    x, text = torch.randn(batch, 16, *size, dtype=dtype), torch.randn(batch, 64, 64, dtype=dtype)
    t = torch.rand(batch, size[0]) * 1000
    with torch.no_grad():
        needed = allocated_peak(lambda: model(x, t, text))
    estimate = forward_bytes(config, batch, *size, dtype.itemsize, text_rows=64)
    assert abs(estimate / needed - 1) < 0.03


SMALL = ModelConfig(
    model_type="i2v", dim=128, ffn_dim=640, num_heads=2, num_layers=2, in_dim=36, text_dim=32,
    fps_embedding=True,
)  # fmt: skip


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = SkyReelsModel(SMALL, dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def small_inputs(dtype=torch.float32):
    t = torch.tensor([[10.0, 300, 999], [0, 0, 800]])
    return (
        torch.randn(2, 36, 3, 8, 6, dtype=dtype), t, torch.randn(2, 9, 32, dtype=dtype),
        torch.randn(2, 257, 1280, dtype=dtype),
    )  # fmt: skip


@pytest.mark.parametrize("piece", [1, 2**12, 2**40])
def test_pieces_change_no_number_and_no_input(piece, monkeypatch):
    monkeypatch.setattr(layers, "PIECE_BYTES", piece)
    monkeypatch.setattr(layers, "HIDDEN_BYTES", piece)
    model, given = small_model(), small_inputs()
    before = [tensor.clone() for tensor in given]
    expected = model(*given)
    assert expected.requires_grad
    with torch.inference_mode():
        assert torch.allclose(model(*given), expected, atol=1e-5)
    assert all(map(torch.equal, given, before))
    assert layers.hidden_pieces(72, 128, 640, 4) == (1 if piece == 2**40 else 2)


def test_gradients_are_the_slopes_of_what_is_computed_without_them():
    model, given = small_model(torch.float64), small_inputs(torch.float64)
    model(*given).square().mean().backward()
    directions = [torch.randn_like(p) for p in model.parameters()]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True)
    )
    values = []
    with torch.no_grad():
        for step in (1e-4, -2e-4):
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=step)
            values.append(float(model(*given).square().mean()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-2)


def test_a_block_writes_over_its_input_only_where_told():
    """Checkpointing runs it without gradients first, on the very tensors that it keeps."""
    block = small_model().blocks[0]
    given = layers.BlockInputs(
        modulation=torch.randn(1, 3, 6, 128),
        context=torch.randn(1, 9, 128),
        rope=positions.rope_table((3, 4, 3), 64, torch.device("cpu")),
        image_tokens=0,
        attend_self=sdpa,
        attend_context=sdpa,
    )
    x = torch.randn(1, 36, 128)
    expected, before = block(x, given).detach(), x.clone()
    with torch.no_grad():
        assert torch.allclose(block(x, given), expected, atol=1e-6) and torch.equal(x, before)
        written = block(x, dataclasses.replace(given, may_overwrite=True))
    assert written.data_ptr() == x.data_ptr() and torch.allclose(x, expected, atol=1e-5)
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=True)):
        leaf = before.clone().requires_grad_()
        run(lambda x: block(x, given), leaf * 1).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, atol=1e-5)
