"""ComfyUI's default memory path on NVIDIA cards, on a stand-in for a card (`tests/card`).

Its dynamic patcher fetches each layer's weights when the layer is at work: they stay on the card
as memory allows, or pass through. What comes out is held to the classic patcher's, bit for bit.
"""

import contextlib
import sys

import graphs
import pytest
import torch
from card.install import installed, use_dynamic
from card.tensors import CARD
from graphs.quantised import write_gguf
from safetensors.torch import save_file

from devtools import inprocess

ROOMY = 1 << 40
PARTS = ("transformer", "transformer in bf16", "transformer in fp8", "transformer in scaled fp8",
         "I2V", "GGUF", "text encoder", "VAE decoder", "VAE encoder", "image encoder")  # fmt: skip
# How far results may be apart, as a share of what the LoRA changes: what the weights' format costs.
PATCHED = {
    "transformer": 1e-6,
    "transformer in bf16": 0.01,
    "transformer in scaled fp8": 0.04,
    "GGUF": 1e-6,
}


@pytest.fixture
def card(host, monkeypatch):
    import comfy.cli_args
    import comfy.model_management

    if not hasattr(comfy.model_management, "STREAM_AIMDO_CAST_BUFFERS"):
        pytest.skip("this ComfyUI has another dynamic patcher")
    inprocess.unload_models()
    # A VAE in bf16, the default on cards, takes a CPU long.
    monkeypatch.setattr(comfy.cli_args.args, "fp32_vae", True)
    with torch.inference_mode(), installed(monkeypatch) as card:
        yield card


@pytest.fixture
def fresh(part, transformer, plain, models_folder):
    """`fresh(name)` -> a part's patcher from its file, and a call of it on a device."""

    def make(name):
        if name != "GGUF":
            return part(name)
        pytest.importorskip("gguf")
        write_gguf(models_folder / "diffusion_models" / "on the card.gguf", plain, "Q8_0")
        torch.manual_seed(0)
        return transformer("on the card.gguf", "bf16", 16)

    return make


@pytest.fixture
def run(card):
    """`run(patcher, call)`: what comes out on the card, done as for a node of a graph."""
    import comfy.model_management
    import comfy.model_prefetch

    def run(patcher, call):
        try:
            comfy.model_management.load_models_gpu([patcher])
            return call(CARD).cpu()
        finally:
            comfy.model_management.reset_cast_buffers()
            comfy.model_prefetch.cleanup_prefetch_queues()
            assert not card.vram.in_use()

    return run


@contextlib.contextmanager
def cancelled(patcher):
    """Inside, the host is asked to stop after a model's third layer, and does before the fourth."""
    import comfy.model_management as management

    layers = {m for m in patcher.model.modules() if hasattr(m, "comfy_cast_weights")}
    done = []

    def count(layer, *_call):
        done.extend([layer] if layer in layers else [])
        if len(done) == 3:
            management.interrupt_current_processing()

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    with pytest.raises(management.InterruptProcessingException):
        yield
    hook.remove()
    assert len(done) == 3


@pytest.fixture
def dynamic(card, monkeypatch):
    """`dynamic()`: from now on models have the dynamic patcher, to which all layers look large.

    It moves those of up to 16 KB at once, as most of the tests' models are, and few of real ones.
    """
    import comfy.model_patcher

    kind = comfy.model_patcher.ModelPatcherDynamic
    listed = kind._load_list

    def list_as_large(self, *args, **options):
        return [(*e[:-4], e[-4] + 16 * 1024, *e[-3:]) for e in listed(self, *args, **options)]

    def start():
        use_dynamic(monkeypatch)
        monkeypatch.setattr(kind, "_load_list", list_as_large)

    return start


@pytest.mark.parametrize("name", PARTS)
def test_weights_come_layer_by_layer(card, fresh, run, dynamic, name):
    wanted = run(*fresh(name))
    inprocess.unload_models()
    dynamic()
    patcher, call = fresh(name)
    # The host's own patcher for it knows no packed weights.
    assert patcher.is_dynamic() == (name != "GGUF")
    with cancelled(patcher):
        run(patcher, call)
    for budget in (ROOMY, patcher.model_size() // 3):
        card.vram.budget = budget
        for _ in range(2):
            assert torch.equal(run(patcher, call), wanted)
            assert card.vram.used() <= budget and bool(card.vram.used()) == patcher.is_dynamic()
            used = [m for m in patcher.model.modules() if hasattr(m, "_v_signature")]
            assert all("_pins" in vars(m) for m in used if hasattr(m, "_v_weight"))
        inprocess.unload_models()
        assert not card.vram.used() and not card.runtime.registered
        assert not any(parameter.is_cuda for parameter in patcher.model.parameters())


@pytest.mark.parametrize("name", ["transformer in bf16", "transformer in fp8", "GGUF"])
def test_kernels_are_given_weights_from_the_card(card, fresh, run, dynamic, kernels, name):
    """Numbers of norms, and of products that make their GELU; a quantised one makes none."""
    import comfy.model_management as management

    wanted = run(*fresh(name))
    ran = dict(kernels)
    assert set(ran) == {"border", "turn"}
    management.unload_all_models()
    dynamic()
    patcher, call = fresh(name)
    for budget in (ROOMY, patcher.model_size() // 3):
        card.vram.budget = budget
        assert torch.equal(run(patcher, call), wanted)
    assert kernels == {kernel: 3 * count for kernel, count in ran.items()}


OF_KERNELS = ("blocks.0.ffn.0.weight", "blocks.1.ffn.0.bias", "blocks.1.norm3.weight",
              "blocks.2.self_attn.norm_q.weight")  # fmt: skip
CHANGED = ("blocks.0.self_attn.q.weight", "blocks.1.ffn.2.weight", "blocks.2.modulation.weight",
           "blocks.1.cross_attn.norm_k.weight", "time_projection.1.bias",
           "head.head.weight")  # fmt: skip


@pytest.fixture
def patched(fresh, plain):
    """`patched(name)` -> a part's patcher, one with a LoRA's changes on it, and a call."""

    def make(name, changed_keys=CHANGED):
        patcher, call = fresh(name)
        torch.manual_seed(1)
        changes = {}
        for key in changed_keys:
            like = plain[key.replace("modulation.weight", "modulation")]
            changes[f"diffusion_model.{key}"] = ("diff", (torch.randn_like(like) * 0.1,))
        changed = patcher.clone()
        assert len(changed.add_patches(changes)) == len(changed_keys)
        return patcher, changed, call

    return make


@pytest.mark.parametrize(("name", "rounding"), PATCHED.items())
def test_loras_on_top_and_off_again(card, patched, run, dynamic, monkeypatch, name, rounding):
    """As the classic patcher bakes them in, but for how often the host rounds to their format."""
    import comfy.model_management as management

    # As precise as the dynamic patcher, which computes in the weights' format.
    monkeypatch.setattr(management, "lora_compute_dtype", lambda device: torch.float32)
    patcher, changed, call = patched(name)
    wanted, without = run(changed, call), run(patcher, call)
    inprocess.unload_models()
    dynamic()
    patcher, changed, call = patched(name)
    for budget in (patcher.model_size() // 3, ROOMY):
        card.vram.budget = budget
        for _ in range(2):
            away = run(changed, call) - wanted
            assert away.norm() <= rounding * (wanted - without).norm()
    assert torch.equal(run(patcher, call), without)


def test_kernels_are_given_what_loras_change(card, patched, run, dynamic, request):
    """Of each layer whose numbers they read, whether it stays on the card or not."""
    dynamic()
    patcher, changed, call = patched("transformer in bf16", OF_KERNELS)
    wanted, without = run(changed, call), run(patcher, call)
    ran = request.getfixturevalue("kernels")
    for budget in (patcher.model_size() // 3, ROOMY):
        card.vram.budget = budget
        rounding = run(patcher, call) - without
        away = run(changed, call) - wanted
        assert away.norm() < 1.5 * rounding.norm() < 0.1 * (wanted - without).norm()
    assert ran["border"]


@pytest.mark.parametrize("through_ram", [True, False])
def test_weights_are_read_from_their_files(
    card, transformer, plain, models_folder, run, dynamic, monkeypatch, through_ram
):
    """By the host itself, past the mapping, where files have them as they are used."""
    import comfy.cli_args

    def make():
        torch.manual_seed(0)
        return transformer("direct-00001-of-00002.safetensors", "bf16", 16)

    half, folder = {k: v.bfloat16() for k, v in plain.items()}, models_folder / "diffusion_models"
    for shard in (1, 2):
        part = {k: half[k] for k in sorted(half)[shard - 1 :: 2]}
        save_file(part, folder / f"direct-0000{shard}-of-00002.safetensors")
    wanted = run(*make())
    inprocess.unload_models()
    dynamic()
    monkeypatch.setattr(comfy.cli_args.args, "fast_disk", not through_ram)
    patcher, call = make()
    assert torch.equal(run(patcher, call), wanted)
    layers = [m for m in patcher.model.modules() if hasattr(m, "_v")]
    direct = [p.nbytes for m in layers for p in m.parameters() if p.dtype == torch.bfloat16]
    assert card.runtime.bytes_read == sum(direct) > 0.6 * patcher.model_size()
    assert bool(card.runtime.registered) == through_ram


def test_films_whose_models_share_the_card(card, look, run_prompt, monkeypatch):
    """From the loaders to the frames, with room for a part of one model; stopped, and once more."""
    import comfy.model_management as management

    prompt = graphs.film(frames=5, window=5, overlap=1, steps=2)
    wanted = look(prompt, frames=["7", 0])[0]
    use_dynamic(monkeypatch)
    card.vram.budget = 500_000

    def stop(event, data):
        if event == "progress_state" and data["nodes"].get("6", {}).get("value", 0) >= 1:
            management.interrupt_current_processing()

    assert torch.equal(look(prompt, frames=["7", 0])[0], wanted)
    output = {**prompt, "8": graphs.node("PreviewImage", images=["7", 0])}
    assert run_prompt(output, stop).interrupted
    assert not card.vram.in_use()
    assert torch.equal(look(prompt, frames=["7", 0])[0], wanted)
    assert not card.vram.in_use() and 0 < card.vram.most_used <= 500_000


@pytest.mark.parametrize("room", [4 << 30, 0], ids=["pinned", "no room"])
def test_caches_of_tiles_are_pinned_while_they_last(card, look, monkeypatch, room):
    """Each is one block; where memory does not suffice, those of smaller tiles are."""
    import comfy.model_management as management

    monkeypatch.setattr(management, "MAX_PINNED_MEMORY", room)
    kind = type(look({"3": graphs.film()["3"]}, vae=["3", 0])[0])
    sockets = sys.modules[kind.__module__]
    streams = sys.modules[sockets.decode_latents.__module__]
    monkeypatch.setattr(streams, "BLOCK", 2)
    torch.manual_seed(0)
    vae = kind(sockets.VideoVAE(dim=2, num_res_blocks=0), torch.float32, True)
    model, size = vae.first_stage_model, (8, 16)
    latents = torch.randn(1, 16, 3 * streams.BLOCK, *size)
    tiling = streams.Tiling(streams.Side.of(8), streams.Side.of(12))
    passage = streams.Decoding(vae, latents, tiling, lambda latents: latents)
    opened, lacking = [], []
    open_ = passage._open
    monkeypatch.setattr(passage, "_open", lambda tiling: opened.append(open_(tiling)) or opened[0])

    def lack(_module, given):
        if lacking and given[0].shape[4] > lacking[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.decoder.register_forward_pre_hook(lack)
    before, found, parts = dict(card.runtime.registered), [], passage.run()
    for wide in (2, 2, 4):
        found.append(next(parts))
        caches = [tile.cache for tile in opened[0].tiles]
        assert len(caches) == wide and not any(past.is_cuda for past in sum(caches, []))
        pinned = dict(card.runtime.registered.items() - before.items())
        assert len(pinned) == (wide if room else 0)
        assert not room or sum(pinned.values()) >= sum(past.nbytes for past in sum(caches, []))
        lacking = [8] if len(found) == 2 else []
    del caches
    parts.close()
    handle.remove()
    opened.clear()
    assert card.runtime.registered == before
    there = streams.TiledDecodeStream(model, tiling, size)  # caches stay on the card
    for part, block in zip(found[:2], latents.to(CARD).split(streams.BLOCK, dim=2), strict=False):
        assert torch.equal(part, vae.process_output(there.push(block).cpu())[0].movedim(0, -1))
