"""Our models with the golden data's weights in them."""

import torch

import golden_data
from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.vae import VideoVAE


def model_config(case: dict) -> ModelConfig:
    """The manifest's config; head widths are not 128 there, so it is never read from shapes."""
    c = case["config"]
    names = ("model_type", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    return ModelConfig(
        **{n: c[n] for n in names},
        text_dim=c["text_dim"],
        freq_dim=c["freq_dim"],
        fps_embedding=c["inject_sample_info"],
    )


def dit(case: dict) -> SkyReelsModel:
    files = case["weights_file"]
    state = dict(golden_data.weights(files if isinstance(files, str) else files[0]))
    if not case["config"]["inject_sample_info"]:
        state = {k: v for k, v in state.items() if not k.startswith("fps_")}
    for key, factor in (case["parameters"].get("weight_scale") or {}).items():
        state[key] = state[key] * factor
    model = SkyReelsModel(model_config(case), device="meta")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def vae() -> VideoVAE:
    model = VideoVAE(dim=4, device="meta")
    model.load_state_dict(golden_data.weights("weights_vae.safetensors"), assign=True)
    return model.eval().requires_grad_(False)


def small_vae() -> VideoVAE:
    """A VAE of random weights and as few layers as it can have, for tests that compare bits.

    What it encodes hardly depends on the picture, so that a tolerance would let anything pass.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoVAE(dim=2, num_res_blocks=0).eval().requires_grad_(False)
