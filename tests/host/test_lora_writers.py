"""LoRAs written by PEFT, diffusers and LyCORIS, on our MODEL, against these libraries' forward."""

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

TARGETS = ["to_q", "to_v", "to_out.0", "net.2", "proj_out"]


@pytest.fixture
def theirs(models_folder):
    """diffusers' transformer with random weights, saved as a model for our loader, too."""
    torch.manual_seed(3)
    model = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=64, ffn_dim=320, num_layers=2
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(models_folder / "diffusion_models" / "base" / "transformer")
    return model.eval().requires_grad_(False)


@pytest.fixture
def compare(look, models_folder):
    """`compare(file, their model)`: our model with this LoRA makes what theirs makes."""

    def run(file, their_model):
        name = "base/transformer/diffusion_pytorch_model.safetensors"
        prompt = {
            "1": graphs.node(
                "SkyReelsV2ModelLoader",
                model_name=name,
                weight_dtype="fp32",
                attention="pytorch",
                variant="auto",
            ),
            "2": graphs.node("SkyReelsV2LoraLoader", model=["1", 0], lora_name=file, strength=1.0),
        }
        plain, model, report = look(prompt, plain=["1", 0], model=["2", 0], report=["2", 1])
        torch.manual_seed(4)
        x, t, context = torch.randn(1, 16, 3, 4, 4), torch.tensor([700]), torch.randn(1, 512, 64)
        import comfy.model_management

        outs = []
        with torch.inference_mode():
            expected = their_model(x, t, context, return_dict=False)[0]
            for patcher in (plain, model):
                comfy.model_management.load_models_gpu([patcher])
                outs.append(patcher.model.diffusion_model(x, t, context).clone())
        without, with_lora = (float((out - expected).norm() / expected.norm()) for out in outs)
        assert with_lora < 1e-4 < 1e-2 < without, (with_lora, without, report)
        return report

    return run


def randomise(model):
    """Adapters begin as no change; these are to be one."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
            torch.nn.init.normal_(parameter, std=0.1)


CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS),
    "of two ranks": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=TARGETS,
        rank_pattern={"to_v": 8},
        alpha_pattern={"to_v": 8},
    ),
    "rank-stabilised": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=TARGETS, use_rslora=True
    ),
    "DoRA": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, use_dora=True),
    "LoHa": lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=TARGETS),
    "LoKr": lambda: peft.LoKrConfig(r=4, alpha=8, target_modules=TARGETS),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft(theirs, compare, models_folder, kind):
    adapted = peft.get_peft_model(theirs, CONFIGS[kind]())
    randomise(adapted)
    folder = models_folder / "loras" / f"peft-{kind}"
    adapted.save_pretrained(folder)
    report = compare(f"{folder.name}/adapter_model.safetensors", adapted)
    count = len(load_file(folder / "adapter_model.safetensors"))
    assert f"{count} of {count} keys matched, 15 layers changed" in report


def test_diffusers(theirs, compare, models_folder):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    theirs.add_adapter(config)
    randomise(theirs)
    folder = models_folder / "loras" / "diffusers"
    diffusers.SkyReelsV2Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=peft.get_peft_model_state_dict(theirs),
        transformer_lora_adapter_metadata=config.to_dict() | {"target_modules": TARGETS},
    )
    report = compare("diffusers/pytorch_lora_weights.safetensors", theirs)
    assert "T2V LoRA" in report and "rank 4: " in report and "did not match" not in report


LYCORIS = {
    "lora": {"algo": "lora"},
    "lora with scalar": {"algo": "lora", "use_scalar": True},
    "lora and norms": {"algo": "lora", "train_norm": True},
    "DoRA by rows": {"algo": "lora", "dora_wd": True},
    "DoRA by columns": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "loha": {"algo": "loha"},
    "loha with DoRA": {"algo": "loha", "dora_wd": True},
    "lokr": {"algo": "lokr"},
    "lokr of 4 with DoRA": {"algo": "lokr", "factor": 4, "dora_wd": True},
    "lokr, full": {"algo": "lokr", "full_matrix": True, "factor": 8},
    "glora": {"algo": "glora"},
    "full": {"algo": "full"},
    "oft": {"algo": "diag-oft"},
    "oft, bounded": {"algo": "diag-oft", "constraint": 0.001},
    "butterfly": {"algo": "boft", "linear_dim": 8},
    "butterfly, bounded and rescaled": {
        "algo": "boft", "linear_dim": 8, "constraint": 0.001, "rescaled": True
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris(look, velocity, inputs, models_folder, plain, kind):
    """Against its forward: its `merge_to` counts the alphas of LoHa and LoKr twice."""
    lycoris = pytest.importorskip("lycoris")
    from skyreels_model.config import ModelConfig
    from skyreels_model.files import loading
    from skyreels_model.model import SkyReelsModel

    base = SkyReelsModel(ModelConfig.from_state_dict(plain), device="meta")
    loading.load_weights(base, plain)
    # ComfyUI reads not all that LyCORIS makes for kernels.
    lycoris.LycorisNetwork.apply_preset({"exclude_name": ["patch_embedding"]})
    made = lycoris.create_lycoris(base, **{"linear_dim": 4, "linear_alpha": 2, **LYCORIS[kind]})
    made.apply_to()
    torch.manual_seed(5)
    for name, parameter in made.named_parameters():
        change = torch.randn_like(parameter) * 0.2
        scales = "dora_scale" in name or "rescale" in name
        parameter.data = parameter.data * (1 + change) if scales else change
    save_file(made.state_dict(), models_folder / "loras" / "lycoris.safetensors")
    prompt = {
        "1": graphs.film()["1"],
        "2": graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name="lycoris.safetensors", strength=1.0
        ),
    }
    prompt["1"]["inputs"]["weight_dtype"] = "fp32"
    without, model, report = look(prompt, plain=["1", 0], model=["2", 0], report=["2", 1])
    with torch.inference_mode():
        expected = base(*inputs)
    assert f"{len(made.state_dict())} of {len(made.state_dict())} keys matched" in report
    errors = [float((velocity(m) - expected).norm() / expected.norm()) for m in (model, without)]
    assert errors[0] < 1e-5 < 1e-3 < errors[1], (errors, report)
