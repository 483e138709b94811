"""How a window continues the one before: through frames, through latents, or through both."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .plan import FilmPlan
from .shots import latent_length
from .vae import VideoVAE, denormalize_latents, normalize_latents

# history(latents of the finished window (1, C, F, h, w), how many of them repeat the window before,
# tail) -> (latents given to the next window (1, C, O, h, w), new tail). The tail is what the
# history keeps of the film so far, for it may reach back further than one window's new frames.
Tail = tuple[Tensor, ...]
History = Callable[[Tensor, int, Tail], tuple[Tensor, Tail]]
# decode(latents, repeated) -> pieces (1, 3, n, H, W) of the frames of the latents behind those.
Decode = Callable[[Tensor, int], Iterator[Tensor]]
Encode = Callable[[Tensor], Tensor]


def new_history(plan: FilmPlan, vae: VideoVAE | None) -> History | None:
    """The plan's history; None where it needs a VAE and there is none."""
    if vae is None:
        return history_of(plan, None, None)

    def encode(frames: Tensor) -> Tensor:
        return normalize_latents(vae.encode(frames))

    def decode(latents: Tensor, repeated: int) -> Iterator[Tensor]:
        return new_frames(vae, latents, repeated)

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
        return pixel_lead(decode, encode, plan.following)
    made = pixel_history if plan.history == "pixels" else picture_history
    return made(decode, encode, plan.overlap)


def pixel_history(decode: Decode, encode: Encode, overlap: int) -> History:
    """Encode the film's last `overlap` frames again.

    So the prefix's first latent holds one frame, as the model was trained to see it, not four; but
    each seam costs a way through the VAE. Only the last frames of a window are kept.
    Source: SkyworkAI/SkyReels-V2, long-video path.
    """

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        frames = _last_frames(decode(latents, repeated), tail[0] if tail else None, overlap)
        return encode(frames), (frames,)

    return history


def latent_history(overlap: int) -> History:
    """Carry the film's last `overlap` latents as they are, without a VAE.

    The film is then one sequence of latents, decoded as one stream: nothing is lost at a seam. But
    the prefix's first latent holds four frames where the model was trained to see one.
    """

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        carried = torch.cat([*tail, latents[:, :, repeated:]], dim=2)[:, :, -overlap:]
        return carried, (carried.clone(),)

    return history


def picture_history(decode: Decode, encode: Encode, overlap: int) -> History:
    """Carry latents, the first of them replaced by a picture of the moment where it ends.

    So the prefix is what the model was trained to see, and all frames but one stay out of the VAE.
    """
    count = latent_length(overlap)

    def history(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        frames = _last_frames(decode(latents, repeated), tail[0] if tail else None, overlap)
        kept = [tail[1]] if tail else []
        carried = torch.cat([*kept, latents[:, :, repeated:]], dim=2)[:, :, -count:]
        picture = encode(frames[:, :, :1]).to(carried)
        return torch.cat([picture, carried[:, :, 1:]], dim=2), (frames, carried.clone())

    return history


def latent_lead(count: int) -> History:
    """Show the window before, which is made next, the `count` latents behind this one's first.

    The first holds one frame, with which the window before it ends; the others follow that frame in
    the rhythm in which they would follow it in one sequence.
    """

    def lead(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        return latents[:, :, 1 : 1 + count].clone(), ()

    return lead


def pixel_lead(decode: Decode, encode: Encode, count: int) -> History:
    """As `latent_lead`, of the frames of this window encoded again."""

    def lead(latents: Tensor, repeated: int, tail: Tail) -> tuple[Tensor, Tail]:
        frames = torch.cat(list(decode(latents[:, :, : count + 1], 0)), dim=2)
        return encode(frames)[:, :, 1:], ()

    return lead


def _last_frames(pieces: Iterator[Tensor], before: Tensor | None, count: int) -> Tensor:
    """The last `count` frames of what was before and the pieces, (1, 3, count, H, W)."""
    kept = [] if before is None else [before]
    for piece in pieces:
        # Cloned, or it would keep all that was decoded.
        kept = [torch.cat([*kept, piece], dim=2)[:, :, -count:].clone()]
    return kept[0]


def new_frames(vae: VideoVAE, latents: Tensor, repeated: int) -> Iterator[Tensor]:
    """Decode a window latent by latent, leaving out the frames of its first `repeated` latents.

    latents (1, C, F, h, w), normalised -> pieces (1, 3, n, H, W), clamped to [-1, 1].
    """
    stream = vae.decode_stream()
    for index, latent in enumerate(denormalize_latents(latents).split(1, dim=2)):
        frames = stream.push(latent)
        if index >= repeated:
            yield frames.clamp(-1, 1)
