"""The CLIP image encoder against the reference's numbers, transformers, and bad files."""

import golden_data
import pytest
import torch

from skyreels_model.files import loading
from skyreels_model.framing import crop_box, fit_image
from skyreels_model.image_encoder import (
    CLIPVision,
    CLIPVisionConfig,
    hf_to_original,
    preprocess,
    squash,
    to_original_names,
)

TOLERANCE = 3e-6
CASES = ("clip_40x64", "clip_48x32")
STRIDES = {"clip_40x64": (0, 7, 0, 7), "clip_48x32": (3, 16, 5, 16)}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}


def golden_encoder():
    state = golden_data.weights("weights_clip.safetensors")
    encoder = CLIPVision(CLIPVisionConfig.from_state_dict(state, head_dim=16), device="meta")
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False)


def pixels_of(data):
    return preprocess((data["image"][:, :, 0] + 1) / 2)


def test_config_is_read_from_shapes():
    config = CLIPVisionConfig.from_state_dict(
        golden_data.weights("weights_clip.safetensors"), head_dim=16
    )
    expected = golden_data.case("clip_40x64")["config"]
    for name in ("dim", "num_heads", "num_layers", "out_dim", "patch_size", "image_size"):
        assert getattr(config, name) == expected[name]
    assert config.dim_mlp == expected["dim"] * expected["mlp_ratio"]
    assert config.num_positions == 257


@pytest.mark.parametrize("name", CASES)
def test_preprocessing_is_the_references(name):
    data = golden_data.tensors(name)
    top, rows, left, columns = STRIDES[name]
    seen = pixels_of(data)[:, :, top::rows, left::columns]
    assert (seen - data["preprocessed_sub"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_references(name):
    data = golden_data.tensors(name)
    features = golden_encoder()(pixels_of(data))
    assert features.shape == (1, 257, 32)
    if "expected" in data:
        assert golden_data.relative_l2(features, data["expected"]) <= TOLERANCE
    else:
        assert golden_data.relative_l2(features[:, ::8], data["expected_sub"]) <= TOLERANCE


def test_squash_of_a_square_of_the_right_size_changes_nothing():
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(squash(image, 224), image)


def transformers_tower(layers=3):
    import transformers

    config = transformers.CLIPVisionConfig(
        **{**SMALL, "num_hidden_layers": layers},
        num_attention_heads=2,
        projection_dim=24,
        image_size=56,
        patch_size=14,
        hidden_act="gelu",
    )
    tower = transformers.CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in tower.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return tower


def published_names(tower):
    """Its tensors as files hold them: newer transformers keep shorter names in memory."""
    top = ("vision_model.", "visual_projection.")
    return {
        key if key.startswith(top) else f"vision_model.{key}": value
        for key, value in tower.state_dict().items()
    }


def test_transformers_layout_gives_transformers_numbers():
    """Features, last block and embedding, through split projections and the transposed head."""
    tower = transformers_tower()
    state = to_original_names(published_names(tower))
    encoder = CLIPVision(CLIPVisionConfig.from_state_dict(state, head_dim=16), device="meta")
    report = loading.load_weights(encoder, state)
    assert report.unexpected == []
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    theirs = tower(pixel_values=pixels, output_hidden_states=True)
    features = encoder(pixels)
    last, embedding = encoder.pool(features)
    assert golden_data.relative_l2(features, theirs.hidden_states[-2]) <= TOLERANCE
    assert golden_data.relative_l2(last, theirs.hidden_states[-1]) <= TOLERANCE
    assert golden_data.relative_l2(embedding, theirs.image_embeds) <= TOLERANCE


def test_one_layer_gives_the_embeddings():
    tower = transformers_tower(layers=1)
    state = to_original_names(published_names(tower))
    encoder = CLIPVision(CLIPVisionConfig.from_state_dict(state, head_dim=16), device="meta")
    loading.load_weights(encoder, state)
    pixels = torch.randn(1, 3, 56, 56)
    theirs = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[0]
    assert golden_data.relative_l2(encoder(pixels), theirs) <= TOLERANCE


def test_every_transformers_name_has_its_place():
    names = [n for n in published_names(transformers_tower()) if "position_ids" not in n]
    projections = [n for n in names if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj")]
    assert {n for n in names if hf_to_original(n) is None} == set(projections)
    assert hf_to_original("text_model.encoder.layers.0.mlp.fc1.weight") is None


def test_text_half_markers_and_missing_prefix():
    state = dict(golden_data.weights("weights_clip.safetensors"))
    whole = {**state, "textual.model.layer.0.weight": torch.zeros(1), "log_scale": torch.zeros(())}
    whole["model_type.x"] = torch.zeros(1)
    bare = {k.removeprefix("visual."): v for k, v in whole.items()}
    for variant in (whole, bare):
        renamed = to_original_names(variant)
        assert renamed.keys() == state.keys()
        assert all(torch.equal(renamed[k], state[k]) for k in state)


def refused(call):
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


def test_other_files_are_named():
    vae = golden_data.weights("weights_vae.safetensors")
    text = refused(lambda: CLIPVisionConfig.from_state_dict(to_original_names(vae)))
    assert "Wan 2.1 VAE" in text and "clip_vision_h" in text
    open_clip = {"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(1)}
    assert "Load CLIP Vision" in refused(lambda: to_original_names(open_clip))
    quantised = {"vision_model.encoder.layers.0.mlp.fc1.scale_weight": torch.zeros(1)}
    assert "scale_weight" in refused(lambda: to_original_names(quantised))


def test_sizes_that_do_not_fit_are_refused():
    state = dict(golden_data.weights("weights_clip.safetensors"))
    text = refused(lambda: CLIPVisionConfig.from_state_dict(state))
    assert "width is 32" in text and "nearest: 80" in text
    state["visual.pos_embedding"] = torch.zeros(1, 256, 32)
    text = refused(lambda: CLIPVisionConfig.from_state_dict(state, head_dim=16))
    assert "positions is 256" in text and "nearest: 226" in text
    text = refused(lambda: golden_encoder()(torch.zeros(1, 3, 112, 112)))
    assert "(1, 3, 112, 112)" in text and "224" in text


def test_a_missing_projection_is_an_error():
    state = published_names(transformers_tower())
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    state = to_original_names(state)
    encoder = CLIPVision(CLIPVisionConfig.from_state_dict(state, head_dim=16), device="meta")
    text = refused(lambda: loading.load_weights(encoder, state))
    assert "visual.transformer.1.attn.to_qkv.weight" in text


def picture():
    return golden_data.tensors("image_prep")["image"].float() / 255


def test_start_image_is_prepared_as_the_reference_does():
    data, p = golden_data.tensors("image_prep"), golden_data.case("image_prep")["parameters"]
    width, height = p["target_width"], p["target_height"]
    left, top, right, bottom = crop_box(52, 30, width, height)
    assert torch.equal(data["image"][top:bottom, left:right], data["cropped"])
    fitted = fit_image(picture(), width, height)
    expected = data["i2v_preprocessed"][0].movedim(0, -1)
    assert (fitted * 2 - 1 - expected).abs().max() <= 1e-6
    fitted = fit_image(picture(), width, height, filter_name="bicubic")
    assert torch.equal((fitted * 255).round().to(torch.uint8), data["df_resized"])


@pytest.mark.parametrize(
    ("source", "target"), [((52, 30), (48, 32)), ((30, 52), (48, 32)), ((4, 100), (64, 16))]
)
def test_crop_keeps_the_middle_and_the_proportions(source, target):
    left, top, right, bottom = crop_box(*source, *target)
    assert abs(left - (source[0] - right)) <= 1 and abs(top - (source[1] - bottom)) <= 1
    width, height = right - left, bottom - top
    assert width == source[0] or height == source[1]
    assert abs(width / height - target[0] / target[1]) < 0.05


def test_extreme_pictures_still_fit():
    for size in ((1, 500), (500, 1), (1, 1)):
        for fit in ("crop", "pad"):
            assert fit_image(torch.rand(*size, 3), 32, 16, fit).shape == (16, 32, 3)


def test_a_picture_of_the_right_size_is_not_touched():
    image = torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit_image(image, 32, 16), image)


def test_pad_shows_all_between_black_bars():
    image = torch.ones(10, 40, 3)
    fitted = fit_image(image, 32, 32, "pad")
    bright = (fitted > 0.5).all(dim=2)
    assert bright[12:20].all() and not bright[:12].any() and not bright[20:].any()


def test_unknown_fit_is_refused():
    text = refused(lambda: fit_image(picture(), 32, 32, "stretch"))
    assert "stretch" in text and "crop" in text and "pad" in text
