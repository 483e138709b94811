"""GGUF models in the host: numbers, memory, LoRAs, parts of a model, saving."""

import pytest
import torch
from graphs.quantised import write_gguf
from safetensors.torch import load_file, save_file

pytest.importorskip("gguf")


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="session")
def packed(open_model, models_folder, plain):
    """`packed(name)` -> our MODEL of a file in this format, its report, its numbers."""

    def run(name):
        file = f"SkyReels-V2-DF-14B-540P-{name}.gguf"
        meant = write_gguf(models_folder / "diffusion_models" / file, plain, name)
        return *open_model(file), meant

    return run


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q4_0"])
def test_numbers_and_memory(packed, velocity, reference, plain, name):
    model, report, meant = packed(name)
    mine = velocity(model)
    assert relative(mine, reference(meant)) < 1e-5 < 1e-3 < relative(mine, reference(plain))
    assert f"quantised 40 of {len(plain)} GGUF {name}" in report and ", 540P:" in report
    held = model.model.diffusion_model.blocks[0].ffn[0].weight
    assert held.dtype == torch.uint8 and held.nbytes < plain["blocks.0.ffn.0.weight"].nbytes / 3


@pytest.fixture
def lora(models_folder, plain):
    torch.manual_seed(7)
    state = {
        "blocks.0.self_attn.q.lora_A.weight": torch.randn(4, 128) * 0.2,
        "blocks.0.self_attn.q.lora_B.weight": torch.randn(128, 4) * 0.2,
        "blocks.1.ffn.2.diff_b": torch.randn(128) * 0.2,
        "blocks.2.diff_m": torch.randn(1, 6, 128) * 0.2,
    }
    save_file(state, models_folder / "loras" / "on_gguf.safetensors")
    return state


def merged(meant, lora, strength):
    a, b, bias, modulation = lora.values()
    return {
        **meant,
        "blocks.0.self_attn.q.weight": meant["blocks.0.self_attn.q.weight"] + strength * (b @ a),
        "blocks.1.ffn.2.bias": meant["blocks.1.ffn.2.bias"] + strength * bias,
        "blocks.2.modulation": meant["blocks.2.modulation"] + strength * modulation,
    }


def apply(model, models_folder, strength):
    import sys

    name = next(name for name in sys.modules if name.endswith("nodes.host.sockets.lora"))
    file = models_folder / "loras" / "on_gguf.safetensors"
    return sys.modules[name].apply_lora(model, file, strength)[0]


def test_lora_on_top_and_off_again(packed, velocity, reference, models_folder, lora):
    model, _, meant = packed("Q8_0")
    for strength in (1.0, 0.5):
        patched = apply(model, models_folder, strength)
        assert relative(velocity(patched), reference(merged(meant, lora, strength))) < 1e-4
        assert patched.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == torch.uint8
    assert relative(velocity(model), reference(meant)) < 1e-5


def test_a_part_of_the_model_and_then_less(packed, reference, velocity, models_folder, lora):
    model, _, meant = packed("Q8_0")
    expected, patched = reference(merged(meant, lora, 1.0)), apply(model, models_folder, 1.0)
    cpu = torch.device("cpu")
    x, t = torch.randn(1, 16, 3, 4, 4), torch.tensor([[20.0, 500.0, 999.0]])
    context, outs = torch.randn(1, 512, 64), []
    for memory in (0, 300_000):
        patched.patch_model(device_to=cpu, lowvram_model_memory=memory)
        assert patched.model.model_lowvram == bool(memory)
        with torch.inference_mode():
            outs.append(patched.model.diffusion_model(x, t, context))
            if not memory:
                patched.partially_unload(cpu, 400_000)
                outs.append(patched.model.diffusion_model(x, t, context))
        patched.unpatch_model(cpu)
    assert relative(outs[1], outs[0]) < 1e-5 and relative(outs[2], outs[0]) < 1e-5
    assert relative(velocity(patched), expected) < 1e-4


def test_saved_as_plain_numbers(packed, models_folder, lora, tmp_path):
    import comfy.sd

    model, _, meant = packed("Q8_0")
    patched = apply(model, models_folder, 1.0)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patched)
    saved = load_file(tmp_path / "saved.safetensors")
    saved = {k.removeprefix("model.diffusion_model."): v for k, v in saved.items()}
    expected = merged(meant, lora, 1.0)
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(saved[key].float(), value, atol=2e-3), key


def test_gguf_files_are_offered_and_others_are_not_shadowed(host, models_folder, packed):
    import sys

    packed("Q8_0")
    name = next(name for name in sys.modules if name.endswith("nodes.host.files"))
    files = sys.modules[name]
    assert "SkyReels-V2-DF-14B-540P-Q8_0.gguf" in files.list_files("diffusion_models")
    assert not [one for one in files.list_files("vae") if one.endswith(".gguf")]
    with pytest.raises(ValueError, match="not among ComfyUI's diffusion_models files"):
        files.find_file("diffusion_models", "../vae/x.gguf")


def test_merging_with_a_plain_model(packed, open_model, velocity, reference, models_folder, plain):
    """Either way round, by core's node: packed weights become numbers where they are needed."""
    import nodes

    torch.manual_seed(9)
    other = {k: v + 0.05 * torch.randn_like(v) * v.abs().mean() for k, v in plain.items()}
    save_file(other, models_folder / "diffusion_models" / "to_merge.safetensors")
    merge = nodes.NODE_CLASS_MAPPINGS["ModelMergeSimple"]().merge
    model, _, meant = packed("Q4_0")
    second, _ = open_model("to_merge.safetensors")
    expected = reference({k: 0.25 * v + 0.75 * other[k] for k, v in meant.items()})
    for first, then, ratio in ((model, second, 0.25), (second, model, 0.75)):
        assert relative(velocity(merge(first, then, ratio)[0]), expected) < 1e-4
