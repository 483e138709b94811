"""ComfyUI's saving and merging nodes with our MODEL, through the prompt, as users run them."""

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from toy.toyset import transformer_path

pytestmark = pytest.mark.usefixtures("kept_loaders")


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="session")
def save(run_prompt, host):
    """`save(graph, link)`: the file that core's ModelSave writes of a MODEL."""
    import folder_paths

    def run(prompt, link, name):
        prompt["90"] = graphs.node("ModelSave", model=link, filename_prefix=f"saved/{name}")
        result = run_prompt(prompt)
        assert result.success, result.describe()
        from pathlib import Path

        (file,) = (Path(folder_paths.get_output_directory()) / "saved").glob(f"{name}_*")
        return file

    return run


def loader(name, weight_dtype="fp32"):
    return graphs.node(
        "SkyReelsV2ModelLoader",
        model_name=name,
        weight_dtype=weight_dtype,
        attention="pytorch",
        variant="auto",
    )


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp32"])
def test_saved_and_loaded_again(save, open_model, models_folder, weight_dtype):
    """The original's names and numbers; from the file the same model."""
    name = f"plain_{weight_dtype}"
    file = save({"1": loader(graphs.TOY["model"], weight_dtype)}, ["1", 0], name)
    saved = load_file(file)
    published = load_file(transformer_path())
    assert {k.removeprefix("model.diffusion_model.") for k in saved} == published.keys()
    for key, value in published.items():
        kept = saved[f"model.diffusion_model.{key}"].float()
        assert torch.allclose(kept, value.float(), rtol=2**-8, atol=0), key
    (models_folder / "diffusion_models" / f"{name}.safetensors").write_bytes(file.read_bytes())
    again, report = open_model(f"{name}.safetensors", weight_dtype)
    assert "0 missing, 0 unexpected" in report
    first, _ = open_model(graphs.TOY["model"], weight_dtype)
    one, two = first.model.diffusion_model.state_dict(), again.model.diffusion_model.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]) and value.dtype == two[key].dtype, key


def test_saved_with_a_lora_in_it(save, models_folder, plain):
    torch.manual_seed(1)
    down, up = torch.randn(4, 128) * 0.1, torch.randn(128, 4) * 0.1
    modulation = torch.randn(1, 6, 128) * 0.1
    save_file(
        {
            "transformer.blocks.0.attn1.to_q.lora_A.weight": down,
            "transformer.blocks.0.attn1.to_q.lora_B.weight": up,
            "blocks.1.diff_m": modulation,
        },
        models_folder / "loras" / "for_saving.safetensors",
    )
    prompt = {"1": loader(graphs.TOY["model"])}
    prompt["2"] = graphs.node(
        "SkyReelsV2LoraLoader", model=["1", 0], lora_name="for_saving.safetensors", strength=1.0
    )
    saved = load_file(save(prompt, ["2", 0], "with_lora"))
    expected = dict(plain)
    expected["blocks.0.self_attn.q.weight"] = plain["blocks.0.self_attn.q.weight"] + up @ down
    expected["blocks.1.modulation"] = plain["blocks.1.modulation"] + modulation
    for key, value in expected.items():
        assert torch.allclose(saved[f"model.diffusion_model.{key}"], value, atol=1e-5), key


def test_a_scaled_file_is_saved_scaled_and_loads_again(
    save, open_model, velocity, models_folder, plain
):
    stored = dict(plain)
    for key in [k for k, v in plain.items() if k.startswith("blocks.") and v.ndim == 2]:
        scale = plain[key].abs().max() / 448
        stored[key] = (plain[key] / scale).to(torch.float8_e4m3fn)
        stored[key.replace("weight", "scale_weight")] = scale
    stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    folder = models_folder / "diffusion_models"
    save_file(stored, folder / "to_save.safetensors")
    file = save({"1": loader("to_save.safetensors")}, ["1", 0], "scaled")
    saved = load_file(file)
    layer = "model.diffusion_model.blocks.0.ffn.0."
    assert saved[f"{layer}weight"].dtype == torch.float8_e4m3fn
    assert {f"{layer}weight_scale", f"{layer}comfy_quant"} <= saved.keys()
    (folder / "saved_scaled.safetensors").write_bytes(file.read_bytes())
    again, report = open_model("saved_scaled.safetensors")
    assert "scaled float8_e4m3fn" in report and "0 missing, 0 unexpected" in report
    first, _ = open_model("to_save.safetensors")
    assert relative(velocity(again), velocity(first)) < 1e-5


@pytest.fixture(scope="session")
def other(models_folder, plain):
    """A second model of the same sizes."""
    torch.manual_seed(9)
    state = {k: v + 0.05 * v.std() * torch.randn_like(v) for k, v in plain.items() if v.numel() > 1}
    save_file(state, models_folder / "diffusion_models" / "other.safetensors")
    return state


MERGES = {
    "ModelMergeSimple": ({"ratio": 0.25}, lambda a, b: 0.25 * a + 0.75 * b),
    "ModelMergeAdd": ({}, lambda a, b: a + b),
    "ModelMergeSubtract": ({"multiplier": 0.5}, lambda a, b: 0.5 * (a - b)),
}


@pytest.mark.parametrize("node", MERGES)
def test_merging(save, plain, other, node):
    """Modulations included, which lie beside child modules in core's own Wan."""
    inputs, merge = MERGES[node]
    prompt = {"1": loader(graphs.TOY["model"]), "2": loader("other.safetensors")}
    prompt["3"] = graphs.node(node, model1=["1", 0], model2=["2", 0], **inputs)
    saved = load_file(save(prompt, ["3", 0], node))
    for key, value in plain.items():
        expected = merge(value, other[key])
        kept = saved[f"model.diffusion_model.{key}"]
        assert torch.allclose(kept, expected, atol=1e-5, rtol=1e-5), key
