"""What a film is given besides its prompt, counted: all that its plan has to know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """Counts of what a film is given; `FilmPlan.fit` finds the places.

    start: latents at its beginning; or video: frames of a film to extend. pictures: latents that
    are given as pictures; key_frames: frames that pictures are given for. end: a picture of the
    moment after the last frame. following: latents of a film to lead into; or following_frames:
    all its frames, of which the plan shows as many as it has room for. source: frames of a film to
    regenerate. 0: nothing of the kind.
    """

    start: int = 0
    video: int = 0
    pictures: tuple[int, ...] = ()
    key_frames: tuple[int, ...] = ()
    end: bool = False
    following: int = 0
    following_frames: int = 0
    source: int = 0

    def require_source(self, num_frames: int, denoise: float) -> None:
        """Raise ValueError where a source and a share of it to keep do not go together."""
        if not self.source and denoise < 1:
            raise ValueError(
                f"denoise is {denoise:g} and there is no source film to begin from; give one, or "
                f"set denoise to 1"
            )
        if self.source and denoise == 1:
            raise ValueError(
                "denoise is 1, which leaves nothing of the source film; set it below 1 (0.3 keeps "
                "most of it, 0.8 little), or give no source"
            )
        if self.source and self.source < num_frames:
            raise ValueError(
                f"source has {self.source} frames and the film {num_frames}; give a longer source, "
                f"or make a film of at most {self.source} frames"
            )

    def require_video(self, overlap: int) -> None:
        """Raise ValueError for a film to extend that is shorter than the overlap, in frames."""
        if self.video and self.video < overlap:
            raise ValueError(
                f"video has {self.video} frames; the film continues its last {overlap} (the "
                f"schedule's overlap): give at least that many, or an overlap of at most "
                f"{(self.video - 1) // 4 * 4 + 1}"
            )

    def require_following(self, needed: int) -> None:
        """Raise ValueError for a film to lead into that is shorter than what is shown of it."""
        if self.following_frames and self.following_frames < needed:
            raise ValueError(
                f"prepend_to has {self.following_frames} frames; the film leads into its first "
                f"{needed}: give at least that many (the schedule's overlap decides how many, at "
                f"least 5)"
            )


def too_near(one: int, other: int, fps: int) -> ValueError:
    """Two key frames that fall into one latent."""
    return ValueError(
        f"key_seconds are those of frames {one} and {other}, which fall into the same four; they "
        f"must be at least 4 frames ({4 / fps:.2f} s) apart, 6 at the film's end"
    )
