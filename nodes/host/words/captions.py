"""Films on IMAGE and VIDEO sockets, captioned: progress over all of it, cancel at each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import InputImpl
from torch import Tensor

from ....skyreels_model.rules import refusal
from ....skyreels_model.words import EngineFailedError, OnToken, UnansweredError
from ....skyreels_model.words.captioning import Caption, Settings, caption_spans
from ....skyreels_model.words.clips import Clip, FileClip, ImageClip, Tick
from ....skyreels_model.words.cuts import Span, divide, find_cuts, read_cuts
from ....skyreels_model.words.film import read_shots
from .. import notice
from .asking import listen

UNITS = 1000  # of the progress bar
LOOKING = 0.1  # share of the bar for reading the film and finding its cuts
EXPECTED = 600  # tokens of a shot's answers; longer ones make the bar wait


@dataclass(frozen=True)
class FilmInWords:
    """A film's shots and their captions, one for each.

    failure: where there are fewer, why the next one is not there.
    """

    clip: Clip
    spans: list[Span]
    captions: list[Caption]
    failure: UnansweredError | None = None


@dataclass(frozen=True)
class Shots:
    """How a film is divided into shots.

    fps: of images. cuts: typed seconds, empty where they are to be seen. shortest, longest: seconds
    of a shot, and of what is captioned as one; longest 0: any. known: the text of an earlier run.
    """

    fps: float
    cuts: str = ""
    shortest: float = 0.0
    longest: float = 0.0
    known: str = ""


class _Progress:
    """One bar for a node's whole work."""

    def __init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(UNITS)

    def set(self, share: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(int(share * UNITS))

    def looking(self, begin: float, end: float) -> Tick:
        """Hears of a part of the look at the film."""
        return lambda share: self.set(LOOKING * (begin + (end - begin) * share))

    def writing(self, shots: int) -> Callable[[int], OnToken]:
        """Makes what hears the tokens of a shot."""

        def start(number: int) -> OnToken:
            def step(count: int) -> None:
                done = (number + min(count / EXPECTED, 1)) / shots
                self.set(LOOKING + (1 - LOOKING) * done)

            return listen(step, f"shot {number + 1} of {shots}: " if shots > 1 else "")

        return start


def _open(images: Tensor | None, video: Any, fps: float, tick: Tick) -> Clip:
    """What is to be captioned. A VIDEO made of images is not encoded for it."""
    if (images is None) == (video is None):
        given = "missing" if video is None else "given together with images"
        raise refusal("video", given, "given where images are not: connect one of the two")
    if images is not None:
        return ImageClip(images, fps)
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        return ImageClip(parts.images, float(parts.frame_rate))
    # Older hosts cut no parts out of a file.
    start, duration = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
    return FileClip(video.get_stream_source(), start, duration, tick)


def caption_shot(
    images: Tensor | None, video: Any, settings: Settings
) -> Caption | UnansweredError:
    """The caption of images or a VIDEO that is one shot; an error that has words is returned."""
    progress = _Progress()
    clip = _open(images, video, 24.0, progress.looking(0, 1))
    film = _caption(clip, [Span(0, len(clip), True)], settings, progress)
    return film.failure or film.captions[0]


def caption_film(
    images: Tensor | None, video: Any, settings: Settings, shots: Shots
) -> FilmInWords:
    """The captions of a film's shots, as many as there are before an error.

    Without any, the error is raised.
    """
    progress = _Progress()
    clip = _open(images, video, shots.fps, progress.looking(0, 0.2))
    if shots.cuts.strip():
        found = read_cuts(shots.cuts, clip)
    else:
        found = find_cuts(clip, shots.shortest, progress.looking(0.2, 1))
    spans = divide(clip, found, shots.longest)
    return _caption(clip, spans, settings, progress, read_shots(shots.known, clip, spans))


def _caption(
    clip: Clip,
    spans: list[Span],
    settings: Settings,
    progress: _Progress,
    known: dict[Span, Caption] | None = None,
) -> FilmInWords:
    """The captions; what went wrong and was got over is said, and an unreadable answer logged."""
    captions: list[Caption] = []
    try:
        for one in caption_spans(clip, spans, settings, progress.writing(len(spans)), known):
            captions.append(one)
            for note in one.notes:
                notice.warn(f"shot {len(captions)}: {note}" if len(spans) > 1 else note)
    except UnansweredError as error:
        notice.LOG.warning("The model wrote: %s", error.raw)
        if not captions and not error.raw.strip():
            raise ValueError(str(error)) from error  # the page shows an error's type
        return FilmInWords(clip, spans, captions, error)
    except Exception as error:  # such as no memory left: what was made is not lost with it
        if not captions:
            raise
        notice.LOG.exception("a shot could not be captioned")
        place = f"shot {len(captions) + 1} of {len(spans)}: {type(error).__name__}: {error}"
        return FilmInWords(clip, spans, captions, EngineFailedError(place, ""))
    return FilmInWords(clip, spans, captions)
