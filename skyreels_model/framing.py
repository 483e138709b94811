"""A picture of any size to the size of a film, as the reference does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FITS = ("crop", "pad")
PIECE = 16  # images
SAME_LEVEL = 1e-3  # of 255: what a number of 8 bits may be off by in float32
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


class ClipFrames(Protocol):
    """A clip of a film's size, in memory or in a file: looked at in parts, so never all at once."""

    def __len__(self) -> int: ...

    def cut(self, start: int = 0, stop: int | None = None) -> Tensor: ...

    def pieces(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class FramedFilm:
    """Images (N, H, W, 3) of any size, brought to a film's size only where they are looked at.

    places: which of them are the film's frames, in order; None: each once.
    """

    images: Tensor
    width: int
    height: int
    fit: str = "crop"
    places: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.images if self.places is None else self.places)

    def cut(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The images [start, stop) in 0..1, (n, height, width, 3)."""
        if self.places is None:
            images = self.images[start:stop]
        else:
            images = self.images[list(self.places[start:stop])]
        if images.shape[1:3] == (self.height, self.width):
            return images.clamp(0, 1)
        return torch.stack(
            [fit_image(image, self.width, self.height, self.fit, "bicubic") for image in images]
        )

    def pieces(self) -> Iterator[Tensor]:
        """All images, a few at a time."""
        return (self.cut(start, start + PIECE) for start in range(0, len(self), PIECE))


def resample(
    count: int, rate: float | Fraction, fps: int, from_end: bool = False
) -> tuple[int, ...]:
    """Which of `count` frames, `rate` of them a second, are shown at `fps`: the nearest in time.

    from_end: counted from the last frame, which is then among them, else from the first.
    """
    step = Fraction(rate) / fps
    stop = int((count - 1) / step) + 1
    places = [int(number * step + Fraction(1, 2)) for number in range(stop)]
    return tuple(count - 1 - place for place in reversed(places)) if from_end else tuple(places)


def fit_image(
    image: Tensor, width: int, height: int, fit: str = "crop", filter_name: str = "lanczos"
) -> Tensor:
    """Bring an image (H, W, 3) to (height, width, 3), its proportions kept, clamped to 0..1.

    fit: "crop" cuts the middle out, as the reference; "pad" shows all of it between black bars.
    filter_name: "lanczos" is the reference's for I2V models, "bicubic" its for the first frames
    of DF models. An image of 8 bits has 8 bits between and after the passes of resizing, as there;
    one with finer numbers keeps them.
    Raises ValueError for another fit or filter.
    Source: SkyworkAI/SkyReels-V2, `resizecrop`, then diffusers' VideoProcessor (Lanczos) or
    PIL's resize (bicubic).
    """
    if fit not in FITS or filter_name not in FILTERS:
        raise ValueError(
            f"fit is {fit!r} and filter_name {filter_name!r}; legal are {', '.join(FITS)} and "
            f"{', '.join(FILTERS)}"
        )
    image = image.clamp(0, 1)
    if image.shape[:2] == (height, width):
        return image
    levels = image.float() * 255
    in_8_bits = bool((levels - levels.round()).abs().max() < SAME_LEVEL)
    sheets: Iterable[Tensor] = [levels.round().to(torch.uint8)] if in_8_bits else levels.unbind(-1)
    resized = [
        _resize(Image.fromarray(sheet.cpu().contiguous().numpy()), width, height, fit, filter_name)
        for sheet in sheets
    ]
    arrays = [torch.from_numpy(np.array(sheet)) for sheet in resized]
    out = arrays[0] if in_8_bits else torch.stack(arrays, dim=-1)
    return (out.to(image.device).float() / 255).clamp(0, 1)


def _resize(
    source: Image.Image, width: int, height: int, fit: str, filter_name: str
) -> Image.Image:
    """A picture of whatever mode, cropped or padded to a size."""
    resample = FILTERS[filter_name]
    if fit == "crop":
        box = crop_box(source.width, source.height, width, height)
        return source.crop(box).resize((width, height), resample)
    scale = min(width / source.width, height / source.height)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    out = Image.new(source.mode, (width, height))
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    out.paste(source.resize(size, resample), corner)
    return out


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
