"""Every model with part of its weights off its device, as the host leaves them on small cards.

Two questions: are the results those of the full load, bit for bit; and does no operator meet
tensors of two devices. The second is PyTorch's `meta`, which computes nothing but is not the CPU.
"""

import graphs
import pytest
import torch
from graphs.one_device import OneDevice

from devtools import inprocess

CPU, META = torch.device("cpu"), torch.device("meta")
TOY = graphs.TOY


PARTS = ("transformer", "transformer in bf16", "transformer in scaled fp8", "I2V", "text encoder",
         "VAE decoder", "VAE encoder", "image encoder")  # fmt: skip


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
    for share in (0.001, 0.7):
        patcher, call = part(name)
        # The host must not move it back later: there is nothing on meta to move.
        inprocess.unload_models()
        memory = int(patcher.model_size() * share)
        with torch.inference_mode():
            patcher.patch_model(device_to=META, lowvram_model_memory=memory)
            places = {parameter.device for parameter in patcher.model.parameters()}
            assert places == ({CPU} if share == 0.001 else {CPU, META})
            with OneDevice():
                assert call(META).device == META


def test_partial_load_applies_loras_exactly(open_model, velocity):
    """On the fly as when they are baked in: large layers, modulations, norms and a bias."""
    torch.manual_seed(1)
    plain, _ = open_model(TOY["model"])
    names = ("blocks.0.self_attn.q.weight", "blocks.1.ffn.2.weight", "blocks.2.modulation.weight",
             "blocks.1.cross_attn.norm_k.weight", "time_projection.1.bias",
             "head.head.weight")  # fmt: skip
    state, patched = plain.model.state_dict(), plain.clone()
    change = {f"diffusion_model.{n}": state[f"diffusion_model.{n}"] for n in names}
    patched.add_patches({k: ("diff", (torch.randn_like(v) * 0.1,)) for k, v in change.items()})
    results = [velocity(plain), velocity(patched)]
    inprocess.unload_models()
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
