"""The VAE against the reference's numbers; its streams against itself; what it refuses."""

import copy
import itertools

import pytest
import torch
from golden_data import case, relative_l2, tensors, weights
from torch import nn

from skyreels_model.vae import (
    LATENT_MEAN,
    LATENT_STD,
    VideoVAE,
    denormalize_latents,
    normalize_latents,
)
from skyreels_model.vae.config import vae_config_from_state_dict
from skyreels_model.vae.layers import RMSNorm

FP32 = 1e-5
FULL_SIZE = {"dim": 96, "z_dim": 16, "dim_mult": (1, 2, 4, 4), "num_res_blocks": 2}


def golden_vae(operations=nn, dtype=None) -> VideoVAE:
    state = weights("weights_vae.safetensors")
    vae = VideoVAE.from_state_dict(state, operations, dtype)
    vae.load_state_dict(state)
    return vae.requires_grad_(False)


def random_frames(count: int, height: int = 16, width: int = 24, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, count, height, width, generator=torch.manual_seed(1)) * 2 - 1


def random_latents(count: int, height: int = 2, width: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, count, height, width, generator=torch.manual_seed(2))


def partitions(total: int) -> list[tuple[int, ...]]:
    """Every way of writing total as an ordered sum of positive numbers."""
    return [
        tuple(b - a for a, b in itertools.pairwise((0, *cuts, total)))
        for r in range(total)
        for cuts in itertools.combinations(range(1, total), r)
    ]


@pytest.mark.parametrize("length", [1, 5, 9, 17])
def test_encode_equals_reference(length):
    data = tensors("vae_encode")
    mu = golden_vae().encode(data["x"][:, :, :length])
    assert relative_l2(mu, data[f"mu_T{length}"]) <= FP32
    assert relative_l2(normalize_latents(mu), data[f"norm_T{length}"]) <= FP32


@pytest.mark.parametrize(("length", "used", "nearest"), [(2, 1, 1), (8, 5, 9)])
def test_frames_the_reference_drops_silently_are_refused(length, used, nearest):
    """A deliberate difference: with 2 or 8 frames the reference encodes the first 1 or 5."""
    data, vae = tensors("vae_encode"), golden_vae()
    with pytest.raises(ValueError, match=rf"frames.* {length};.*1 \+ 4k.*nearest: {nearest}"):
        vae.encode(data["x"][:, :, :length])
    assert relative_l2(vae.encode(data["x"][:, :, :used]), data[f"mu_T{length}"]) <= FP32


def test_encode_batch_and_odd_latent_size_equals_reference():
    data = tensors("vae_encode_batch2")
    assert relative_l2(normalize_latents(golden_vae().encode(data["x"])), data["norm"]) <= FP32


@pytest.mark.parametrize("name", ["vae_decode", "vae_decode_batch2"])
def test_decode_equals_reference(name):
    data = tensors(name)
    frames = golden_vae().decode(denormalize_latents(data["z"]))
    assert relative_l2(frames, data["decoded_unclamped"]) <= FP32


def test_decode_is_causal_to_the_frame():
    z = denormalize_latents(tensors("vae_decode")["z"])
    changed = z.clone()
    changed[:, :, 3] += 1
    vae = golden_vae()
    differs = (vae.decode(z) != vae.decode(changed)).any(dim=(0, 1, 3, 4))
    first = case("vae_decode")["parameters"]["first_frame_changed_when_latent3_changes"]
    assert differs.nonzero()[0].item() == first


def test_intermediates_of_the_first_step_equal_reference():
    vae, data = golden_vae(), tensors("vae_debug_first_chunk")
    places = {
        "enc_conv1": vae.encoder.conv1,
        "enc_down2": vae.encoder.downsamples[2],
        "enc_down5": vae.encoder.downsamples[5],
        "enc_down8": vae.encoder.downsamples[8],
        "enc_middle": vae.encoder.middle[2],
        "dec_middle": vae.decoder.middle[2],
        "dec_up3": vae.decoder.upsamples[3],
        "dec_up7": vae.decoder.upsamples[7],
    }
    seen = {}
    for name, module in places.items():
        module.register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output.clone()})
        )
    vae.encode(tensors("vae_encode")["x"][:, :, :1])
    vae.decode(denormalize_latents(tensors("vae_decode")["z"])[:, :, :1])
    assert seen.keys() == data.keys()
    for name, expected in data.items():
        assert relative_l2(seen[name], expected) <= FP32, name


def test_latent_statistics_are_the_published_ones():
    config = case("vae_decode")["config"]
    assert torch.equal(torch.tensor(LATENT_MEAN), torch.tensor(config["latent_mean"]))
    assert torch.equal(torch.tensor(LATENT_STD), torch.tensor(config["latent_std"]))
    z = random_latents(2)
    assert torch.allclose(normalize_latents(denormalize_latents(z)), z, atol=1e-6)
    assert normalize_latents(z.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("lengths", partitions(4), ids=str)
def test_decode_stream_is_bit_equal_however_it_is_cut(lengths):
    vae, z = golden_vae(), random_latents(4)
    stream = vae.decode_stream()
    frames = [stream.push(chunk) for chunk in z.split(lengths, dim=2)]
    assert frames[0].shape[2] == 1 + 4 * (lengths[0] - 1)
    assert [f.shape[2] for f in frames[1:]] == [4 * n for n in lengths[1:]]
    assert torch.equal(torch.cat(frames, dim=2), vae.decode(z))


@pytest.mark.parametrize("lengths", partitions(4), ids=str)
def test_encode_stream_is_bit_equal_however_it_is_cut(lengths):
    vae, x = golden_vae(), random_frames(13)
    stream = vae.encode_stream()
    chunks = x.split([1 + 4 * (lengths[0] - 1), *(4 * n for n in lengths[1:])], dim=2)
    latents = [stream.push(chunk) for chunk in chunks]
    assert [z.shape[2] for z in latents] == list(lengths)
    assert torch.equal(torch.cat(latents, dim=2), vae.encode(x))


def cache_bytes(cache: list[torch.Tensor]) -> int:
    """Memory held, not only shown: a view counts with all it is a view of."""
    assert all(isinstance(past, torch.Tensor) for past in cache)
    storages = {past.untyped_storage().data_ptr(): past.untyped_storage() for past in cache}
    return sum(storage.nbytes() for storage in storages.values())


def test_caches_cost_constant_memory():
    vae = golden_vae()
    decode, encode = vae.decode_stream(), vae.encode_stream()
    encode.push(random_frames(1))
    decoded, encoded = set(), set()
    for count in (1, 2, 1, 3):
        decode.push(random_latents(count))
        encode.push(random_frames(4 * count))
        decoded.add(cache_bytes(decode.cache))
        encoded.add(cache_bytes(encode.cache))
    assert decoded == {sum(past.nbytes for past in decode.cache)}
    assert encoded == {sum(past.nbytes for past in encode.cache)}
    assert max(past.shape[2] for past in decode.cache + encode.cache) == 2


@pytest.mark.parametrize("snapshot", [copy.deepcopy, list], ids=["deepcopy", "list"])
def test_a_saved_stream_continues_twice_alike(snapshot):
    vae, z, x = golden_vae(), random_latents(4), random_frames(13)
    decode, encode = vae.decode_stream(), vae.encode_stream()
    decode.push(z[:, :, :2])
    encode.push(x[:, :, :5])
    saved_decode, saved_encode = snapshot(decode.cache), snapshot(encode.cache)
    frames, latents = decode.push(z[:, :, 2:]), encode.push(x[:, :, 5:])
    assert torch.equal(vae.decode_stream(saved_decode).push(z[:, :, 2:]), frames)
    assert torch.equal(vae.encode_stream(saved_encode).push(x[:, :, 5:]), latents)
    assert torch.equal(frames, vae.decode(z)[:, :, 5:])


def test_streams_of_one_model_do_not_disturb_each_other():
    vae, z = golden_vae(), random_latents(3)
    other = -z
    a, b = vae.decode_stream(), vae.decode_stream()
    pairs = [(a.push(z[:, :, [i]]), b.push(other[:, :, [i]])) for i in range(3)]
    assert torch.equal(torch.cat([p[0] for p in pairs], dim=2), vae.decode(z))
    assert torch.equal(torch.cat([p[1] for p in pairs], dim=2), vae.decode(other))


class ManualCast:
    """Layers that cast their weights to the input, as the host's do."""

    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight.to(x), self.bias.to(x))

    class Conv3d(nn.Conv3d):
        def forward(self, x):
            return self._conv_forward(x, self.weight.to(x), self.bias.to(x))


def test_weights_stored_in_half_precision_compute_in_float32():
    """Golden weights are exact in bfloat16, so storing them so must not change the result."""
    vae, data = golden_vae(ManualCast, torch.bfloat16), tensors("vae_decode")
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    frames = vae.decode(denormalize_latents(data["z"]))
    assert relative_l2(frames, data["decoded_unclamped"]) <= FP32
    assert (
        relative_l2(vae.encode(tensors("vae_encode")["x"]), tensors("vae_encode")["mu_T17"]) <= FP32
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stored_in_float32_compute_in_half_precision(dtype):
    vae, z, x = golden_vae(ManualCast), random_latents(2).to(dtype), random_frames(5).to(dtype)
    assert torch.equal(vae.decode(z), golden_vae().to(dtype).decode(z))
    assert torch.equal(vae.encode(x), golden_vae().to(dtype).encode(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_reference(dtype):
    vae, data = golden_vae().to(dtype), tensors("vae_decode")
    z = denormalize_latents(data["z"])[:, :, :2].to(dtype)
    frames = vae.decode(z)
    assert frames.dtype == dtype
    assert relative_l2(frames, data["decoded_bf16_autocast_2latents"]) <= 8e-2
    x = tensors("vae_encode")
    assert relative_l2(vae.encode(x["x"].to(dtype)), x["mu_T17"]) <= 8e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-3, 6e4])
def test_norm_keeps_its_length_at_the_ends_of_the_range(dtype, size):
    norm = RMSNorm(384, 3, dtype, None)
    y = norm(torch.full((1, 384, 1, 1, 1), size, dtype=dtype)).float()
    assert torch.allclose(y, torch.full_like(y, float(size > 0)), rtol=1e-2)


def test_full_size_layout_is_made_without_memory():
    vae = VideoVAE(device="meta", dtype=torch.float16)
    state = vae.state_dict()
    assert len(state) == 194
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    assert vae_config_from_state_dict(state) == FULL_SIZE | {
        "temporal_downsample": (False, True, True)
    }
    assert state["decoder.upsamples.3.time_conv.weight"].shape == (768, 384, 3, 1, 1)
    assert state["encoder.middle.1.norm.gamma"].shape == (384, 1, 1)
    assert all(t.dtype == torch.float16 and t.is_meta for t in state.values())


def test_gradients_reach_every_weight():
    vae = golden_vae().requires_grad_(True)
    vae.decode(vae.encode(random_frames(9))).square().mean().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "config",
    [
        {"dim": 8, "z_dim": 4, "num_res_blocks": 1},
        {"dim_mult": (1, 2), "temporal_downsample": (True,), "dim": 4},
        {"dim_mult": (1, 1, 2), "temporal_downsample": (False, False), "dim": 4},
    ],
    ids=str,
)
def test_other_sizes_are_read_back_and_run(config):
    vae = VideoVAE(**config)
    found = vae_config_from_state_dict(vae.state_dict())
    assert found | config == found
    frames = 1 + 2 * vae.time_factor
    z = vae.encode(random_frames(frames))
    assert z.shape[:3] == (1, vae.z_dim, 3)
    assert vae.decode(z).shape == (1, 3, frames, 16, 24)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 5, 16, 16),
            r"shape of frames is \(3, 5, 16, 16\); it must be \(batch, 3, frames, ",
        ),
        ((1, 4, 5, 16, 16), r"the number of channels of frames is 4; it must be 3; nearest: 3"),
        (
            (1, 3, 0, 16, 16),
            r"frames is \(1, 3, 0, 16, 16\); it must be 1 or more.*: \(1, 3, 1, 16, 16\)",
        ),
        ((1, 3, 3, 16, 16), r"number of frames of frames is 3; it must be 1 \+ 4k; nearest: 5"),
        ((1, 3, 5, 20, 16), r"height of frames is 20; it must be a multiple of 8; nearest: 24"),
        ((1, 3, 5, 16, 3), r"width of frames is 3; it must be a multiple of 8; nearest: 8"),
    ],
)
def test_encode_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        golden_vae().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 5, 2, 2), r"the shape of latents is \(16, 5, 2, 2\); it must be \(batch, 16, "),
        ((1, 48, 5, 2, 2), r"channels of latents is 48; it must be 16; nearest: 16"),
        ((1, 16, 0, 2, 2), r"latents is \(1, 16, 0, 2, 2\); it must be 1 or more"),
    ],
)
def test_decode_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        golden_vae().decode(torch.zeros(shape))


def test_a_stream_refuses_what_does_not_continue_it():
    vae = golden_vae()
    decode, encode = vae.decode_stream(), vae.encode_stream()
    decode.push(random_latents(1))
    encode.push(random_frames(1))
    before = list(encode.cache)
    with pytest.raises(
        ValueError, match=r"latents is \(1, 4, 3\).*first push; nearest: \(1, 2, 3\)"
    ):
        decode.push(random_latents(1, height=4))
    with pytest.raises(
        ValueError, match=r"frames is \(2, 16, 24\).*first push; nearest: \(1, 16, 24\)"
    ):
        encode.push(random_frames(4, batch=2))
    with pytest.raises(ValueError, match=r"frames of frames is 5; it must be 4k.*nearest: 4"):
        encode.push(random_frames(5))
    assert all(a is b for a, b in zip(encode.cache, before, strict=True))


def test_normalize_refuses_other_channels():
    with pytest.raises(ValueError, match="channels of mu is 4; it must be 16; nearest: 16"):
        normalize_latents(torch.zeros(1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match="the shape of z is"):
        denormalize_latents(torch.zeros(16, 1, 2, 2))


def test_config_refuses_unequal_levels():
    with pytest.raises(ValueError, match="temporal_downsample is 2; it must be one less.*: 3"):
        VideoVAE(dim=4, temporal_downsample=(True, True), device="meta")


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("patch_embedding.weight", r"transformer \(DiT\)"),
        ("quant_conv.weight", "a VAE with diffusers key names"),
        ("decoder.mid.block_1.conv1.weight", "an image VAE"),
        ("first_stage_model.conv1.weight", "a prefix"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a text encoder"),
        ("visual.cls_embedding", "a CLIP image encoder"),
        ("blocks.0.lora_up.weight", "a LoRA"),
        ("encoder.conv1.weight", "a Wan 2.1 VAE, or a part"),
        ("else", "no model file known here"),
    ],
)
def test_other_files_are_named(key, found):
    with pytest.raises(ValueError, match=rf"(is|like) .*{found}.*must be a Wan 2.1 VAE"):
        vae_config_from_state_dict({key: torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("decoder.upsamples.0.upsamples.0.residual.2.weight", (1,), "this is a Wan 2.2 VAE"),
        ("encoder.conv1.weight", (4, 12, 3, 3, 3), "has 12 input channels, which must be 3"),
        ("encoder.conv1.weight", (4, 3, 3, 3), "no 3-D convolution"),
        ("conv2.weight", (48, 48, 1, 1, 1), "has 16 latent channels, which must be 48"),
        ("conv1.weight", (16, 32, 1, 1, 1), "has 16 moments .* must be 32"),
        ("encoder.downsamples.11.residual.2.weight", (16, 16, 3, 3, 3), r"\[2, 2, 2, 3\]"),
        ("encoder.downsamples.9.residual.2.weight", (18, 16, 3, 3, 3), "18 wide"),
    ],
)
def test_contradicting_tensors_are_refused(key, shape, message):
    state = weights("weights_vae.safetensors") | {key: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        vae_config_from_state_dict(state)
