"""The plan of a film: its numbers, checked once, and the windows that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .schedule import FlowSchedule, TimestepMatrix, flow_schedule, timestep_matrix

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
SIZE_MULTIPLE = 16
MAX_PREFIX_NOISE = 60


def latent_length(frames: int) -> int:
    """Latent frames of 4k + 1 frames."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def frame_length(latents: int) -> int:
    """Frames of a sequence of latents: the first makes one, each further one four."""
    return (latents - 1) * TEMPORAL_STRIDE + 1


@dataclass(frozen=True)
class Window:
    """A stretch of latent frames that the model sees at once.

    start: its first latent in the film. length: latents, `prefix` of them given by the window
    before (they hold the same moments of the film as that window's last ones).
    """

    index: int
    start: int
    length: int
    prefix: int


@dataclass(frozen=True)
class FilmPlan:
    """A film of `num_frames` frames, made in windows of `window` frames that overlap.

    Lengths are in frames (4k + 1), `block_size` in latent frames. `ar_step` 0 is synchronous; above
    0 each block starts that many rows after the one before. `prefix_noise` is the timestep (of
    1000) to which a window's given frames are noised in the model's eyes; 0 shows them clean.
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

    def __post_init__(self) -> None:
        for name, value in self._lengths().items():
            _require_frame_count(name, value)
        for name in ("width", "height"):
            _require_multiple(name, getattr(self, name), SIZE_MULTIPLE)
        if self.overlap >= self.window:
            raise ValueError(
                f"overlap is {self.overlap} frames and window {self.window}; the overlap must be "
                f"shorter than the window: at most {self.window - TEMPORAL_STRIDE}"
            )
        if self.ar_step < 0:
            raise ValueError(f"ar_step is {self.ar_step}; it must be 0 (synchronous) or more")
        if not 0 <= self.prefix_noise <= MAX_PREFIX_NOISE:
            raise ValueError(
                f"prefix_noise is {self.prefix_noise}; it must be 0 to {MAX_PREFIX_NOISE} "
                f"(published: 20); nearest: {min(max(self.prefix_noise, 0), MAX_PREFIX_NOISE)}"
            )
        if self.fps < 1:
            raise ValueError(f"fps is {self.fps}; it must be at least 1 (trained: 16 and 24)")
        self._require_blocks()
        flow_schedule(self.steps, self.shift)

    def _require_blocks(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; it must be at least 1")
        for name, value in self._lengths().items():
            if name != "frames" and self.num_windows == 1:
                continue  # a film of one window neither fills it nor overlaps
            latents = latent_length(value)
            if latents % self.block_size:
                nearest = max(round(latents / self.block_size), 1) * self.block_size
                raise ValueError(
                    f"{name} is {value}, that is {latents} latent frames, which "
                    f"block_size {self.block_size} does not divide; nearest: "
                    f"{frame_length(nearest)} frames ({nearest} latent frames)"
                )

    def _lengths(self) -> dict[str, int]:
        """Lengths in frames by the names under which people give them."""
        return {"frames": self.num_frames, "window": self.window, "overlap": self.overlap}

    @property
    def latent_frames(self) -> int:
        return latent_length(self.num_frames)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def num_windows(self) -> int:
        new = latent_length(self.window) - latent_length(self.overlap)
        return 1 + max(0, -(-(self.latent_frames - latent_length(self.window)) // new))

    def windows(self) -> Iterator[Window]:
        """The windows in order, made one by one: an endless film costs nothing up front."""
        return (self.window_at(i) for i in range(self.num_windows))

    def window_at(self, index: int) -> Window:
        full, prefix = latent_length(self.window), latent_length(self.overlap)
        start = index * (full - prefix)
        length = min(full, self.latent_frames - start)
        return Window(index, start, length, prefix if index else 0)

    def schedule(self) -> FlowSchedule:
        return flow_schedule(self.steps, self.shift)

    def matrix(self, window: Window) -> TimestepMatrix:
        """The timestep matrix of one window; all its frames are shown in every row."""
        return timestep_matrix(
            window.length,
            self.schedule().timesteps,
            window.length,
            self.ar_step,
            window.prefix,
            self.block_size,
        )

    def total_rows(self) -> int:
        """Model calls of the whole film (each is two forwards when guidance is on)."""
        first, last = self.window_at(0), self.window_at(self.num_windows - 1)
        rows = self.matrix(first).rows
        if self.num_windows > 1:
            rows += self.matrix(last).rows
        if self.num_windows > 2:
            rows += (self.num_windows - 2) * self.matrix(self.window_at(1)).rows
        return rows


def _require_frame_count(name: str, value: int) -> None:
    if value < 1 or (value - 1) % TEMPORAL_STRIDE:
        nearest = max(round((value - 1) / TEMPORAL_STRIDE), 0) * TEMPORAL_STRIDE + 1
        raise ValueError(
            f"{name} is {value}; it must be of the form 4k + 1 (1, 5, 9, …, 97); nearest: {nearest}"
        )


def _require_multiple(name: str, value: int, multiple: int) -> None:
    if value < multiple or value % multiple:
        nearest = max(round(value / multiple), 1) * multiple
        raise ValueError(
            f"{name} is {value}; it must be a multiple of {multiple}; nearest: {nearest}"
        )


def frames_of_seconds(seconds: float, fps: int, block_size: int = 1) -> int:
    """The legal number of frames nearest to a length in seconds: 4k + 1, in whole blocks."""
    latents = (seconds * fps - 1) / TEMPORAL_STRIDE + 1
    return frame_length(max(round(latents / block_size), 1) * block_size)


def describe(plan: FilmPlan) -> str:
    """The numbers of a plan in a few lines, for people."""
    last = plan.window_at(plan.num_windows - 1)
    mode = f"asynchronous, ar_step {plan.ar_step}" if plan.ar_step else "synchronous"
    rows = plan.total_rows()
    lines = [
        f"{plan.num_frames} frames = {plan.seconds:.2f} s at {plan.fps} fps, "
        f"{plan.width} x {plan.height}",
        f"{plan.latent_frames} latent frames in {plan.num_windows} "
        f"{'window' if plan.num_windows == 1 else 'windows'}"
        + (
            f" of {latent_length(plan.window)} (the last {last.length}), "
            f"{latent_length(plan.overlap)} of them continued, at noise {plan.prefix_noise}"
            if plan.num_windows > 1
            else ""
        ),
        f"{mode}, blocks of {plan.block_size}, {plan.steps} steps, shift {plan.shift:g}",
        f"{rows} rows: {2 * rows} forwards with guidance, {rows} without",
    ]
    return "\n".join(lines)
