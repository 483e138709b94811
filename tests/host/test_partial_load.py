"""Every model with part of its weights off its device, as the host leaves them on small cards.

Two questions: are the results those of the full load, bit for bit; and does no operator meet tensors
of two devices. The second device is PyTorch's `meta`, which computes nothing but is not the CPU.
"""

import sys

import graphs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

I2V = "toy/SkyReels-V2-I2V-Toy-32P/model.safetensors"
IMAGE_ENCODER = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CPU, META = torch.device("cpu"), torch.device("meta")
PARTS = ("transformer", "transformer in bf16", "I2V transformer", "text encoder", "VAE decoder",
         "VAE encoder", "image encoder")  # fmt: skip


@pytest.fixture
def part(look, open_model, monkeypatch):
    """`part(name)` -> a part's patcher, fresh from its file, and a call of it on a device."""

    def transformer(name, dtype, channels, **image):
        model, _ = open_model(name, dtype)
        torch.manual_seed(0)
        given = torch.randn(1, channels, 3, 4, 4), torch.randn(1, 512, 64)
        timestep = torch.tensor([[20.0, 500.0, 999.0]])
        compute = model.model.get_dtype_inference()

        def call(device):
            x, context = (tensor.to(device, compute) for tensor in given)
            features = {k: v.to(device, compute) for k, v in image.items()}
            return model.model.diffusion_model(x, timestep.to(device), context, **features)

        return model, call

    def other(node, output, patcher, given, call):
        (loaded,) = look({"1": node}, **{output: ["1", 0]})
        return patcher(loaded), lambda device: call(loaded, *(g.to(device) for g in given))

    def make(name):
        toy, load = graphs.TOY, graphs.node
        torch.manual_seed(0)
        if name == "transformer":
            return transformer(toy["model"], "fp32", 16)
        if name == "transformer in bf16":
            return transformer(toy["model"], "bf16", 16)
        if name == "I2V transformer":
            return transformer(I2V, "fp32", 36, clip_fea=torch.randn(1, 257, 1280))
        if name == "text encoder":
            node = load("SkyReelsV2TextEncoderLoader", text_encoder_name=toy["text"])
            encoder = next(n for n in sys.modules if "/" in n and n.endswith(".text_encoder"))
            # Its check reads numbers, of which meta has none.
            monkeypatch.setattr(sys.modules[encoder], "_check_text", lambda *given: [20])
            tokens = torch.arange(512)[None] % 100, torch.arange(512)[None] < 20
            return other(node, "clip", lambda clip: clip.patcher, tokens, encode_text)
        if name == "image encoder":
            node = load("SkyReelsV2ImageEncoderLoader", image_encoder_name=IMAGE_ENCODER)
            images = [torch.rand(1, 3, 224, 224)]
            return other(node, "vision", lambda v: v.patcher, images, lambda v, x: v.model(x))
        node = load("SkyReelsV2VAELoader", vae_name=toy["vae"])
        decode, given = name == "VAE decoder", torch.rand(1, 3, 5, 32, 32)
        given = torch.randn(1, 16, 2, 4, 4) if decode else given

        def call(vae, x):
            return (vae.first_stage_model.decode if decode else vae.first_stage_model.encode)(x)

        return other(node, "vae", lambda vae: vae.patcher, [given], call)

    return make


def encode_text(clip, ids, mask):
    return clip.cond_stage_model.transformer(ids, mask, dtype=torch.float32)


class OneDevice(TorchDispatchMode):
    """Refuses operators, but for copies, on tensors of several devices, as a GPU would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        copies = aten.copy_, aten._to_copy, aten.to
        if func.overloadpacket not in copies:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            devices = {tensor.device.type for tensor in given if tensor.ndim}
            assert len(devices) < 2, f"{func} on {devices}: {[tuple(t.shape) for t in given]}"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", PARTS)
def test_partial_load_is_the_full_load(part, name):
    import comfy.model_management

    patcher, call = part(name)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        full = call(CPU)
        comfy.model_management.unload_all_models()
        for share in (0.001, 0.6):
            memory = int(patcher.model_size() * share)
            patcher.patch_model(device_to=CPU, lowvram_model_memory=memory)
            assert patcher.model.model_lowvram and patcher.loaded_size() <= memory
            assert torch.equal(call(CPU), full)
            patcher.unpatch_model(CPU)


@pytest.mark.parametrize("name", PARTS)
def test_streamed_weights_follow_their_inputs(part, name):
    """Every weight can be left behind, raw parameters included, and is brought where it is used."""
    for share in (0.001, 0.7):
        patcher, call = part(name)
        memory = int(patcher.model_size() * share)
        with torch.inference_mode():
            patcher.patch_model(device_to=META, lowvram_model_memory=memory)
            places = {parameter.device for parameter in patcher.model.parameters()}
            assert places == ({CPU} if share == 0.001 else {CPU, META})
            with OneDevice():
                assert call(META).device == META


def test_partial_load_applies_loras_exactly(open_model, velocity):
    """On the fly as when they are baked in: large layers, modulations, norms and a bias."""
    import comfy.model_management

    torch.manual_seed(1)
    plain, _ = open_model(graphs.TOY["model"])
    names = ("blocks.0.self_attn.q.weight", "blocks.1.ffn.2.weight", "blocks.2.modulation.weight",
             "blocks.1.cross_attn.norm_k.weight", "time_projection.1.bias",
             "head.head.weight")  # fmt: skip
    state, patched = plain.model.state_dict(), plain.clone()
    change = {f"diffusion_model.{n}": state[f"diffusion_model.{n}"] for n in names}
    patched.add_patches({k: ("diff", (torch.randn_like(v) * 0.1,)) for k, v in change.items()})
    results = [velocity(plain), velocity(patched)]
    comfy.model_management.unload_all_models()
    torch.manual_seed(0)  # the inputs of `velocity`
    x, t = torch.randn(1, 16, 3, 4, 4), torch.tensor([[20.0, 500.0, 999.0]])
    context = torch.randn(1, 512, 64)
    for unload in (False, True):
        with torch.inference_mode():
            memory = 0 if unload else int(patched.model_size() * 0.3)
            patched.patch_model(device_to=CPU, lowvram_model_memory=memory)
            if unload:
                # The host's other way: of a full load some goes later, for another model.
                patched.partially_unload(CPU, int(patched.model_size() * 0.7))
            assert patched.model.model_lowvram and patched.model.lowvram_patch_counter
            results.append(patched.model.diffusion_model(x, t, context))
            patched.unpatch_model(CPU)
    unpatched, full, streamed, unloaded = results
    assert not torch.allclose(unpatched, full, atol=1e-3)
    assert torch.equal(streamed, full) and torch.equal(unloaded, full)
