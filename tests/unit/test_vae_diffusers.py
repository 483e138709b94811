"""The VAE and its key map against diffusers' AutoencoderKLWan, on fresh weights and inputs."""

import pytest
import torch
from golden_data import relative_l2

from skyreels_model.vae import VideoVAE
from skyreels_model.vae.names import vae_key_to_original

diffusers = pytest.importorskip("diffusers")

FP32 = 1e-5


def pair(seed: int) -> tuple[torch.nn.Module, VideoVAE]:
    """diffusers' VAE with random weights (norms and biases too), and ours with the same."""
    torch.manual_seed(seed)
    theirs = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16).requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    # Keeps the output inside the range to which diffusers clamps it.
    theirs.decoder.conv_out.weight.mul_(0.2)
    state = {vae_key_to_original(key): value for key, value in theirs.state_dict().items()}
    ours = VideoVAE.from_state_dict(state).requires_grad_(False)
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (5, 1), (13, 1)])
def test_encode_equals_diffusers(frames, batch):
    theirs, ours = pair(frames)
    x = torch.rand(batch, 3, frames, 24, 16) * 2 - 1
    assert relative_l2(ours.encode(x), theirs.encode(x).latent_dist.mean) <= FP32


@pytest.mark.parametrize(("latents", "batch"), [(1, 2), (2, 1), (4, 1)])
def test_decode_equals_diffusers(latents, batch):
    theirs, ours = pair(latents)
    z = torch.randn(batch, 16, latents, 3, 2)
    frames = ours.decode(z)
    assert (frames.abs() < 1).float().mean() > 0.99
    assert relative_l2(frames.clamp(-1, 1), theirs.decode(z).sample) <= FP32


def test_key_map_covers_the_full_size_one_to_one():
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan().state_dict()
    ours = VideoVAE(device="meta").state_dict()
    mapped = {vae_key_to_original(key): tuple(value.shape) for key, value in theirs.items()}
    assert len(theirs) == len(mapped) == 194
    assert mapped == {key: tuple(value.shape) for key, value in ours.items()}


@pytest.mark.parametrize("key", ["", "conv1.weight", "decoder.mid_block.resnets.2.conv1.weight"])
def test_key_map_refuses_other_names(key):
    with pytest.raises(ValueError, match="must be a tensor of AutoencoderKLWan"):
        vae_key_to_original(key)
