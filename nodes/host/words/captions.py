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
from ....skyreels_model.words import NoAnswerError
from ....skyreels_model.words.captioning import Caption, Settings, caption_spans
from ....skyreels_model.words.clips import Clip, FileClip, ImageClip, Tick
from ....skyreels_model.words.cuts import Span, divide, find_cuts, read_cuts
from ....skyreels_model.words.engine import OnToken
from .. import notice

UNITS = 1000  # of the progress bar
LOOKING = 0.1  # share of the bar for reading the film and finding its cuts
EXPECTED = 600  # tokens of a shot's answers; longer ones make the bar wait
SHOW_EVERY = 8  # tokens between two previews
SHOWN = 400  # characters


@dataclass(frozen=True)
class FilmInWords:
    """A film's shots and their captions, one for each."""

    clip: Clip
    spans: list[Span]
    captions: list[Caption]


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
            text, count = "", 0

            def on_token(piece: str) -> None:
                nonlocal text, count
                text, count = (text + piece)[-SHOWN:], count + 1
                done = (number + min(count / EXPECTED, 1)) / shots
                self.set(LOOKING + (1 - LOOKING) * done)
                if count % SHOW_EVERY == 0:
                    notice.show(f"shot {number + 1} of {shots}: {text}" if shots > 1 else text)

            return on_token

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


def caption_shot(images: Tensor | None, video: Any, settings: Settings) -> Caption:
    """The caption of images or a VIDEO that is one shot."""
    progress = _Progress()
    clip = _open(images, video, 24.0, progress.looking(0, 1))
    (found,) = _caption(clip, [Span(0, len(clip), True)], settings, progress)
    return found


def caption_film(
    images: Tensor | None,
    video: Any,
    settings: Settings,
    fps: float,
    cuts: str,
    shortest: float,
    longest: float,
) -> FilmInWords:
    """The captions of a film's shots, which end at `cuts`, typed seconds, or where it is seen to
    cut. shortest, longest: seconds of a shot, and of what is captioned as one; longest 0: any.
    """
    progress = _Progress()
    clip = _open(images, video, fps, progress.looking(0, 0.2))
    if cuts.strip():
        found = read_cuts(cuts, clip)
    else:
        found = find_cuts(clip, shortest, progress.looking(0.2, 1))
    spans = divide(clip, found, longest)
    return FilmInWords(clip, spans, _caption(clip, spans, settings, progress))


def _caption(
    clip: Clip, spans: list[Span], settings: Settings, progress: _Progress
) -> list[Caption]:
    """The captions; what went wrong and was got over is said, and an unreadable answer logged."""
    try:
        captions = caption_spans(clip, spans, settings, progress.writing(len(spans)))
    except NoAnswerError as error:
        notice.LOG.warning("The model wrote: %s", error.raw)
        raise
    for number, one in enumerate(captions, 1):
        for note in one.notes:
            notice.warn(f"shot {number}: {note}" if len(captions) > 1 else note)
    return captions
