"""The plan of a film: its numbers, checked once, and the windows that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import (
    FlowSchedule,
    Staircase,
    TimestepMatrix,
    custom_schedule,
    partial_schedule,
    window_matrix,
)
from .shots import (
    TEMPORAL_STRIDE,
    Part,
    Shot,
    Window,
    frame_length,
    latent_length,
    lay_out,
)

SPATIAL_STRIDE = 8
SIZE_MULTIPLE = 16
MAX_PREFIX_NOISE = 60
# How a window learns of the one before: through decoded frames, through its latents as they are,
# or through its latents with a picture encoded anew in the place of the first.
HISTORIES = ("pixels", "latents", "picture+latents")


@dataclass(frozen=True)
class FilmPlan:
    """A film of `num_frames` frames, made in windows of `window` frames that overlap.

    `window` and `overlap` are in frames (4k + 1), `block_size` in latent frames. `ar_step` 0 is
    synchronous; above 0 each block starts that many rows after the one before. `prefix_noise` is
    the timestep (of 1000) to which a window's given first frames are noised in the model's eyes; 0
    shows them clean. `start`: how many latents are given at the film's start. `pictures`: latents
    of the film that are given as pictures; `end`: a picture is given for the moment behind the last
    frame. `shots` replaces `num_frames` by several lengths with borders between them. `sigmas`:
    noise levels, falling to 0, that replace `shift` and `steps`, which then is their number less 1.
    `sliding`: one sequence instead of windows, over which a view of `window` frames slides.
    `anchor`: how strongly (0 to 1) each window's colours are held to its sequence's first one's.
    `denoise`: below 1 a film is made from a source film, from that share of the way to noise on.
    Raises ValueError, with the nearest legal value, on anything the method cannot do.
    Source: SkyworkAI/SkyReels-V2, `pipelines/diffusion_forcing_pipeline.py`.
    """

    num_frames: int = 97
    width: int = 960
    height: int = 544
    window: int = 97
    overlap: int = 17
    steps: int = 30
    shift: float = 8.0
    ar_step: int = 0
    block_size: int = 1
    prefix_noise: int = 20
    fps: int = 24
    history: str = "pixels"
    start: int = 0
    pictures: tuple[int, ...] = ()
    end: bool = False
    shots: tuple[Shot, ...] = ()
    sigmas: tuple[float, ...] = ()
    sliding: bool = False
    anchor: float = 0.0
    denoise: float = 1.0

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"frames is {self.num_frames}; it must be at least 1")
        for name in ("window", "overlap"):
            _require_frame_count(name, getattr(self, name))
        for name in ("width", "height"):
            _require_multiple(name, getattr(self, name), SIZE_MULTIPLE)
        if self.overlap >= self.window:
            raise ValueError(
                f"overlap is {self.overlap} frames and window {self.window}; the overlap must be "
                f"shorter than the window: at most {frame_length(latent_length(self.window) - 1)}"
            )
        self._require_ranges()
        if self.shots and sum(shot.frames for shot in self.shots) != self.num_frames:
            raise ValueError(
                f"frames is {self.num_frames}; the shots have "
                f"{sum(shot.frames for shot in self.shots)} in sum, and it must be that"
            )
        if self.history not in HISTORIES:
            raise ValueError(f"history is {self.history!r}; legal are {', '.join(HISTORIES)}")
        # Frozen for the others; where sigmas are given, the number of steps follows from them.
        object.__setattr__(self, "steps", self.schedule().steps)
        self._require_sliding()
        self._require_given()

    def _require_ranges(self) -> None:
        for name in ("ar_step", "block_size", "fps"):
            least = 0 if name == "ar_step" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.prefix_noise <= MAX_PREFIX_NOISE:
            raise ValueError(
                f"prefix_noise is {self.prefix_noise}; it must be 0 to {MAX_PREFIX_NOISE} "
                f"(published: 20); nearest: {min(max(self.prefix_noise, 0), MAX_PREFIX_NOISE)}"
            )
        if not 0 < self.denoise <= 1:
            raise ValueError(
                f"denoise is {self.denoise:g}; it must be above 0 (the source film as it is) and "
                f"at most 1 (nothing of it); nearest: {1 if self.denoise > 1 else 0.05}"
            )
        if self.denoise < 1 and self.sigmas:
            raise ValueError(
                f"denoise is {self.denoise:g} and sigmas are given, which begin where they begin; "
                f"set denoise to 1, or leave the sigmas out"
            )
        if not 0 <= self.anchor <= 1:
            nearest = min(max(self.anchor, 0.0), 1.0)
            raise ValueError(f"anchor is {self.anchor:g}; it must be 0 to 1; nearest: {nearest:g}")

    def _require_sliding(self) -> None:
        """A staircase that slides must have left each block done behind it."""
        if not self.sliding:
            return
        base = latent_length(self.window) // self.block_size
        if base < 1:
            raise ValueError(
                f"block_size is {self.block_size} and window {self.window} frames, that is "
                f"{latent_length(self.window)} latent frames; a sliding film shows at least one "
                f"block: at most {latent_length(self.window)}"
            )
        least = -(-self.steps // base)
        if self.ar_step < least:
            raise ValueError(
                f"ar_step is {self.ar_step}; a sliding film of {self.steps} steps with {base} "
                f"blocks in its window needs at least {least}"
            )
        if self.pictures or self.end or len(self.shots) > 1:
            what = "several shots" if len(self.shots) > 1 else "key and end images"
            raise ValueError(
                f"sliding is on and the film has {what}; those are made in windows: turn sliding "
                f"off"
            )

    def _require_given(self) -> None:
        """What is given must leave something to make, and be inside the film."""
        first = self.window_at(0)
        if self.start >= first.length:
            raise ValueError(
                f"{frame_length(self.start)} frames are given at the start and the first window "
                f"has {frame_length(first.length)}; at least 4 must be left to make: give fewer, "
                f"or make the film or the window longer"
            )
        for latent in self.pictures:
            if not self.start <= latent < self.latent_frames or latent < 1:
                raise ValueError(
                    f"a key frame is at frame {picture_frame(latent)}; the film makes frames "
                    f"{picture_frame(max(self.start, 1))} to {self.num_frames - 1} (before that "
                    f"they are given)"
                )

    @property
    def parts(self) -> list[Part]:
        """Where the shots lie, of which there is always one."""
        return lay_out(self.shots or (Shot(self.num_frames),))

    @property
    def latent_frames(self) -> int:
        last = self.parts[-1]
        return last.begin + last.latents

    @property
    def sequences(self) -> list[tuple[int, int, int, int]]:
        """Of each sequence between cuts: its first latent and frame, its latents and frames."""
        found, frame = [], 0
        for part in self.parts:
            if part.fresh:
                latents = latent_length(part.sequence_frames)
                found.append((part.begin, frame, latents, part.sequence_frames))
                frame += part.sequence_frames
        return found

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def num_windows(self) -> int:
        return sum(count for _, count, _ in self._shots())

    def _shots(self) -> Iterator[tuple[Part, int, int]]:
        """Of each shot: where it lies, its windows, and the latents that its first repeats."""
        full, overlap = latent_length(self.window), latent_length(self.overlap)
        sequence = 0  # where the last cut is
        for part in self.parts:
            sequence = part.begin if part.fresh else sequence
            prefix = min(overlap, part.begin - sequence)
            behind = 0 if self.sliding else part.latents + prefix - full
            yield part, 1 + max(0, -(-behind // (full - overlap))), prefix

    def windows(self) -> Iterator[Window]:
        """The windows in order, made one by one: an endless film costs nothing up front."""
        return (self.window_at(i) for i in range(self.num_windows))

    def window_at(self, index: int) -> Window:
        """The window with this number; raises IndexError behind the last."""
        place = index
        for shot, (part, count, prefix) in enumerate(self._shots()):
            if place < count:
                return self._window(index, place, shot, part, prefix)
            place -= count
        raise IndexError(f"window {index} of {self.num_windows}")

    def _window(self, index: int, place: int, shot: int, part: Part, prefix: int) -> Window:
        """The window at a place of a shot whose first window repeats `prefix` latents."""
        full, overlap = latent_length(self.window), latent_length(self.overlap)
        start = part.begin - prefix + place * (full - overlap)
        end = part.begin + part.latents
        stop = end if self.sliding else min(start + full, end)
        repeated = overlap if place else prefix
        made = range(start + repeated, stop)
        return Window(
            index=index,
            start=start,
            length=stop - start,
            prefix=repeated if index else self.start,
            repeated=repeated,
            shot=shot,
            pictures=tuple(latent - start for latent in self.pictures if latent in made),
            end=int(self.end and stop == self.latent_frames),
        )

    def new_frames(self, window: Window) -> tuple[int, int]:
        """The frames [start, stop) of the film that a window adds to it."""
        first_latent, first_frame, length = 0, 0, 0
        for part in self.parts[: window.shot + 1]:
            if part.fresh:
                first_latent, first_frame = part.begin, first_frame + length
                length = part.sequence_frames
        begin, end = window.start + window.repeated, window.start + window.length
        ends = [min(frame_length(latent - first_latent), length) for latent in (begin, end)]
        return first_frame + ends[0], first_frame + ends[1]

    def schedule(self) -> FlowSchedule:
        if self.sigmas:
            return custom_schedule(self.sigmas)
        return partial_schedule(self.steps, self.shift, self.denoise)

    def matrix(self, window: Window) -> TimestepMatrix:
        """The timestep matrix of one window; all its frames are shown in every row."""
        return window_matrix(
            window.length,
            self.schedule().timesteps,
            self.ar_step,
            self.block_size,
            window.prefix,
            window.pictures,
            window.end,
        )

    def staircase(self) -> Staircase:
        """The rows of a sliding film."""
        return Staircase(
            frames=self.latent_frames,
            block_size=self.block_size,
            base=latent_length(self.window) // self.block_size,
            steps=self.steps,
            lag=min(self.ar_step, self.steps),
            given=self.start,
        )

    def prompt_weights(self, window: Window) -> Tensor | None:
        """The share of each latent's own prompt (F,) in a window that fades in from the one before.

        None where the window has no such frame.
        """
        ease = self.shots[window.shot].ease if self.shots else 0
        part = self.parts[window.shot]
        if part.fresh or not ease:
            return None
        shown = window.length + window.end
        behind = torch.arange(shown) + window.start - part.begin  # latents into the shot
        weights = ((behind + 0.5) * TEMPORAL_STRIDE / ease).clamp(0, 1)
        return None if bool((weights[window.repeated :] == 1).all()) else weights

    def latent_at(self, frame: int) -> int:
        """The latent of the film whose picture stands nearest to a frame.

        Raises ValueError for a frame outside the film.
        """
        if not 0 <= frame < self.num_frames:
            raise ValueError(
                f"a key frame is at frame {frame}; the film has frames 0 to {self.num_frames - 1}"
            )
        begun = 0
        for part in self.parts:
            if part.fresh and frame < begun + part.sequence_frames:
                last = latent_length(part.sequence_frames) - 1
                return part.begin + min(picture_latent(frame - begun), last)
            begun += part.sequence_frames if part.fresh else 0
        raise AssertionError("the sequences have all frames")

    def total_rows(self) -> int:
        """Model calls of the whole film (each is two forwards when guidance is on)."""
        if self.sliding:
            return self.staircase().rows
        if self.pictures:
            return sum(self.matrix(window).rows for window in self.windows())
        rows, number = 0, 0
        for _, count, _ in self._shots():
            # All windows between a shot's first and last are alike.
            between = count - 2
            looked = {0: 1, count - 1: 1} | ({1: between} if between > 0 else {})
            for place, times in looked.items():
                rows += times * self.matrix(self.window_at(number + place)).rows
            number += count
        return rows


def picture_frame(latent: int) -> int:
    """The frame that a picture in the place of a latent stands for: the first of its four."""
    return max(4 * latent - 3, 0)


def picture_latent(frame: int) -> int:
    """The latent whose picture stands nearest to a frame; a tie goes to the later one."""
    return 0 if frame == 0 else (frame + 5) // 4


def _require_frame_count(name: str, value: int) -> None:
    if value < 1 or (value - 1) % 4:
        nearest = max(round((value - 1) / 4), 0) * 4 + 1
        raise ValueError(
            f"{name} is {value}; it must be of the form 4k + 1 (1, 5, 9, …, 97); nearest: {nearest}"
        )


def _require_multiple(name: str, value: int, multiple: int) -> None:
    if value < multiple or value % multiple:
        nearest = max(round(value / multiple), 1) * multiple
        raise ValueError(
            f"{name} is {value}; it must be a multiple of {multiple}; nearest: {nearest}"
        )


def frames_of_seconds(seconds: float, fps: int) -> int:
    """The number of frames of a length in seconds, at least 1."""
    return max(round(seconds * fps), 1)


def describe(plan: FilmPlan) -> str:
    """The numbers of a plan in a few lines, for people."""
    last = plan.window_at(plan.num_windows - 1)
    mode = f"asynchronous, ar_step {plan.ar_step}" if plan.ar_step else "synchronous"
    rows = plan.total_rows()
    if plan.sliding:
        made = f"in one sequence, {latent_length(plan.window)} of them in view"
    elif plan.num_windows > 1:
        made = (
            f"in {plan.num_windows} windows of {latent_length(plan.window)} (the last "
            f"{last.length}), {latent_length(plan.overlap)} of them continued through "
            f"{plan.history}, at noise {plan.prefix_noise}"
        )
    else:
        made = "in 1 window"
    lines = [
        f"{plan.num_frames} frames = {plan.seconds:.2f} s at {plan.fps} fps, "
        f"{plan.width} x {plan.height}",
        f"{plan.latent_frames} latent frames {made}",
        f"{mode}, blocks of {plan.block_size}, {plan.steps} steps, "
        + ("sigmas as given" if plan.sigmas else f"shift {plan.shift:g}"),
        f"{rows} rows: {2 * rows} forwards with guidance, {rows} without",
    ]
    return "\n".join(lines)
