"""LoRA files: every trainer's names for a layer, and what does not fit."""

import json

import pytest
import torch

from skyreels_model.config import ModelConfig
from skyreels_model.files.checkpoint import Checkpoint
from skyreels_model.lora import match_lora, peft_settings
from skyreels_model.lora.match import PeftSettings
from skyreels_model.lora.parts import change_of
from toy.random_weights import PUBLISHED, dit_shapes

SMALL = ModelConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32)
I2V = ModelConfig(
    model_type="i2v", in_dim=36, dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32
)


def layers(config=SMALL):
    shapes = dit_shapes(config)
    return {k.removesuffix(".weight"): s for k, s in shapes.items() if not k.endswith(".bias")}


def pair(rank=4, rows=128, columns=128):
    return torch.randn(rank, columns), torch.randn(rows, rank)


def match(tensors, config=SMALL, settings=None):
    return match_lora(Checkpoint(tensors, {}), layers(config), settings)


Q = "blocks.1.self_attn.q"
NAMES = [
    f"diffusion_model.{Q}",
    f"model.diffusion_model.{Q}",
    Q,
    f"transformer.{Q}",
    f"base_model.model.{Q}",
    f"base_model.model.transformer.{Q}",
    f"pipe.dit.{Q}",
    "transformer.blocks.1.attn1.to_q",
    "blocks.1.attn1.to_q",
    "base_model.model.blocks.1.attn1.to_q",
    "transformer.blocks.1.attn1.processor.to_q",
    "lora_unet_blocks_1_self_attn_q",
    "lora_unet__blocks_1_self_attn_q",
    "lora_transformer_blocks_1_attn1_to_q",
    "lycoris_blocks_1_self_attn_q",
    "lycoris_blocks_1_attn1_to_q",
    f"generator.{Q}",
    "lora_unet__orig_mod_blocks_1_self_attn_q",
]
PAIRS = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A", ".lora_B"),
    (".lora_A.my-adapter.weight", ".lora_B.my-adapter.weight"),
    (".lora_down.v1 (best).weight", ".lora_up.v1 (best).weight"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", PAIRS)
def test_names_of_a_layer(name, parts):
    down, up = pair()
    found = match({name + parts[0]: down, name + parts[1]: up, name + ".alpha": torch.tensor(2.0)})
    assert found.unmatched == found.misfits == [] and found.layers == 1 and found.ranks == (4, 4)
    assert set(found.tensors) >= {f"diffusion_model.{Q}.alpha"}
    values = [found.tensors[k] for k in found.tensors if "lora_" in k]
    assert values[0] is down and values[1] is up
    assert all(key.startswith(f"diffusion_model.{Q}.") for key in found.tensors)


def test_tensors_keep_the_order_of_the_file():
    """A set's order would be one whichever way the file is."""
    names = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "alpha")
    shapes = ((12, 2), (2, 16), (16, 2), (2, 10), ())
    parts = {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    for given in (parts, dict(reversed(parts.items()))):
        assert list(change_of("q", given, (192, 160)).tensors) == list(given)


def test_every_layer_by_diffusers_own_names():
    diffusers = pytest.importorskip("diffusers")
    from skyreels_model.model.names import transformer_key_to_original

    with torch.device("meta"):
        theirs = diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=1, attention_head_dim=128, text_dim=32, ffn_dim=96, num_layers=2,
            in_channels=36, image_dim=1280, added_kv_proj_dim=128,
        )  # fmt: skip
    linear = [n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)]
    state = {}
    shapes = layers(I2V)
    for name in linear:
        rows, *columns = shapes[transformer_key_to_original(f"{name}.weight")[: -len(".weight")]]
        state[f"transformer.{name}.lora_A.weight"] = torch.randn(2, *columns)
        state[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 2)
    found = match(state, I2V)
    assert found.layers == len(linear) > 20 and found.unmatched == [] and found.for_images
    on_t2v = match(state)
    assert on_t2v.layers < len(linear) and any("add_k_proj" in k for k in on_t2v.unmatched)


def test_distilled_layout_with_differences():
    """As the step-distilled LoRAs have it: pairs, biases, norms, modulation, patch embedding."""
    down, up = pair(8, 96)
    found = match(
        {
            "diffusion_model.blocks.0.ffn.0.lora_down.weight": down,
            "diffusion_model.blocks.0.ffn.0.lora_up.weight": up,
            "diffusion_model.blocks.0.ffn.0.diff_b": torch.randn(96),
            "diffusion_model.blocks.0.norm3.diff": torch.randn(128),
            "diffusion_model.blocks.0.norm3.diff_b": torch.randn(128),
            "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.randn(128),
            "blocks.1.diff_m": torch.randn(1, 6, 128),
            "diffusion_model.head.modulation.diff": torch.randn(1, 2, 128),
            "diffusion_model.patch_embedding.diff": torch.randn(128, 36, 1, 2, 2),
            "diffusion_model.time_projection.1.diff_b": torch.randn(768),
        }
    )
    assert "diffusion_model.blocks.1.modulation.diff" in found.tensors
    assert len(found.tensors) == 9 and found.layers == 6
    assert found.misfits == ["diffusion_model.patch_embedding.diff"]
    assert "9 of 10 keys matched, 6 layers changed; 1 do not fit here" in str(found)


def test_lycoris_and_dora():
    found = match(
        {
            "lycoris_blocks_0_ffn_0.lokr_w1": torch.randn(4, 4),
            "lycoris_blocks_0_ffn_0.lokr_w2_a": torch.randn(24, 2),
            "lycoris_blocks_0_ffn_0.lokr_w2_b": torch.randn(2, 32),
            "lycoris_blocks_0_ffn_2.hada_w1_a": torch.randn(128, 2),
            "lycoris_blocks_0_ffn_2.hada_w1_b": torch.randn(2, 96),
            "lycoris_blocks_0_ffn_2.hada_w2_a": torch.randn(128, 2),
            "lycoris_blocks_0_ffn_2.hada_w2_b": torch.randn(2, 96),
            "transformer.blocks.0.attn2.to_out.0.lora_A.weight": torch.randn(3, 128),
            "transformer.blocks.0.attn2.to_out.0.lora_B.weight": torch.randn(128, 3),
            "transformer.blocks.0.attn2.to_out.0.lora_magnitude_vector": torch.rand(128),
        }
    )
    assert found.unmatched == [] and found.misfits == [] and found.layers == 3
    assert found.tensors["diffusion_model.blocks.0.cross_attn.o.dora_scale"].shape == (128, 1)
    with pytest.raises(ValueError, match="fits no layer"):
        match(
            {
                "lycoris_blocks_0_ffn_0.lokr_w1": torch.randn(4, 4),
                "lycoris_blocks_0_ffn_0.lokr_w2": torch.randn(32, 32),
            }
        )


@pytest.mark.parametrize("parts", PAIRS)
def test_a_magnitude_belongs_to_a_pair(parts):
    down, up = pair()
    state = {Q + parts[0]: down, Q + parts[1]: up}
    found = match({**state, f"{Q}.lora_magnitude_vector": torch.ones(128)})
    assert found.decomposed == [Q] and found.matched == 3
    other = match({**state, "blocks.0.ffn.0.lora_magnitude_vector": torch.ones(96)})
    assert other.decomposed == [] and other.unmatched == ["blocks.0.ffn.0.lora_magnitude_vector"]
    with pytest.raises(ValueError, match="fits no layer"):
        match({**state, f"{Q}.lora_magnitude_vector": torch.ones(127)})


def test_one_weight_is_changed_in_one_way():
    down, up = pair()
    state = {
        f"{Q}.lora_A.weight": down,
        f"{Q}.lora_B.weight": up,
        f"{Q}.diff": torch.ones(128, 128),
    }
    found = match(state)
    assert found.unmatched == [f"{Q}.diff"] and found.matched == 2
    found = match({f"{Q}.diff": torch.ones(128, 128), f"{Q}.set_weight": torch.ones(3)})
    assert found.unmatched == [f"{Q}.set_weight"] and found.matched == 1


def test_rescaled_oft_does_not_fit_for_comfyui_would_leave_its_scales_out():
    down, up = pair()
    state = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up,
             "blocks.0.self_attn.q.oft_blocks": torch.randn(32, 4, 4),
             "blocks.0.self_attn.q.rescale": torch.randn(128, 1)}  # fmt: skip
    assert match(state).misfits == [*state][2:]


def test_an_input_of_36_channels_is_for_images():
    state = {"patch_embedding.lora_A.weight": torch.randn(2, 36, 1, 2, 2),
             "patch_embedding.lora_B.weight": torch.randn(128, 2, 1, 1, 1)}  # fmt: skip
    assert str(match(state, I2V)).startswith("I2V LoRA, rank 2: 2 of 2")


def test_kinds_ranks_and_foreign_keys_are_reported():
    first, second = pair(4), pair(32)
    state = {
        f"{Q}.lora_A.weight": first[0],
        f"{Q}.lora_B.weight": first[1],
        "blocks.0.cross_attn.k_img.lora_A.weight": second[0],
        "blocks.0.cross_attn.k_img.lora_B.weight": second[1],
    }
    text = str(match(state, I2V))
    assert text == "I2V LoRA, ranks 4 to 32: 4 of 4 keys matched, 2 layers changed"
    found = match({**state, "lora_te_text_model_x.lora_up.weight": first[1]})
    assert found.for_images and len(found.unmatched) == 3 and "lora_te" in str(found)
    del state["blocks.0.cross_attn.k_img.lora_A.weight"]
    del state["blocks.0.cross_attn.k_img.lora_B.weight"]
    assert str(match(state)).startswith("T2V LoRA (no image layers: it fits both kinds), rank 4:")


BROKEN = [
    ({f"{Q}.lora_A.weight": torch.ones(4, 128), f"{Q}.lora_B.weight": torch.ones(128, 8)},
     "rank 8 in lora_up.weight and 4 in lora_down.weight"),
    ({f"{Q}.lora_A.weight": torch.ones(4, 128)}, "lora_down.weight, but not lora_up.weight"),
    ({f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.ones(64, 4)},
     r"fits no layer of this model: .*lora_A.weight \(4, 64\).*\(128, 128\).*1\.3B"),
    ({f"{Q}.lora_A.weight": torch.ones(0, 128), f"{Q}.lora_B.weight": torch.ones(128, 0)},
     "no factors of a weight"),
    ({f"{Q}.lora_A.weight": torch.ones(4, 128), f"{Q}.lora_B.weight": torch.ones(128)},
     "no factors of a weight"),
    ({f"{Q}.lora_A.weight": torch.ones(4, 128), f"{Q}.lora_B.weight": torch.ones(128, 4),
      f"{Q}.alpha": torch.ones(2)}, "2 numbers as alpha"),
    ({f"{Q}.diff": torch.full((128, 128), torch.nan)}, "infinite or NaN"),
    ({f"{Q}.diff": torch.full((128, 128), 1e300, dtype=torch.float64)}, "too large for float32"),
    ({f"{Q}.diff": torch.ones(128, 128, dtype=torch.int8)}, "stored as int8"),
    ({f"{Q}.alpha": torch.ones(())}, "changes nothing: of .* it has only alpha"),
    ({f"{Q}.lora_magnitude_vector": torch.ones(128)}, "only lora_magnitude_vector"),
    ({f"{Q}.weight": torch.ones(128, 128)}, "not a LoRA: it looks like a diffusion transformer"),
    ({"single_blocks.0.x.lora_A.weight": torch.ones(4, 4)}, "none of its 1 keys belongs"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "says"), BROKEN)
def test_files_that_cannot_be_used(state, says):
    with pytest.raises(ValueError, match=says):
        match(state)


def test_a_second_key_for_the_same_place_is_told():
    one, two = pair(), pair()
    state = {f"{Q}.lora_A.one.weight": one[0], f"{Q}.lora_B.one.weight": one[1],
             f"{Q}.lora_A.two.weight": two[0], f"{Q}.lora_B.two.weight": two[1]}  # fmt: skip
    found = match(state)
    assert found.matched == 2 and found.unmatched == [*state][2:]
    assert torch.equal(found.tensors[f"diffusion_model.{Q}.lora_down.weight"], one[0])
    state = {f"{Q}.lora_A.weight": one[0], f"{Q}.lora_B.weight": one[1],
             f"{Q}.lora_down.weight": two[0], f"{Q}.lora_up.weight": two[1]}  # fmt: skip
    assert match(state).unmatched == [*state][2:]


def test_settings_beside_the_tensors(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    beside = tmp_path / "adapter_config.json"
    assert peft_settings(file, {}) is None
    beside.write_text(json.dumps({"lora_alpha": 16, "r": 4}))
    assert peft_settings(file, {}) == PeftSettings(16)
    assert peft_settings(tmp_path / "other.safetensors", {}) is None
    text = json.dumps({"transformer.lora_alpha": 8, "transformer.r": 16})
    assert peft_settings(file, {"lora_adapter_metadata": text}) == PeftSettings(8)
    beside.write_text(json.dumps({"alpha": 2, "alpha_pattern": {"self_attn.q": 32}}))
    settings = peft_settings(file, {})
    state = {}
    for layer in (Q, "blocks.0.ffn.0"):
        rows = 96 if "ffn" in layer else 128
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = pair(4, rows)
    found = match(state, settings=settings)
    assert found.tensors[f"diffusion_model.{Q}.alpha"] == 32
    assert found.tensors["diffusion_model.blocks.0.ffn.0.alpha"] == 2
    beside.write_text(json.dumps({"lora_alpha": 8, "use_rslora": True}))
    assert peft_settings(file, {}).alpha_of(Q, 16) == 32
    for text in ("{", "[]", '{"lora_alpha": "much"}', '{"lora_alpha": NaN}',
                 '{"lora_alpha": 1, "alpha_pattern": {"q": Infinity}}',
                 '{"lora_alpha": 1, "alpha_pattern": {"(": 1}}',
                 '{"lora_alpha": "\xe9"}'):  # fmt: skip
        beside.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="cannot be read"):
            peft_settings(file, {})


def test_published_sizes_on_the_meta_device():
    """A LoRA on every linear layer of 14B, with its published shapes; 1.3B refuses it."""
    wide, narrow = layers(PUBLISHED["DF-14B-720P"]), layers(PUBLISHED["DF-1.3B-540P"])
    state = {}
    for name, shape in wide.items():
        if name.startswith("blocks.") and len(shape) == 2:
            state[f"{name}.lora_down.weight"] = torch.empty(32, shape[1], device="meta")
            state[f"{name}.lora_up.weight"] = torch.empty(shape[0], 32, device="meta")
    found = match_lora(Checkpoint(state, {}), wide)
    assert found.layers == 400 and len(found.tensors) == 800
    with pytest.raises(ValueError, match="fits no layer"):
        match_lora(Checkpoint(state, {}), narrow)
