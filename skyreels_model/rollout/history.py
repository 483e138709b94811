"""How a window continues the one before: through frames, through latents, or through both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..drift.colours import anchor_colours, pool_statistics, statistics
from ..grid import frame_length, latent_length
from ..plan.film_plan import FilmPlan
from ..vae.network import VideoVAE, normalize_latents
from .film import Tail
from .frames import decode_latents
from .parts import Decode, trim

# history(latents of the finished window (1, C, F, h, w), how many of them repeat the window before,
# tail) -> (latents given to the next window (1, C, O, h, w), new tail).
History = Callable[[Tensor, int, Tail], tuple[Tensor, Tail]]
Encode = Callable[[Tensor], Tensor]


def new_history(plan: FilmPlan, vae: VideoVAE | None) -> History | None:
    """The plan's history; None where it needs a VAE and there is none."""
    if vae is None:
        return history_of(plan, None, None)

    def encode(frames: Tensor) -> Tensor:
        return normalize_latents(vae.encode(frames.clamp(-1, 1)))

    def decode(latents: Tensor) -> Iterator[Tensor]:
        return decode_latents(vae, latents)

    return history_of(plan, decode, encode)


def history_of(plan: FilmPlan, decode: Decode | None, encode: Encode | None) -> History | None:
    """The plan's history by any VAE; None where it needs one and there is none."""
    if plan.backwards and plan.history != "pixels":
        return latent_lead(plan.following)
    if plan.history == "latents":
        return latent_history(latent_length(plan.overlap))
    if decode is None or encode is None:
        return None
    if plan.backwards:
        return pixel_lead(decode, encode, plan.following, plan.anchor)
    through = pixel_history if plan.history == "pixels" else picture_history
    return through(decode, encode, plan.overlap, plan.anchor)


def pixel_history(decode: Decode, encode: Encode, overlap: int, anchor: float = 0.0) -> History:
    """Encode the film's last `overlap` frames again.

    So the prefix's first latent holds one frame, as the model was trained to see it, not four; but
    each seam costs a way through the VAE. Only the last frames of a window are kept. `anchor`: how
    strongly, 0 to 1, the frames' colours are held to those of the sequence's first window on that
    way; of a small figure they tell more than its few latents.
    Source: SkyworkAI/SkyReels-V2, long-video path.
    """

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        tail = _extend_tail(tail, _own_frames(decode, latents, repeated), overlap, anchor)
        return encode(_anchor_frames(tail, anchor)), tail

    return history


def latent_history(overlap: int) -> History:
    """Carry the film's last `overlap` latents as they are, without a VAE.

    The film is then one sequence of latents, decoded as one stream: nothing is lost at a seam. But
    the prefix's first latent holds four frames where the model was trained to see one.
    """

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        carried = _last_latents(latents, repeated, tail, overlap)
        return carried, Tail(latents=carried.clone())

    return history


def picture_history(decode: Decode, encode: Encode, overlap: int, anchor: float = 0.0) -> History:
    """Carry latents, the first of them replaced by a picture of the moment where it ends.

    So the prefix is what the model was trained to see, and all frames but one stay out of the VAE.
    `anchor` as in `pixel_history`, for that one.
    """
    count = latent_length(overlap)

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        carried = _last_latents(latents, repeated, tail, count)
        tail = _extend_tail(tail, _own_frames(decode, latents, repeated), overlap, anchor)
        picture = encode(_anchor_frames(tail, anchor)[:, :, :1]).to(carried)
        tail = dataclasses.replace(tail, latents=carried.clone())
        return torch.cat([picture, carried[:, :, 1:]], dim=2), tail

    return history


def latent_lead(count: int) -> History:
    """Show the window before, which is made next, the `count` latents after this one's first.

    The first holds one frame, with which the window before it ends; the others follow that frame in
    the rhythm in which they would follow it in one sequence.
    """

    def lead(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        return latents[:, :, 1 : 1 + count].clone(), Tail()

    return lead


def pixel_lead(decode: Decode, encode: Encode, count: int, anchor: float = 0.0) -> History:
    """As `latent_lead`, of the frames of this window encoded again; `anchor` as in
    `pixel_history`."""

    def lead(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        if anchor and tail.colours is None:
            own = latents[:, :, :-count]  # without what is shown to the window made first
            tail = _extend_tail(tail, decode(own), 1, anchor)
        frames = torch.cat(list(decode(latents[:, :, : count + 1])), dim=2)
        tail = dataclasses.replace(tail, frames=frames)
        return encode(_anchor_frames(tail, anchor))[:, :, 1:], dataclasses.replace(
            tail, frames=None
        )

    return lead


def _last_latents(latents: Tensor, repeated: int, tail: Tail, count: int) -> Tensor:
    """The film's last `count` latents, (1, C, count, h, w)."""
    kept = [] if tail.latents is None else [tail.latents]
    return torch.cat([*kept, latents[:, :, repeated:]], dim=2)[:, :, -count:]


def _own_frames(decode: Decode, latents: Tensor, repeated: int) -> Iterator[Tensor]:
    """The frames that a window adds to the film, without those that it repeats."""
    return trim(decode(latents), frame_length(repeated))


def _extend_tail(tail: Tail, pieces: Iterator[Tensor], count: int, anchor: float) -> Tail:
    """The tail with the film's last `count` frames, and its first window's colours to hold to."""
    kept = [] if tail.frames is None else [tail.frames]
    seen = []
    for piece in pieces:
        kept.append(piece)
        while sum(frames.shape[2] for frames in kept[1:]) >= count:
            kept.pop(0)
        if anchor and tail.colours is None:
            seen.append((piece.shape[2], statistics(piece)))
    # Cloned, or it would keep all that was decoded.
    frames = torch.cat(kept, dim=2)[:, :, -count:].clone()
    return Tail(frames, tail.latents, pool_statistics(seen) if seen else tail.colours)


def _anchor_frames(tail: Tail, anchor: float) -> Tensor:
    """The tail's frames with their colours held to the first window's."""
    assert tail.frames is not None
    frames = tail.frames
    return frames if tail.colours is None else anchor_colours(frames, tail.colours, anchor)
