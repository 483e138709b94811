"""Every model with part of its weights off its device, as the host leaves them on small cards.

Two questions: are the results those of the full load, bit for bit; and does no operator meet
tensors of two devices. The second is PyTorch's `meta`, which computes nothing but is not the CPU.
"""

import sys

import graphs
import pytest
import torch
from graphs.quantised import scaled
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

I2V = "toy/SkyReels-V2-I2V-Toy-32P/model.safetensors"
IMAGE_ENCODER = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CPU, META = torch.device("cpu"), torch.device("meta")
TOY, node = graphs.TOY, graphs.node


@pytest.fixture
def transformer(open_model):
    def make(name, dtype, channels, **image):
        model, _ = open_model(name, dtype)
        given = torch.randn(1, channels, 3, 4, 4), torch.randn(1, 512, 64)
        timestep = torch.tensor([[20.0, 500.0, 999.0]])
        compute = model.model.get_dtype_inference()

        def call(device):
            x, context = (tensor.to(device, compute) for tensor in given)
            features = {k: v.to(device, compute) for k, v in image.items()}
            return model.model.diffusion_model(x, timestep.to(device), context, **features)

        return model, call

    return make


@pytest.fixture
def scaled_file(plain, models_folder):
    name = "scaled, in parts.safetensors"
    save_file(scaled(plain), models_folder / "diffusion_models" / name)
    return name


@pytest.fixture
def text_encoder(look, monkeypatch):
    def make():
        # Its check of the tokens reads numbers, of which meta has none.
        module = next(n for n in sys.modules if "/" in n and n.endswith(".text_encoder.network"))
        monkeypatch.setattr(sys.modules[module], "_check_text", lambda *given: [20])
        loader = node("SkyReelsV2TextEncoderLoader", text_encoder_name=TOY["text"])
        (clip,) = look({"1": loader}, clip=["1", 0])
        ids, mask = torch.arange(512)[None] % 100, torch.arange(512)[None] < 20

        def call(device):
            encoder = clip.cond_stage_model.transformer
            return encoder(ids.to(device), mask.to(device), dtype=torch.float32)

        return clip.patcher, call

    return make


@pytest.fixture
def vae(look):
    def make(direction, *shape):
        loader = node("SkyReelsV2VAELoader", vae_name=TOY["vae"])
        (loaded,) = look({"1": loader}, vae=["1", 0])
        given = torch.rand(shape)
        return loaded.patcher, lambda device: getattr(loaded.first_stage_model, direction)(
            given.to(device)
        )

    return make


@pytest.fixture
def image_encoder(look):
    def make():
        loader = node("SkyReelsV2ImageEncoderLoader", image_encoder_name=IMAGE_ENCODER)
        (loaded,) = look({"1": loader}, vision=["1", 0])
        images = torch.rand(1, 3, 224, 224)
        return loaded.patcher, lambda device: loaded.model(images.to(device))

    return make


@pytest.fixture
def part(transformer, scaled_file, text_encoder, vae, image_encoder):
    """`part(name)` -> a part's patcher, fresh from its file, and a call of it on a device."""
    makers = {
        "transformer": lambda: transformer(TOY["model"], "fp32", 16),
        "transformer in bf16": lambda: transformer(TOY["model"], "bf16", 16),
        "transformer in scaled fp8": lambda: transformer(scaled_file, "fp32", 16),
        "I2V": lambda: transformer(I2V, "fp32", 36, clip_fea=torch.randn(1, 257, 1280)),
        "text encoder": text_encoder,
        "VAE decoder": lambda: vae("decode", 1, 16, 2, 4, 4),
        "VAE encoder": lambda: vae("encode", 1, 3, 5, 32, 32),
        "image encoder": image_encoder,
    }

    def make(name):
        torch.manual_seed(0)
        return makers[name]()

    return make


PARTS = ("transformer", "transformer in bf16", "transformer in scaled fp8", "I2V", "text encoder",
         "VAE decoder", "VAE encoder", "image encoder")  # fmt: skip


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
    patcher, call = part(name)
    results = []
    with torch.inference_mode():
        for share in (0, 0.001, 0.6):
            memory = int(patcher.model_size() * share)
            patcher.patch_model(device_to=CPU, lowvram_model_memory=memory)
            assert patcher.model.model_lowvram == bool(share)
            assert not share or patcher.loaded_size() <= memory
            results.append(call(CPU))
            patcher.unpatch_model(CPU)
    full, *parts = results
    assert all(torch.equal(result, full) for result in parts)


@pytest.mark.parametrize("name", PARTS)
def test_streamed_weights_follow_their_inputs(part, name):
    """Every weight can be left behind, raw parameters included, and is brought where it is used."""
    import comfy.model_management

    for share in (0.001, 0.7):
        patcher, call = part(name)
        # The host must not move it back later: there is nothing on meta to move.
        comfy.model_management.unload_all_models()
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
    plain, _ = open_model(TOY["model"])
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
