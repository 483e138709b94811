"""The plan of a film: its numbers, checked once, and the windows that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ..grid import SIZE_MULTIPLE, SPATIAL_STRIDE, TEMPORAL_STRIDE, frame_length, latent_length
from ..rules import (
    refusal,
    require_choice,
    require_flag,
    require_number,
    require_whole,
)
from ..schedule.flow import FlowSchedule, custom_schedule, partial_schedule
from ..schedule.matrix import TimestepMatrix, WindowRows, count_visible, window_rows
from ..schedule.staircase import Staircase
from .bounds import BOUNDS, least_sliding_ar_step
from .given import Given, too_near
from .layouts import Backwards, Forwards, KeptEnd, Layout, OneSequence
from .shots import Part, Shot, lay_out
from .windows import LEFT_FOR_LAST, Window, picture_frame

# How a window learns of the one before: through decoded frames, through its latents as they are,
# or through its latents with a picture encoded anew in the place of the first.
HISTORIES = ("pixels", "latents", "picture+latents")
# What becomes of frames that wait, after all others of an asynchronous window, until they begin.
IDLE_FRAMES = ("computed", "left_out")
# Whether frames that are given or done are computed in every model call, or seen by the keys and
# values that are kept of them: where the model computes, in RAM, and in 8 bits or as computed.
FINISHED_FRAMES = ("computed", "kept", "kept_fp8", "kept_in_ram", "kept_in_ram_fp8")
# Of frames that wait, how many the model is shown: measured in `benchmarks/RESULTS.md`.
SHOWN_AHEAD = 1


@dataclass(frozen=True)
class FilmPlan:
    """A film of `num_frames` frames, made in windows of `window` frames that overlap.

    `window` and `overlap` are in frames (4k + 1), `block_size` in latent frames. `ar_step` 0 is
    synchronous; above 0 each block starts that many rows after the one before. `prefix_noise` is
    the timestep (of 1000) to which a window's given first frames are noised in the model's eyes; 0
    shows them clean. `start`: how many latents are given at the film's start. `pictures`: latents
    of the film that are given as pictures; `end`: a picture is given for the moment after the last
    frame. `following`: latents of a film that this one leads up to. `shots` replaces `num_frames`
    by several lengths with borders between them. `sigmas`:
    noise levels, falling to 0, that replace `shift` and `steps`, which then is their number less 1.
    `sliding`: one sequence instead of windows, over which a view of `window` frames slides.
    `anchor`: how strongly (0 to 1) each window's colours are held to its sequence's first one's,
    in latents and in frames that are encoded again.
    `denoise`: below 1 a film is made from a source film, from that share of the way to noise on.
    `idle_frames`: left_out shows the model no frames that wait after all others, until they begin;
    a source film is always shown. `kept_end`: a window whose last latents, as many as the overlap,
    stand already: they are shown after the others, since what follows hangs on them.
    `finished_frames`: other than computed, frames at rest are computed again in the first of every
    `refresh_every` model calls only.
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
    following: int = 0
    idle_frames: str = IDLE_FRAMES[0]
    kept_end: int | None = None
    finished_frames: str = FINISHED_FRAMES[0]
    refresh_every: int = 5

    def __post_init__(self) -> None:
        self._require_ranges()
        self._require_shots()
        if self.denoise < 1 and self.sigmas:
            raise ValueError(
                f"denoise is {self.denoise:g} and sigmas are given, which begin where they begin; "
                f"set denoise to 1, or leave the sigmas out"
            )
        # Frozen for the others; where sigmas are given, the number of steps follows from them.
        object.__setattr__(self, "steps", self.schedule().steps)
        object.__setattr__(self, "pictures", tuple(sorted(self.pictures)))
        self._require_sliding()
        self._require_given()

    def _require_ranges(self) -> None:
        """Every number by itself, before anything is computed from it."""
        require_whole("frames", self.num_frames, *BOUNDS["frames"])
        for name in ("width", "height"):
            size = getattr(self, name)
            require_whole(
                name, size, *BOUNDS[name], SIZE_MULTIPLE, f"a multiple of {SIZE_MULTIPLE}"
            )
        require_whole(
            "window", self.window, *BOUNDS["window"], TEMPORAL_STRIDE, "of the form 4k + 1"
        )
        shorter = self.window - TEMPORAL_STRIDE
        form = "of the form 4k + 1 and shorter than the window"
        require_whole("overlap", self.overlap, 1, shorter, TEMPORAL_STRIDE, form)
        for name in ("ar_step", "block_size", "prefix_noise", "fps", "refresh_every"):
            require_whole(name, getattr(self, name), *BOUNDS[name])
        if not self.sigmas:
            require_whole("steps", self.steps, *BOUNDS["steps"])
        for name in ("shift", "anchor", "denoise"):
            require_number(name, getattr(self, name), *BOUNDS[name])
        for name in ("start", "following"):
            require_whole(name, getattr(self, name), 0, BOUNDS["frames"][1])
        require_flag("sliding", self.sliding)
        require_flag("end", self.end)
        require_choice("history", self.history, HISTORIES)
        require_choice("idle_frames", self.idle_frames, IDLE_FRAMES)
        require_choice("finished_frames", self.finished_frames, FINISHED_FRAMES)

    def _require_shots(self) -> None:
        frames = sum(shot.frames for shot in self.shots)
        if self.shots and frames != self.num_frames:
            raise refusal("frames", self.num_frames, "what the shots have in total", frames)

    def _require_sliding(self) -> None:
        """A staircase that slides must have each block done before it leaves the view."""
        if not self.sliding:
            return
        shown = latent_length(self.window)
        if self.block_size > shown:
            rule = (
                f"at most {shown} in a sliding film, whose window of {self.window} frames shows "
                f"that many latent frames"
            )
            raise refusal("block_size", self.block_size, rule, shown)
        least = least_sliding_ar_step(self.steps, self.window, self.block_size)
        if self.ar_step < least:
            rule = (
                f"at least {least} in a sliding film of {self.steps} steps with "
                f"{shown // self.block_size} blocks in its window"
            )
            raise refusal("ar_step", self.ar_step, rule, least)

    def _require_given(self) -> None:
        """What is given must leave something to make, and be inside the film."""
        if self.end and self.following:
            raise ValueError(
                "an end picture and a clip to lead into are both given; the film ends with one or "
                "the other"
            )
        if self.following > self.room_after(self.start):
            raise ValueError(
                f"{self.following} latents of a clip to lead into are given; beside {self.start} "
                f"first ones and an overlap of {self.overlap} frames, a window of {self.window} "
                f"has room for {self.room_after(self.start)}"
            )
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
                    f"they are given, frame 0 as the start image)"
                )

    def fit(self, given: Given) -> FilmPlan:
        """The plan with places for what is given; raises ValueError where there is none."""
        given.require_source(self.num_frames, self.denoise)
        given.require_video(self.overlap)
        start = latent_length(self.overlap) if given.video else given.start
        following = self.room_after(start) if given.following_frames else given.following
        plan = replace(self, start=start, end=given.end, following=following, pictures=())
        if following:
            given.require_following(plan.following_start + frame_length(following + 1))
        # Where the key images lie depends on all else that is given.
        pictures = *given.pictures, *plan.key_latents(given.key_frames)
        return replace(plan, pictures=pictures) if pictures else plan

    def key_latents(self, frames: Sequence[int]) -> dict[int, int]:
        """The frames of key images by the latents they stand in.

        Raises ValueError for a frame outside the film, and for two in one latent.
        """
        found: dict[int, int] = {}
        for frame in frames:
            latent = self.latent_at(frame)
            if latent in found:
                raise too_near(found[latent], frame, self.fps)
            found[latent] = frame
        return found

    @property
    def backwards(self) -> bool:
        """Whether the film is made from its end: it leads up to another and begins with nothing."""
        free = not self.start and len(self.shots) <= 1 and not self.sliding
        # A window makes at least one latent besides the one that reaches what follows.
        room = latent_length(self.window) - self.following >= 2
        return bool(self.following) and free and room

    def room_after(self, start: int) -> int:
        """How many latents of a film that follows the windows can show, at least 1.

        start: latents given at the film's start. At most those of `overlap` frames.
        """
        view = latent_length(self.window)
        if self.sliding:
            moving = -(-self.steps // max(self.ar_step, 1)) * self.block_size
            room = (view - moving) // 4  # the rest is for finished latents and those to come
        elif start or len(self.shots) > 1:
            room = view - max(start, latent_length(self.overlap)) - LEFT_FOR_LAST
        else:
            room = view - 2
        return max(min(room, latent_length(self.overlap) - 1), 1)

    @property
    def following_start(self) -> int:
        """The frame of the film that follows with which this one's last latent ends.

        0 to 3: so that any number of frames fits in between.
        """
        last = self.layout.run_at(self.num_frames - 1)
        return frame_length(last.latents) - last.skip - last.frames - 1

    @cached_property
    def layout(self) -> Layout:
        """Where the windows lie."""
        view, overlap = latent_length(self.window), self.overlap_latents
        if self.backwards:
            return Backwards(self.num_frames, view, self.following, self.pictures)
        way = OneSequence if self.sliding else Forwards
        end, leads_on = self.following or int(self.end), bool(self.following)
        whole = way(self.parts, view, overlap, self.start, self.pictures, end, leads_on)
        return whole if self.kept_end is None else KeptEnd(whole, self.kept_end, overlap)

    @property
    def overlap_latents(self) -> int:
        return latent_length(self.overlap)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Where the shots lie, of which there is always one."""
        return tuple(lay_out(self.shots or (Shot(self.num_frames),), bool(self.following)))

    @property
    def latent_frames(self) -> int:
        return self.layout.latents

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def num_windows(self) -> int:
        return self.layout.count

    def windows(self) -> Iterator[Window]:
        """The windows as they are made, one by one: an endless film costs nothing up front."""
        return (self.window_at(i) for i in range(self.num_windows))

    def window_at(self, index: int) -> Window:
        """The window with this number; raises IndexError after the last."""
        return self.layout.window_at(index)

    def new_frames(self, window: Window) -> tuple[int, int]:
        """The frames [start, stop) of the film that a window adds to it."""
        return self.layout.new_frames(window)

    def frames_made(self, window: Window) -> int:
        """How many frames a window adds to the film."""
        begin, stop = self.new_frames(window)
        return stop - begin

    def continues(self, window: Window) -> bool:
        """Whether a window extends, or leads into, the one that is made before it."""
        return bool(window.repeated) or (self.backwards and window.index > 0)

    def schedule(self) -> FlowSchedule:
        """The noise levels of a frame's way from noise to picture."""
        return self._schedule

    @cached_property
    def _schedule(self) -> FlowSchedule:
        if self.sigmas:
            return custom_schedule(self.sigmas)
        return partial_schedule(self.steps, self.shift, self.denoise)

    def matrix(self, window: Window) -> TimestepMatrix:
        """The timestep matrix of one window, all of it; `rows` makes it in parts."""
        rows = self.rows(window)
        return rows.part(0, rows.count)

    def rows(self, window: Window) -> WindowRows:
        """The rows of one window; all its frames are shown in every row."""
        return window_rows(
            window.length,
            self.schedule().timesteps,
            self.ar_step,
            self.block_size,
            window.prefix,
            window.pictures,
            window.end,
        )

    @cached_property
    def rows_alike(self) -> list[tuple[WindowRows, int]]:
        """Every kind of rows in the film, and how many windows have it."""
        alike: dict[tuple[object, ...], tuple[Window, int]] = {}
        for window, times in self.layout.groups():
            key = window.length, window.prefix, window.pictures, window.end
            alike[key] = window, times + alike.get(key, (window, 0))[1]
        return [(self.rows(window), times) for window, times in alike.values()]

    def staircase(self, window: Window) -> Staircase:
        """The rows of a sequence of a sliding film."""
        return Staircase(
            frames=window.length,
            block_size=self.block_size,
            base=latent_length(self.window) // self.block_size,
            steps=self.steps,
            lag=min(self.ar_step, self.steps),
            given=window.prefix,
            pictures=window.pictures,
            end=window.end,
            within=window.end if window.end > 1 else 0,
        )

    @property
    def leaves_out(self) -> bool:
        """Whether some model calls are shown less than their window or view."""
        return self.idle_frames == "left_out" and self.ar_step > 0 and self.denoise == 1

    def count_visible(self, index: Tensor) -> int:
        """How many frames of a row, in these steps (F,), the model is shown."""
        return count_visible(index, SHOWN_AHEAD) if self.leaves_out else len(index)

    def share_shown(self) -> float:
        """Of all frames in all model calls of windows, those that the model is shown."""
        hidden = whole = 0
        for rows, times in self.rows_alike:
            whole += times * rows.count * rows.shown
            hidden += times * rows.count_hidden(SHOWN_AHEAD) if self.leaves_out else 0
        return 1 - hidden / whole

    @property
    def keeps_frames(self) -> bool:
        """Whether frames at rest are left out of model calls, and what is known of them kept."""
        return self.finished_frames != FINISHED_FRAMES[0]

    def shown_latents(self, window: Window) -> int:
        """How many latent frames the model is shown at once in a window, at most."""
        return self.staircase(window).widest if self.sliding else window.length + window.end

    def shot_at(self, latent: int) -> int:
        """The shot that a latent of the film belongs to; what follows the film is its last's."""
        return max(shot for shot, part in enumerate(self.parts) if part.begin <= latent)

    def latent_at(self, frame: int) -> int:
        """The latent of the film whose picture stands nearest to a frame.

        Raises ValueError for a frame outside the film.
        """
        if not 0 <= frame < self.num_frames:
            raise ValueError(
                f"a key frame is at frame {frame}; the film has frames 0 to {self.num_frames - 1}"
            )
        return self.layout.run_at(frame).latent_at(frame)

    def total_rows(self) -> int:
        """Model calls of the whole film (each is two forwards when guidance is on)."""
        if self.sliding:
            return sum(n * self.window_rows(window) for window, n in self.layout.groups())
        return sum(times * rows.count for rows, times in self.rows_alike)

    def window_rows(self, window: Window) -> int:
        """Model calls of a window."""
        return self.staircase(window).rows if self.sliding else self.rows(window).count
