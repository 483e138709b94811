"""LoRAs on our MODEL: by ComfyUI's nodes and by ours, each against weights merged by hand."""

import graphs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from toy.toyset import transformer_path

FACTORS = ("lora_A.weight", "lora_B.weight")


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def with_lora(look):
    """`with_lora(model name, file, strength, core)` -> the patched MODEL and our node's report."""

    def run(model_name, file, strength=1.0, core=False, weight_dtype="fp32"):
        prompt = {
            "1": graphs.node(
                "SkyReelsV2ModelLoader",
                model_name=model_name,
                weight_dtype=weight_dtype,
                attention="pytorch",
                variant="auto",
            )
        }
        if core:
            prompt["2"] = graphs.node(
                "LoraLoaderModelOnly", model=["1", 0], lora_name=file, strength_model=strength
            )
            return look(prompt, model=["2", 0])[0], None
        prompt["2"] = graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name=file, strength=strength
        )
        return look(prompt, model=["2", 0], report=["2", 1])

    return run


@pytest.fixture(scope="session")
def changes(plain):
    """Low-rank changes of some layers, of two ranks: {layer: (down, up)}."""
    torch.manual_seed(5)
    made = {}
    for layer, rank in (("blocks.0.self_attn.q", 4), ("blocks.2.cross_attn.v", 4),
                        ("blocks.1.ffn.0", 8), ("head.head", 2)):  # fmt: skip
        rows, columns = plain[f"{layer}.weight"].shape
        made[layer] = torch.randn(rank, columns) * 0.1, torch.randn(rows, rank) * 0.1
    return made


def merged(plain, changes, strength=1.0):
    state = dict(plain)
    for layer, (down, up) in changes.items():
        state[f"{layer}.weight"] = plain[f"{layer}.weight"] + strength * (up @ down)
    return state


def named(changes, style):
    """A file in one trainer's key style."""
    from skyreels_model.model.names import transformer_key_to_diffusers

    state = {}
    for layer, (down, up) in changes.items():
        theirs = transformer_key_to_diffusers(f"{layer}.weight").removesuffix(".weight")
        flat, their_flat = layer.replace(".", "_"), theirs.replace(".", "_")
        base, parts = {
            "diffusion_model": (f"diffusion_model.{layer}", FACTORS),
            "kohya": (f"lora_unet_{flat}", ("lora_down.weight", "lora_up.weight")),
            "bare": (layer, FACTORS),
            "bare, down and up": (layer, ("lora_down.weight", "lora_up.weight")),
            "default adapter": (
                f"diffusion_model.{layer}",
                ("lora_A.default.weight", "lora_B.default.weight"),
            ),
            "transformer": (f"transformer.{layer}", FACTORS),
            "PEFT": (f"base_model.model.{layer}", FACTORS),
            "diffusers": (f"transformer.{theirs}", FACTORS),
            "lycoris": (f"lycoris_{flat}", ("lora_down.weight", "lora_up.weight")),
            "lycoris of diffusers": (
                f"lycoris_{their_flat}",
                ("lora_down.weight", "lora_up.weight"),
            ),
        }[style]
        state |= {f"{base}.{parts[0]}": down, f"{base}.{parts[1]}": up}
    return {key: value.contiguous() for key, value in state.items()}


CORE_KNOWS = ("diffusion_model", "kohya", "default adapter")
CORE_DROPS = (
    "bare", "bare, down and up", "transformer", "PEFT", "diffusers", "lycoris",
    "lycoris of diffusers",
)  # fmt: skip


@pytest.fixture(scope="session")
def by_hand(reference, plain, changes):
    """The velocity with the changes at 0.7 in the weights themselves, and without them."""
    return reference(merged(plain, changes, 0.7)), reference(plain)


@pytest.mark.parametrize("style", CORE_KNOWS)
def test_cores_node_with_our_model(with_lora, velocity, by_hand, models_folder, changes, style):
    save_file(named(changes, style), models_folder / "loras" / "core.safetensors")
    model, _ = with_lora(graphs.TOY["model"], "core.safetensors", 0.7, core=True)
    assert relative(velocity(model), by_hand[0]) < 1e-4


@pytest.mark.parametrize("style", CORE_KNOWS + CORE_DROPS)
def test_our_node_knows_every_style(with_lora, velocity, by_hand, models_folder, changes, style):
    save_file(named(changes, style), models_folder / "loras" / "style.safetensors")
    model, report = with_lora(graphs.TOY["model"], "style.safetensors", 0.7)
    mine = velocity(model)
    assert relative(mine, by_hand[0]) < 1e-4 < 1e-2 < relative(mine, by_hand[1])
    assert "T2V LoRA" in report and "ranks 2 to 8: 8 of 8 keys matched, 4 layers" in report


def test_a_distilled_lora_with_differences(
    with_lora, velocity, reference, models_folder, plain, changes
):
    state = named(changes, "diffusion_model")
    differences = {
        "blocks.0.self_attn.q.bias": "diffusion_model.blocks.0.self_attn.q.diff_b",
        "blocks.1.norm3.weight": "diffusion_model.blocks.1.norm3.diff",
        "blocks.1.norm3.bias": "diffusion_model.blocks.1.norm3.diff_b",
        "blocks.1.self_attn.norm_k.weight": "diffusion_model.blocks.1.self_attn.norm_k.diff",
        "blocks.0.modulation": "blocks.0.diff_m",
        "head.modulation": "diffusion_model.head.modulation.diff",
        "patch_embedding.weight": "diffusion_model.patch_embedding.diff",
        "time_projection.1.bias": "diffusion_model.time_projection.1.diff_b",
    }
    by_hand = merged(plain, changes)
    torch.manual_seed(6)
    for weight, key in differences.items():
        state[key] = torch.randn(plain[weight].shape) * 0.05
        by_hand[weight] = plain[weight] + state[key]
    save_file(state, models_folder / "loras" / "distilled.safetensors")
    model, report = with_lora(graphs.TOY["model"], "distilled.safetensors")
    assert relative(velocity(model), reference(by_hand)) < 1e-4
    assert "16 of 16 keys matched" in report


def test_strength_is_changed_without_loading_the_model_again(
    open_model, velocity, reference, models_folder, plain, changes, monkeypatch
):
    """The same modules, and no file but the LoRA's is read."""
    import sys

    save_file(named(changes, "bare"), models_folder / "loras" / "strength.safetensors")
    model, _ = open_model(graphs.TOY["model"])
    pack = next(name for name in sys.modules if name.endswith("nodes.host.sockets.lora"))
    apply_lora, checkpoint = sys.modules[pack].apply_lora, sys.modules[pack].checkpoint
    read, paths = checkpoint.read, []
    monkeypatch.setattr(checkpoint, "read", lambda path: paths.append(path.name) or read(path))
    for strength in (1.0, 0.5):
        patched, _ = apply_lora(model, models_folder / "loras" / "strength.safetensors", strength)
        assert patched.model is model.model
        expected = reference(merged(plain, changes, strength))
        paths.clear()
        assert relative(velocity(patched), expected) < 1e-4
        assert paths == []


def test_lora_on_a_quantised_model(with_lora, velocity, reference, models_folder, plain, changes):
    """Added to the numbers that the quantised ones stand for; the host rounds the sum anew."""
    stored, meant = dict(plain), dict(plain)
    for key in [k for k, v in plain.items() if k.startswith("blocks.") and v.ndim == 2]:
        scale = plain[key].abs().max() / 448
        stored[key] = (plain[key] / scale).to(torch.float8_e4m3fn)
        stored[key.replace("weight", "scale_weight")] = scale
        meant[key] = stored[key].float() * scale
    stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, models_folder / "diffusion_models" / "scaled_for_lora.safetensors")
    save_file(named(changes, "PEFT"), models_folder / "loras" / "on_scaled.safetensors")
    model, _ = with_lora("scaled_for_lora.safetensors", "on_scaled.safetensors")
    expected = reference(merged(meant, changes))
    assert relative(velocity(model), expected) < 0.05
    assert relative(reference(meant), expected) > 0.1


def test_an_image_lora_on_a_model_without_image_layers_is_pointed_out(
    with_lora, models_folder, changes
):
    state = named(changes, "transformer")
    state["transformer.blocks.0.attn2.add_k_proj.lora_A.weight"] = torch.ones(4, 128)
    state["transformer.blocks.0.attn2.add_k_proj.lora_B.weight"] = torch.ones(128, 4)
    save_file(state, models_folder / "loras" / "image.safetensors")
    _, report = with_lora(graphs.TOY["model"], "image.safetensors")
    assert report.startswith("I2V LoRA, ranks 2 to 8: 8 of 10 keys matched")
    assert "2 did not match: transformer.blocks.0.attn2.add_k_proj" in report
    assert "Caution: an I2V LoRA on a model without image layers" in report


WRONG = [
    ({"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 64),
      "blocks.0.self_attn.q.lora_B.weight": torch.ones(64, 4)}, "fits no layer of this model"),
    ({"single_blocks.0.x.lora_A.weight": torch.ones(4, 4)}, "belongs to a layer of this model"),
    ({"decoder.conv1.weight": torch.ones(4, 4)}, "not a LoRA: it looks like a Wan 2.1 VAE"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "says"), WRONG)
def test_files_that_are_refused(run_prompt, models_folder, state, says):
    save_file(state, models_folder / "loras" / "wrong.safetensors")
    prompt = graphs.film()
    prompt["20"] = graphs.node(
        "SkyReelsV2LoraLoader", model=["1", 0], lora_name="wrong.safetensors", strength=1.0
    )
    prompt["6"]["inputs"]["model"] = ["20", 0]
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    text = run_prompt(prompt).describe()
    assert says in text and "lora_name 'wrong.safetensors'" in text, text


def test_our_node_with_cores_model_says_what_the_host_would_drop(
    look, velocity, models_folder, plain, changes
):
    """The host accepts patches for the modulations of its own Wan, and never applies them."""
    state = {k: v for k, v in plain.items() if not k.startswith("fps_")}
    with safe_open(transformer_path(), framework="pt") as opened:
        sizes = opened.metadata()  # which core cannot read from this small model's tensors
    save_file(state, models_folder / "diffusion_models" / "for_core.safetensors", sizes)
    lora = named(changes, "bare") | {"blocks.0.diff_m": torch.ones(1, 6, 128)}
    save_file(lora, models_folder / "loras" / "for_core.safetensors")
    prompt = {
        "1": graphs.node("UNETLoader", unet_name="for_core.safetensors", weight_dtype="default"),
        "2": graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name="for_core.safetensors", strength=0.7
        ),
    }
    model, report = look(prompt, model=["2", 0], report=["2", 1])
    assert "8 of 9 keys matched" in report and "1 did not match: blocks.0.diff_m" in report
    assert relative(velocity(model), velocity(look(prompt, model=["1", 0])[0])) > 1e-2
