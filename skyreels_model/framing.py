"""A picture of any size to the size of a film, as the reference does it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FITS = ("crop", "pad")
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


def fit_image(
    image: Tensor, width: int, height: int, fit: str = "crop", filter_name: str = "lanczos"
) -> Tensor:
    """Bring a picture (H, W, 3) in 0..1 to (height, width, 3), its proportions kept.

    fit: "crop" cuts the middle out, as the reference; "pad" shows all of it between black bars.
    filter_name: "lanczos" is the reference's for I2V models, "bicubic" its for the first frames
    of DF models. Like there, a picture has 8 bits before and after resizing; one that has the size
    already is not touched.
    Raises ValueError for another fit or filter.
    Source: SkyworkAI/SkyReels-V2, `resizecrop`, then diffusers' VideoProcessor (Lanczos) or
    PIL's resize (bicubic).
    """
    if fit not in FITS or filter_name not in FILTERS:
        raise ValueError(
            f"fit is {fit!r} and filter_name {filter_name!r}; legal are {', '.join(FITS)} and "
            f"{', '.join(FILTERS)}"
        )
    if image.shape[:2] == (height, width):
        return image
    source = Image.fromarray((image * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    resample = FILTERS[filter_name]
    if fit == "crop":
        box = crop_box(source.width, source.height, width, height)
        out = source.crop(box).resize((width, height), resample)
    else:
        scale = min(width / source.width, height / source.height)
        size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
        out = Image.new("RGB", (width, height))
        corner = ((width - size[0]) // 2, (height - size[1]) // 2)
        out.paste(source.resize(size, resample), corner)
    return torch.from_numpy(np.array(out)).to(image.device).float() / 255


def crop_box(
    source_width: int, source_height: int, width: int, height: int
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the middle of a picture with the aspect of width x height.

    The reference gives PIL a box between pixels, which PIL rounds edge by edge (half to even).
    """
    if source_height * width > source_width * height:
        cut_width, cut_height = source_width, max(1, int(source_width * height / width))
    else:
        cut_width, cut_height = max(1, int(source_height * width / height)), source_height
    left, right = _middle(source_width, cut_width)
    top, bottom = _middle(source_height, cut_height)
    return left, top, right, bottom


def _middle(whole: int, part: int) -> tuple[int, int]:
    start = round((whole - part) / 2)
    return start, max(start + 1, round((whole + part) / 2))
