"""Tiny image encoders, in the layouts of the world."""

import torch

from skyreels_model.image_encoder import CLIPVision

TOWER = {"dim": 1280, "dim_mlp": 64, "num_heads": 16, "num_layers": 2, "out_dim": 8}
# The same sizes for core's own encoder.
CORE_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "projection_dim": 8,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}


def random_state(config):
    """An encoder's tensors under their original names, of sizes at which every layer is felt."""
    generator = torch.Generator().manual_seed(0)
    state = CLIPVision(config, device="meta").state_dict()
    return {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in state.items()}


def hf_names(state):
    """The published HF layout of an original state, written out from its documentation."""
    out = {
        "vision_model.embeddings.class_embedding": state["visual.cls_embedding"][0, 0],
        "vision_model.embeddings.patch_embedding.weight": state["visual.patch_embedding.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.pos_embedding"][0],
        "visual_projection.weight": state["visual.head"].T,
    }
    for leaf in ("weight", "bias"):
        out[f"vision_model.pre_layrnorm.{leaf}"] = state[f"visual.pre_norm.{leaf}"]
        out[f"vision_model.post_layernorm.{leaf}"] = state[f"visual.post_norm.{leaf}"]
        for i in range(TOWER["num_layers"]):
            ours, theirs = f"visual.transformer.{i}", f"vision_model.encoder.layers.{i}"
            names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.0": "mlp.fc1"}
            names |= {"mlp.2": "mlp.fc2", "attn.proj": "self_attn.out_proj"}
            for old, new in names.items():
                out[f"{theirs}.{new}.{leaf}"] = state[f"{ours}.{old}.{leaf}"]
            joined = state[f"{ours}.attn.to_qkv.{leaf}"].chunk(3)
            for letter, part in zip("qkv", joined, strict=True):
                out[f"{theirs}.self_attn.{letter}_proj.{leaf}"] = part
    return {k: v.clone().contiguous() for k, v in out.items()}
