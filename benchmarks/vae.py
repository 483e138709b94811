"""Our VAE against diffusers' AutoencoderKLWan and the reference's: equal weights, equal inputs.

python benchmarks/vae.py [--pairs 3] [--latents 5] [--size 128] [--reference PATH/TO/vae.py]

Published width, random weights, float32, one thread. Each time (processor seconds, which other
programs disturb least) is taken in a fresh process after a warm-up on a smaller picture; ours and
the rival run in turn, A B A B, and the ratio is taken pair by pair.
Memory is the peak of live tensors beyond the weights and the input: of that run, and at 832 x 480
in bfloat16 on PyTorch's meta device, which calculates nothing, for 13 and for 49 frames.
The reference's file comes from its repository (skyreels_v2_infer/modules/vae.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from devtools.live_bytes import LiveBytes  # noqa: E402
from skyreels_model.vae import VideoVAE  # noqa: E402
from skyreels_model.vae.names import vae_key_to_original  # noqa: E402

FULL_SIZE = (480, 832)
Code = Callable[[Tensor], Tensor]


def stream_decode(vae: VideoVAE) -> Code:
    """As our nodes do it: frames are written where they are to stay."""

    def decode(z: Tensor) -> Tensor:
        stream, position = vae.decode_stream(), 0
        frames = z.new_empty(1, 3, 4 * z.shape[2] - 3, 8 * z.shape[3], 8 * z.shape[4])
        for latent in z.split(1, dim=2):
            piece = stream.push(latent)
            frames[:, :, position : position + piece.shape[2]] = piece
            position += piece.shape[2]
        return frames

    return decode


def load_reference(path: str, dim: int = 96) -> nn.Module:
    spec = importlib.util.spec_from_file_location("reference_vae", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    temporal = [False, True, True]
    return module.WanVAE_(dim=dim, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=temporal)


def build(which: str, kind: str, device: str, dtype: torch.dtype) -> tuple[nn.Module, Code]:
    """The model of "ours", "diffusers" or a path of the reference, and its decode or encode."""
    torch.manual_seed(0)
    ours = VideoVAE(device=device, dtype=dtype).requires_grad_(False)
    if which == "ours":
        return ours, stream_decode(ours) if kind == "decode" else ours.encode
    with torch.device("meta"):
        if which == "diffusers":
            import diffusers

            model: nn.Module = diffusers.AutoencoderKLWan()
            names = {key: vae_key_to_original(key) for key in model.state_dict()}
        else:
            model = load_reference(which)
            names = {key: key for key in model.state_dict()}
    state = ours.state_dict()
    model.load_state_dict({key: state[name] for key, name in names.items()}, assign=True)
    model.eval().requires_grad_(False)
    if which != "diffusers":
        return model, lambda x: getattr(model, kind)(x, [0.0, 1.0])
    if kind == "decode":
        return model, lambda z: model.decode(z, return_dict=False)[0]
    return model, lambda x: model.encode(x).latent_dist.mean


def inputs(kind: str, latents: int, height: int, width: int, device: str) -> Tensor:
    if kind == "decode":
        shape: tuple[int, ...] = (1, 16, latents, height // 8, width // 8)
    else:
        shape = (1, 3, 4 * latents - 3, height, width)
    if device == "meta":
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.inference_mode()
def measure(which: str, kind: str, latents: int, size: int) -> dict[str, object]:
    """Seconds, then bytes in a second run, and 500 of the result's numbers."""
    torch.set_num_threads(1)
    model, code = build(which, kind, "cpu", torch.float32)
    code(inputs(kind, 2, 32, 32, "cpu"))
    x = inputs(kind, latents, size, size, "cpu")
    start = time.process_time()
    out = code(x)
    seconds = time.process_time() - start
    # diffusers clamps what it decodes.
    sample = (
        (out.clamp(-1, 1) if kind == "decode" else out)
        .flatten()[:: max(1, out.numel() // 500)]
        .tolist()
    )
    del out
    with LiveBytes() as memory:
        code(x)
    return {"seconds": seconds, "bytes": memory.peak, "sample": sample}


@torch.inference_mode()
def full_size_bytes(which: str, kind: str, latents: int) -> int:
    model, code = build(which, kind, "meta", torch.bfloat16)
    x = inputs(kind, latents, *FULL_SIZE, "meta")
    with LiveBytes() as memory:
        code(x)
    return memory.peak


def in_fresh_process(*arguments: object) -> dict[str, object]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference(a: dict[str, object], b: dict[str, object]) -> float:
    x, y = torch.tensor(a["sample"]), torch.tensor(b["sample"])
    return float((x - y).norm() / y.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--latents", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="px, a multiple of 8")
    parser.add_argument("--reference", help="the reference's vae.py")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        which, kind, latents, size = options.child
        print(json.dumps(measure(which, kind, int(latents), int(size))))
        return
    print("| rival | what | time, ours | time ratio | peak, ours | peak ratio | difference |")
    print("|---|---|---|---|---|---|---|")
    rivals = {"diffusers": "diffusers", "reference": options.reference}
    present = {name: which for name, which in rivals.items() if which}
    for name, rival in present.items():
        for kind in ("decode", "encode"):
            case = (kind, options.latents, options.size)
            pairs = [
                [in_fresh_process(which, *case) for which in ("ours", rival)]
                for _ in range(options.pairs)
            ]
            seconds = statistics.median(a["seconds"] for a, _ in pairs)
            times = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
            mine, theirs = (result["bytes"] for result in pairs[0])
            print(
                f"| {name} | {kind} | {seconds:.2f} s | {times:.2f} | {mine / 2**20:.0f} MiB "
                f"| {mine / theirs:.2f} | {max(difference(a, b) for a, b in pairs):.0e} |",
                flush=True,
            )
    print("\n| 832 x 480, bfloat16 | what | 13 frames | 49 frames |\n|---|---|---|---|")
    for name, which in {"ours": "ours", **present}.items():
        for kind in ("decode", "encode"):
            peaks = [full_size_bytes(which, kind, latents) / 2**30 for latents in (4, 13)]
            print(f"| {name} | {kind} | {peaks[0]:.2f} GiB | {peaks[1]:.2f} GiB |", flush=True)


if __name__ == "__main__":
    main()
