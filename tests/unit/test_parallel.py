"""A forward that several ranks share is that of one process. Ranks here are threads with gloo."""

import copy
import itertools
import sys
import threading
import types

import golden_data
import pytest
import torch
import torch.distributed as dist
from golden_data import models

from skyreels_model.attention import block_causal, sdpa
from skyreels_model.cache.published import Rule, TeaCache
from skyreels_model.parallel import attention, ring_attention
from skyreels_model.parallel.degrees import Degrees, choose_degrees
from skyreels_model.parallel.forward import SharedBlocks, share_forward
from skyreels_model.parallel.groups import Mesh
from skyreels_model.parallel.shards import Shards
from skyreels_model.parallel.traffic import ForwardSizes, count_sent

# float32 rounding: products of fewer rows may sum in another order, as does a ring.
ROUNDING = 2e-6
TWO = [Degrees(prompts=2), Degrees(heads=2), Degrees(ring=2)]
FOUR = [Degrees(prompts=2, heads=2), Degrees(heads=2, ring=2), Degrees(ring=4)]
THREE = [Degrees(ring=3)]


def on_ranks(degrees, call):
    """`call(mesh)` on every rank of the degrees: its results by rank."""
    store, results, errors = dist.HashStore(), {}, []

    def run(rank):
        try:
            with torch.no_grad():
                mesh = Mesh(degrees, rank, store if degrees.world > 1 else None, patience=20)
                results[rank] = call(mesh)
        except Exception as error:
            errors.append(error)

    ranks = range(degrees.world)
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in ranks]


def case(kind, batch, frames=3, height=6, width=10):
    """A toy model of the golden data, and what it is given: 15 tokens a frame, no round number."""
    name = {"i2v": "dit_i2v", "df": "dit_df_fps24", "t2v": "dit_t2v_scalar"}[kind]
    model = models.dit(golden_data.case(name))
    config = model.config
    torch.manual_seed(0)
    x = torch.randn(batch, config.in_dim, frames, height, width)
    per_frame = torch.randint(0, 1000, (batch, frames))
    given = {"timestep": per_frame[:, 0] if kind == "t2v" else per_frame}
    given["context"] = torch.randn(batch, 12, config.text_dim)
    given["context"][:, 7:] = 0
    if kind == "i2v":
        given["clip_fea"] = torch.randn(batch, 257, 1280)
    return model, x, given


def share(model, x, given):
    """A rank's shared forward, with a model of its own: ranks are processes elsewhere."""
    return lambda mesh: share_forward(copy.deepcopy(model), mesh, x, **given)


def check_equal(degrees, model, x, given, tolerance=ROUNDING):
    with torch.no_grad():
        alone = model(x, **given)
    for out in on_ranks(degrees, share(model, x, given)):
        assert out.shape == alone.shape
        assert golden_data.relative_l2(out, alone) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [*TWO, *THREE, *FOUR], ids=str)
@pytest.mark.parametrize("kind", ["df", "t2v", "i2v"])
def test_shared_forward_is_that_of_one_process(kind, degrees):
    check_equal(degrees, *case(kind, batch=2))


@pytest.mark.parametrize("degrees", [*TWO, *FOUR], ids=str)
def test_without_guidance_one_prompt_is_enough(degrees):
    check_equal(degrees, *case("df", batch=1))


@pytest.mark.parametrize("batch", [3, 4])
def test_prompts_need_not_divide(batch):
    check_equal(Degrees(prompts=3), *case("df", batch))


@pytest.mark.parametrize("degrees", [*TWO, *FOUR], ids=str)
def test_causal_blocks_stay_causal(degrees):
    model, x, given = case("df", batch=1, frames=4)
    check_equal(degrees, model, x, {**given, "causal_block_size": 2})


@pytest.mark.parametrize("degrees", TWO, ids=str)
def test_a_cache_of_the_blocks_sees_the_whole_stream(degrees):
    """The published TeaCache, which rank 0 asks alone, keeps what it would in one process."""
    model, x, given = case("df", batch=2)
    caches = []

    def bind(mesh):
        if mesh is not None and mesh.rank:
            return None
        caches.append(TeaCache(Rule("any", (1.0, 0.0), True, 0, 0), 0.1))
        return caches[-1].bind(["positive", "negative"])

    def run(mesh):
        own = copy.deepcopy(model)
        blocks = SharedBlocks(mesh, 2, (3, 3, 5), len(own.blocks), whole_stream=True)
        with blocks.share_head(own.head):
            return own(x, **given, run_block=blocks, cache=bind(mesh))

    with torch.no_grad():
        alone = model(x, **given, cache=bind(None))
    for out in on_ranks(degrees, run):
        assert golden_data.relative_l2(out, alone) <= ROUNDING
    kept = [torch.cat([state.residual for state in cache.states.values()]) for cache in caches]
    assert kept[0].abs().max() > 0
    assert golden_data.relative_l2(kept[1], kept[0]) <= ROUNDING


def test_more_ranks_than_places_of_a_frame():
    model, x, given = case("df", batch=1, height=2, width=4)  # two places, and three ranks
    check_equal(Degrees(ring=3), model, x, given)


@pytest.mark.parametrize("causal_frames", [0, 1])
def test_heads_apart_change_no_bit_of_attention(causal_frames):
    torch.manual_seed(0)
    frames, places, heads = 3, 35, 4
    tensors = torch.randn(3, 2, frames * places, heads * 16).unbind()
    attend = block_causal(sdpa, causal_frames * places) if causal_frames else sdpa
    degrees = Degrees(heads=4)
    shards = Shards(2, frames, places, degrees.sequence)

    def run(mesh):
        shared = attention.share_attention(attend, mesh, shards, causal_frames)
        return shared(*(shards.cut(t, mesh.chunk) for t in tensors), heads)

    joined = shards.join(torch.stack(on_ranks(degrees, run)))
    assert torch.equal(joined, attend(*tensors, heads))


def test_a_rings_sums_are_attention():
    """Of the kernel, and of the plain products for devices without one."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 70, 16).double().unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    log = (q @ k.transpose(2, 3) / 4).logsumexp(dim=3)
    for call in (attention.attend_with_sums, attention.attend_plainly):
        out, found = call(q.float(), k.float(), v.float())
        assert torch.allclose(out.double(), expected, atol=1e-6)
        assert torch.allclose(found.double(), log, atol=1e-5)


@pytest.fixture
def xfuser(monkeypatch):
    """`xfuser(change)`: a package of that name, with a right kernel but for `change(out, log)`."""

    def make(change=lambda out, log: (out, log)):
        def attend(q, k, v, **how):
            parts = (part.transpose(1, 2) for part in (q, k, v))
            out, log = attention.attend_plainly(*parts)
            out, log = change(out, log)
            return out.transpose(1, 2), log

        found = types.ModuleType("yunchang.kernels")
        found.AttnType = types.SimpleNamespace(FA="fa")
        found.select_flash_attn_impl = lambda kind, stage: attend
        monkeypatch.setitem(sys.modules, "xfuser", types.ModuleType("xfuser"))
        monkeypatch.setitem(sys.modules, "yunchang.kernels", found)

    return make


def chosen(caplog):
    with caplog.at_level("INFO"):
        ours = attention.attend_with_sums
        kernel = ring_attention.choose_attention(ours, torch.device("cpu"), torch.float32)
    return kernel, caplog.messages[-1]


def test_a_right_kernel_of_xfuser_is_taken(xfuser, caplog):
    xfuser()
    kernel, said = chosen(caplog)
    assert kernel is not attention.attend_with_sums and "passed" in said
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 16).unbind()
    for made, own in zip(kernel(q, k, v), attention.attend_with_sums(q, k, v), strict=True):
        assert torch.allclose(made, own, atol=1e-6)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda out, log: (out * 1.05, log), "attention of 70 queries and 70 keys is off by 5"),
        (lambda out, log: (out, log + 0.05), "its sums of 70 queries"),
        (lambda out, log: (out * float("nan"), log), "attention of 70 queries"),
        (lambda out, log: (out, log[:, :, :-1]), "its sums has shape"),
        (lambda out, log: out.missing, "AttributeError"),
    ],
)
def test_a_kernel_that_is_not_right_is_left(xfuser, caplog, change, told):
    xfuser(change)
    kernel, said = chosen(caplog)
    assert kernel is attention.attend_with_sums and told in said


def test_without_xfuser_it_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "xfuser", None)
    kernel, said = chosen(caplog)
    assert kernel is attention.attend_with_sums and "pip install xfuser" in said


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [Degrees(), *TWO, *THREE, *FOUR], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_bytes_sent_are_those_of_the_formula(degrees, batch):
    model, x, given = case("df", batch)

    def run(mesh):
        share(model, x, given)(mesh)
        return mesh.sent

    config = model.config
    sizes = ForwardSizes(batch, 3, 15, config.dim, config.num_layers, 4 * config.out_dim, 4)
    expected = [count_sent(sizes, degrees, rank).total for rank in range(degrees.world)]
    assert on_ranks(degrees, run) == expected


def test_an_exchange_sends_the_heads_of_others():
    """By hand: 10 places for 2 ranks, one block, 4 numbers of 2 bytes, 2 numbers of the patch."""
    sizes = ForwardSizes(batch=1, frames=1, places=10, dim=4, blocks=1, patch=2, itemsize=2)
    qkv_and_out, of_each = 4, 5 * 4 * 2 // 2
    sent = count_sent(sizes, Degrees(heads=2), 0)
    assert (sent.exchanged, sent.joined) == (qkv_and_out * of_each, 5 * 2 * 4)


@pytest.mark.parametrize(
    "world, heads, expected",
    [
        (1, 12, Degrees()),
        (2, 12, Degrees(prompts=2)),
        (3, 12, Degrees(heads=3)),
        (5, 12, Degrees(ring=5)),
        (8, 12, Degrees(prompts=2, heads=4)),
        (8, 40, Degrees(prompts=2, heads=4)),
        (16, 12, Degrees(prompts=2, heads=4, ring=2)),
    ],
)
def test_automatic_degrees_fit_any_number_of_gpus(world, heads, expected):
    assert choose_degrees(world, heads) == expected


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"prompts": 3}, r"prompts apart is 3; .* divisor of the number of GPUs \(8\); nearest: 2"),
        ({"prompts": 1, "ulysses": 8}, r"ulysses is 8; .* heads \(12\); nearest: 4"),
    ],
)
def test_degrees_that_do_not_fit_are_told_with_the_nearest(asked, told):
    with pytest.raises(ValueError, match=told):
        choose_degrees(8, 12, **asked)


def test_every_rank_has_a_place_of_its_own():
    degrees = Degrees(prompts=2, heads=3, ring=2)
    places = {degrees.place(rank) for rank in range(degrees.world)}
    assert places == set(itertools.product(range(2), range(2), range(3)))
    assert [degrees.place(rank)[2] for rank in range(3)] == [0, 1, 2]  # heads beside each other
