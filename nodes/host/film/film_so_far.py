"""The finished part of a film for the page, while the rest is made: small pictures, or videos."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ....skyreels_model.grid import TEMPORAL_STRIDE
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rollout.parts import share_of
from .. import notice

EVENT = "skyreels_v2.film"
LARGEST = 160  # pixels of a picture's longer side
MOST = 32  # pictures in a strip
AT_ONCE = 8  # latents that a sliding film's view has left
QUALITY = 80


class FilmSoFar:
    """Sends what is finished of a film to its node on the page: a picture for each latent.

    previewer: the host's, from latents (1, C, 1, h, w) on `device` to a picture, or None where a
    person wants no previews. extends: whether the film goes on from a clip.
    """

    def __init__(
        self, plan: FilmPlan, previewer: Any, device: torch.device, extends: bool = False
    ) -> None:
        self.plan, self.extends, self.device = plan, extends, device
        self.previewer = previewer if notice.has_page() else None
        self.windows = 0  # that were sent
        self.pieces = self.sent = 0  # of the window at work, and the latents in them
        notice.send(EVENT, {"begin": True, "windows": plan.num_windows, "frames": plan.num_frames})

    def update(self, film: Film) -> None:
        """Send what has been finished since."""
        if self.previewer is None:
            return
        for index in range(self.windows, film.window):
            # Of a sliding film the most has been sent while it was at work.
            self._send(film.finished[index][:, :, max(self.sent, self._given(index)) :], index)
            self.windows, self.pieces, self.sent = index + 1, 0, 0
        new = film.passed[self.pieces :]
        if sum(latents.shape[2] for latents in new) >= AT_ONCE:
            latents = torch.cat(new, dim=2)
            self._send(latents[:, :, max(self._given(film.window) - self.sent, 0) :], film.window)
            self.pieces, self.sent = len(film.passed), self.sent + latents.shape[2]

    def _given(self, index: int) -> int:
        """Latents at a window's beginning that are not the film's, or already in it."""
        return share_of(self.plan, self.plan.window_at(index), self.extends).given

    def _send(self, latents: Tensor, window: int) -> None:
        for begin in range(0, latents.shape[2], MOST):
            pictures = list(self._pictures(latents[:, :, begin : begin + MOST]))
            if not pictures:
                return
            notice.send(
                EVENT,
                {
                    "window": window,
                    "before": self.plan.backwards,
                    "count": len(pictures),
                    "seconds": TEMPORAL_STRIDE / self.plan.fps,
                    "strip": draw_strip(pictures),
                },
            )

    def _pictures(self, latents: Tensor) -> Iterator[Image.Image]:
        for latent in latents.split(1, dim=2):
            picture = self.previewer.decode_latent_to_preview(latent.to(self.device))
            # Other nodes put previewers of their own in the host's place, with other answers.
            if isinstance(picture, Image.Image):
                picture.thumbnail((LARGEST, LARGEST))
                yield picture

    def show_videos(self, paths: Sequence[Path]) -> None:
        """Say where videos of the finished part lie, in the order of the film."""
        output = Path(folder_paths.get_output_directory())
        found = [
            {"filename": path.name, "subfolder": path.parent.relative_to(output).as_posix()}
            for path in paths
            if path.is_relative_to(output)
        ]
        notice.send(EVENT, {"videos": found})


def draw_strip(pictures: Sequence[Image.Image]) -> str:
    """Pictures of one size beside one another, as the address of a JPEG."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * width, 0))
    content = BytesIO()
    strip.save(content, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
