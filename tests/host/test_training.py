"""The host's Train LoRA node on our MODEL, with and without its bypass mode."""

import graphs
import pytest
import torch
from graphs.quantised import write_gguf


def training(model_name, bypass):
    film = graphs.film()
    film["1"]["inputs"].update(model_name=model_name, weight_dtype="fp32")
    prompt = {key: film[key] for key in "124"}
    prompt["10"] = graphs.node(
        "EmptyHunyuanLatentVideo", width=32, height=32, length=1, batch_size=1
    )
    prompt["11"] = graphs.node(
        "TrainLoraNode", model=["1", 0], latents=["10", 0], positive=["4", 0], batch_size=1,
        grad_accumulation_steps=1, steps=2, learning_rate=0.01, rank=2, optimizer="AdamW",
        loss_function="MSE", seed=0, training_dtype="fp32", lora_dtype="fp32",
        quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False,
        checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False,
        bypass_mode=bypass,
    )  # fmt: skip
    return prompt


@pytest.mark.parametrize("bypass", [False, True])
def test_a_lora_is_trained(look, bypass):
    lora, losses = look(training(graphs.TOY["model"], bypass), lora=["11", 0], losses=["11", 1])
    # The node draws one factor and begins the other, `lora_down`, with zeros.
    changed = {key for key, value in lora.items() if "lora_down" in key and value.any()}
    assert {key for key in changed if "self_attn.q" in key}
    # As on the host's own Wan: bypass is for products, and leaves alone what is none.
    assert any("modulation" in key for key in changed) != bypass
    assert torch.isfinite(torch.tensor(losses["loss"])).all()


@pytest.mark.parametrize("bypass", [False, True])
def test_packed_weights_are_refused_by_name(look, models_folder, plain, bypass):
    pytest.importorskip("gguf")
    write_gguf(models_folder / "diffusion_models" / "train.gguf", plain, "Q8_0")
    with pytest.raises(AssertionError, match="model is a GGUF one, .* for training it must be"):
        look(training("train.gguf", bypass), lora=["11", 0])
