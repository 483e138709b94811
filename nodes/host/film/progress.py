"""What a person sees while a film is made: one bar, previews, and a text on the node."""

from __future__ import annotations

import time

import comfy.model_patcher
import comfy.utils
import latent_preview

from ....skyreels_model.grid import frame_length
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.film import Film, RowDone
from .. import notice
from ..sockets.tea_cache import Tally
from .cache import describe_calls, judge_calls
from .film_so_far import FilmSoFar


class FilmProgress:
    """The bar, the previews and the text of one film, over all its windows."""

    def __init__(
        self, model: comfy.model_patcher.ModelPatcher, plan: FilmPlan, extends: bool = False
    ) -> None:
        self.plan, self.calls = plan, plan.total_rows()
        self.bar = comfy.utils.ProgressBar(self.calls)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.so_far = FilmSoFar(plan, self.previewer, model.load_device, extends)
        self.done, self.skipped, self.began = 0, 0, time.monotonic()
        # Model calls of this run, and of the windows before this one, which is the next to begin.
        self.made, self.before, self.window = 0, 0, 0
        self.frames = 0  # of finished windows
        self.film: Film | None = None
        self.warnings: list[str] = []
        self.published = Tally()

    def warn(self, text: str) -> None:
        """Say something that stays on the node while the film is made."""
        notice.warn(text)
        self.warnings.append(text)

    def begin_window(self, film: Film) -> None:
        """Count what is done already: windows, and rows of this one, may come from a disk."""
        for index in range(self.window, film.window):
            window = self.plan.window_at(index)
            self.before += self.plan.window_rows(window)
            self.frames += self.plan.frames_made(window)
        self.window, self.done = film.window, self.before + film.row
        self.film = film
        self.so_far.update(film)

    def finish_row(self, row: RowDone) -> None:
        """Move the bar by a model call, show its preview, and tell how far the film is."""
        self.done, self.made, self.skipped = self.done + 1, self.made + 1, row.skipped
        preview = self.previewer and self.previewer.decode_latent_to_preview_image(
            "JPEG", row.denoised
        )
        self.bar.update_absolute(self.done, self.calls, preview)
        if self.film is not None:
            self.so_far.update(self.film)
        seconds = (time.monotonic() - self.began) / self.made * (self.calls - self.done)
        line = (
            f"{self._describe_place(row)}, model call {self.done} of {self.calls}"
            f"{self._describe_skipped()}, {describe_time(seconds)} left. "
            f"{self._count_frames(row)} of {self.plan.num_frames} frames done"
        )
        notice.show("\n\n".join([line, *self.warnings]))

    def _describe_place(self, row: RowDone) -> str:
        """The shot, where there are several, and the window."""
        window = f"indow {row.window.index + 1} of {self.plan.num_windows}"
        shots = len(self.plan.shots)
        if shots < 2:
            return f"W{window}"
        shot = row.window.shot
        if self.plan.sliding:
            shot = self.plan.shot_at(row.window.start + row.frame)
        return f"Shot {shot + 1} of {shots}, w{window}"

    def _count_frames(self, row: RowDone) -> int:
        """Frames of finished windows, and what has left the noise of a sliding film."""
        return self.frames + (frame_length(row.frame) if self.plan.sliding else 0)

    def _describe_skipped(self) -> str:
        """The share that a cache has forecast, or skipped, so far."""
        if self.published.share:
            return f" ({self.published.share:.0%} skipped so far)"
        return f" ({self.skipped / self.done:.0%} forecast so far)" if self.skipped else ""

    def finish(self, film: Film, cached: bool) -> str:
        """What became of the film's model calls, shown and told; cached: by a model's cache."""
        self.so_far.update(film)
        published = self.published.describe()
        told = [published or describe_calls(self.calls, film.skipped)]
        advice = self.published.advise() or judge_calls(self.calls, film.skipped, cached)
        if advice:
            self.warn(advice)
            told.append(advice)
        notice.show("\n\n".join([told[0], *self.warnings]))
        return "\n".join(told)


def describe_time(seconds: float) -> str:
    """A time in the largest units that tell it: `2 h 5 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"
