"""What a person sees while a film is made: one bar, previews, and a text on the node."""

from __future__ import annotations

import time

import comfy.model_patcher
import latent_preview

from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.film import RowDone
from .. import notice


class FilmProgress:
    """The bar, the previews and the text of one film, over all its windows."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher, plan: FilmPlan) -> None:
        self.plan, self.calls = plan, plan.total_rows()
        self.preview = latent_preview.prepare_callback(model, self.calls)
        self.done, self.began = 0, time.monotonic()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Say something that stays on the node while the film is made."""
        notice.warn(text)
        self.warnings.append(text)

    def finish_row(self, row: RowDone) -> None:
        """Move the bar by a model call, show its preview, and tell how far the film is."""
        self.preview(self.done, row.denoised, row.denoised, self.calls)
        self.done += 1
        seconds = (time.monotonic() - self.began) / self.done * (self.calls - self.done)
        line = (
            f"Window {row.window.index + 1} of {self.plan.num_windows}, model call {self.done} of "
            f"{self.calls}, {describe_time(seconds)} left"
        )
        notice.show("\n\n".join([line, *self.warnings]))


def describe_time(seconds: float) -> str:
    """A time in the largest units that tell it: `2 h 5 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"
