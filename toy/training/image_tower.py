"""The toy set's image encoder: CLIP's layout, fixed features.

A patch's feature is its mean colour and its place, in random directions; the one transformer layer
lies after what image-to-video models are shown (the last layer but one), so that it may be zero.
So the file is small although its features are as wide as the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig, preprocess

TOWER = CLIPVisionConfig(dim=1280, dim_mlp=16, num_heads=16, num_layers=1, out_dim=16)


def new_tower(seed: int) -> dict[str, Tensor]:
    """Weights under the original names; what is equal or zero is stored once, as a view."""
    generator = torch.Generator().manual_seed(seed)
    layout = CLIPVision(TOWER, device="meta").state_dict()
    patch = layout["visual.patch_embedding.weight"].shape  # (D, 3, 14, 14)
    colour = torch.randn(patch[0], patch[1], 1, 1, generator=generator) / (patch[2] * patch[3])
    drawn = {
        "visual.patch_embedding.weight": colour.half(),
        "visual.pos_embedding": torch.randn(
            layout["visual.pos_embedding"].shape, generator=generator
        ).half(),
    }
    tower = {}
    for name, tensor in layout.items():
        norm = "norm" in name and name.endswith("weight")
        value = drawn.get(name, torch.full((1,) * tensor.ndim, float(norm)).half())
        tower[name] = value.expand(tensor.shape)
    return tower


class Features:
    """The tower's features of pictures, for some of their tokens at a time.

    Equal to `CLIPVision` with these weights; a picture is kept as the mean colours of its patches.
    """

    def __init__(self, tower: dict[str, Tensor]) -> None:
        self.colour = tower["visual.patch_embedding.weight"][:, :, 0, 0].float()  # (D, 3)
        self.pixels = float(tower["visual.patch_embedding.weight"][0, 0].numel())
        self.place = tower["visual.pos_embedding"][0].float()  # (N, D)

    def colours(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, N - 1, 3)"""
        means = nn.functional.avg_pool2d(preprocess(pictures), TOWER.patch_size)
        return means.flatten(2).transpose(1, 2)

    def __call__(self, colours: Tensor, tokens: Tensor) -> Tensor:
        """Mean colours (B, N - 1, 3) and places (n,) -> (B, n, D)."""
        with_class = nn.functional.pad(colours, (0, 0, 1, 0))[:, tokens]
        embedded = with_class @ self.colour.T * self.pixels + self.place[tokens]
        return nn.functional.layer_norm(embedded, embedded.shape[-1:], eps=TOWER.eps)
