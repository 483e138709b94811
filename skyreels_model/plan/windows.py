"""A window of a film, and a run of latents that are decoded as one."""

from __future__ import annotations

from dataclasses import dataclass

LEFT_FOR_LAST = 2  # latents


@dataclass(frozen=True)
class Window:
    """A stretch of latent frames that the model sees at once.

    start: its first latent in the film. length: its latents of the film, of which the first
    `prefix` are given, the first `repeated` of them by the window before (they hold the same
    moments of the film as that window's last ones). pictures: places in the window that are given
    as single pictures and regenerated at its end. end: latents that are shown after it: the picture
    of the moment after the film's last frame, or the beginning of what follows. skip: frames at
    its beginning that do not belong to the film.

    Of a film of 8 latents, the second of two windows of 5 with an overlap of 2 and an end picture:

        film's latents      0 1 2 3 4 5 6 7
        first window        0 1 2 3 4               start 0, length 5
        second window             3 4 5 6 7 e       start 3, length 5, prefix 2, repeated 2, end 1
    """

    index: int
    start: int
    length: int
    prefix: int = 0
    repeated: int = 0
    shot: int = 0
    pictures: tuple[int, ...] = ()
    end: int = 0
    skip: int = 0


@dataclass(frozen=True)
class Run:
    """Latents [start, start + latents) that are decoded as one, and the frames that they hold.

    The first latent holds one frame, each further one four. frame: its first frame in the film.
    A picture in a latent's place stands for the first of its frames:

        latent      0   1           2           3
        frames      0   1 2 3 4     5 6 7 8     9 10 11 12
        picture's   0   1           5           9
    """

    start: int
    frame: int
    latents: int
    frames: int
    skip: int = 0

    def latent_at(self, frame: int) -> int:
        """The latent whose picture stands nearest to a frame of the film."""
        latent = picture_latent(frame - self.frame + self.skip)
        return self.start + min(latent, self.latents - 1)


def picture_frame(latent: int) -> int:
    """The frame that a picture in the place of a latent stands for: the first of its four."""
    return max(4 * latent - 3, 0)


def picture_latent(frame: int) -> int:
    """The latent whose picture stands nearest to a frame; a tie goes to the later one."""
    return 0 if frame == 0 else (frame + 5) // 4
