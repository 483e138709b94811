"""A whole model on this processor: load, one forward of a small size, peak of memory.

    python benchmarks/full_size.py [--model DF-1.3B-540P] [--dtype bf16] [--folder FOLDER] [--alone]
                                   [--comfyui COMFYUI]

A file of random weights in the published layout is written to FOLDER (a temporary one by default),
and, but for --alone, the same weights in diffusers' layout beside it. Ours and diffusers'
transformer load them, each in a fresh process and from the disk, not from the system's cache, and
run one forward; "read" only reads the file, from its beginning to its end. With --comfyui the
pack's loader in that ComfyUI does it, too. Linux only. "Mapped" are pages of the file, which the
system takes back when it needs them; "own" are not.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.files import checkpoint, loading  # noqa: E402
from skyreels_model.model import SkyReelsModel, names  # noqa: E402
from skyreels_model.model.names import transformer_key_to_original  # noqa: E402
from toy.random_weights import PUBLISHED, write_dit  # noqa: E402
from toy.safetensors_writer import Entry, write_safetensors  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZE = (3, 16, 24)  # latent frames, height, width
ORIGINAL, THEIRS = "original.safetensors", "diffusers/diffusion_pytorch_model.safetensors"


def write(folder: pathlib.Path, config: ModelConfig, dtype: torch.dtype, alone: bool) -> None:
    """`folder`/original.safetensors, and the same in `folder`/diffusers."""
    original, theirs = folder / ORIGINAL, (folder / THEIRS).parent
    write_dit(original, config, dtype)
    if alone:
        return
    import diffusers

    with torch.device("meta"):
        model = diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            inject_sample_info=config.fps_embedding,
        )
    model.save_config(theirs)
    tensors = load_file(original)
    named = {key: tensors[transformer_key_to_original(key)] for key in model.state_dict()}
    entries = [Entry.of(key, value) for key, value in named.items()]
    write_safetensors(folder / THEIRS, entries)


def forget(file: pathlib.Path) -> None:
    """Take a file out of the system's cache."""
    os.sync()
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_ours(folder: pathlib.Path, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    file = checkpoint.read(folder / ORIGINAL)
    weights = names.transformer_tensors(file.tensors, file.metadata)
    model = SkyReelsModel(ModelConfig.from_state_dict(weights), dtype=dtype, device="meta")
    loading.load_weights(model, weights, release=file.release)
    return model.eval()


def load_diffusers(folder: pathlib.Path, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    import diffusers

    made = diffusers.SkyReelsV2Transformer3DModel
    model = made.from_pretrained(folder / "diffusers", torch_dtype=dtype).eval()
    fps = torch.ones(1, dtype=torch.long)
    return lambda x, t, text: model(
        x, t, text, enable_diffusion_forcing=True, fps=fps, return_dict=False
    )[0]


def load_nothing(folder: pathlib.Path, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    with (folder / ORIGINAL).open("rb", buffering=0) as opened:
        while opened.read(2**24):
            pass
    return lambda x, t, text: x


def load_in_comfyui(folder: pathlib.Path, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    import comfy.model_management

    pack = next(
        module for name, module in sys.modules.items() if name.endswith(".nodes.host.sockets.model")
    )
    name = next(name for name, known in DTYPES.items() if known == dtype)
    patcher, _ = pack.load_model(folder / ORIGINAL, name, "pytorch")
    comfy.model_management.load_models_gpu([patcher])
    return patcher.model.diffusion_model


LOADERS = {
    "read": load_nothing,
    "ours": load_ours,
    "diffusers": load_diffusers,
    "ComfyUI": load_in_comfyui,
}


def prepare(rival: str, comfyui: pathlib.Path | None, folder: pathlib.Path) -> None:
    """What is no part of loading a model."""
    if rival == "diffusers":
        import diffusers  # noqa: F401
    if rival == "ComfyUI" and comfyui is not None:
        from devtools import inprocess

        inprocess.boot_host(comfyui, folder / "comfyui")
        inprocess.load_pack(ROOT)


@torch.inference_mode()
def run(rival: str, folder: pathlib.Path, dtype: torch.dtype) -> dict[str, Any]:
    begun, before = time.perf_counter(), status("VmRSS")
    forward = LOADERS[rival](folder, dtype)
    loaded = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, *SIZE, generator=generator).to(dtype)
    text = torch.randn(1, 512, 4096, generator=generator).to(dtype)
    out = forward(x, torch.tensor([[900.0, 500.0, 100.0]]), text)
    return {
        "load": loaded - begun,
        "forward": time.perf_counter() - loaded,
        "peak": status("VmHWM") - before,
        "own": status("RssAnon"),
        "mapped": status("RssFile"),
        "sample": out.float().flatten()[::50].tolist(),
    }


def status(field: str) -> int:
    """Bytes of this process: resident (VmRSS), their peak (VmHWM), own or mapped (RssAnon, …)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def compare(
    folder: pathlib.Path, model: str, name: str, alone: bool, comfyui: pathlib.Path | None
) -> None:
    write(folder, PUBLISHED[model], DTYPES[name], alone)
    print(f"{model}, {name}, a file of {(folder / ORIGINAL).stat().st_size / 1e9:.2f} GB\n")
    print("| way | load | forward | peak | own at the end | mapped at the end |")
    print("|---|---|---|---|---|---|")
    samples = {}
    left_out = {"diffusers": alone, "ComfyUI": comfyui is None}
    for rival in [rival for rival in LOADERS if not left_out.get(rival)]:
        forget(folder / (THEIRS if rival == "diffusers" else ORIGINAL))
        command = [sys.executable, __file__, "--child", rival, "--dtype", name]
        command += ["--folder", str(folder), *(["--comfyui", str(comfyui)] if comfyui else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        sizes = " | ".join(f"{figures[key] / 1e9:.2f} GB" for key in ("peak", "own", "mapped"))
        row = f"| {rival} | {figures['load']:.1f} s | {figures['forward']:.1f} s | {sizes} |"
        print(row, flush=True)
        samples[rival] = torch.tensor(figures["sample"])
    if not alone:
        mine, theirs = samples["ours"], samples["diffusers"]
        print(
            f"\nrelative difference of the velocities: {(mine - theirs).norm() / theirs.norm():.0e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=PUBLISHED, default="DF-1.3B-540P")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--alone", action="store_true", help="without diffusers")
    parser.add_argument("--comfyui", type=pathlib.Path, help="a ComfyUI tree")
    parser.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        prepare(options.child, options.comfyui, options.folder)
        print(json.dumps(run(options.child, options.folder, DTYPES[options.dtype])))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(pathlib.Path(folder), options.model, options.dtype, options.alone, options.comfyui)


if __name__ == "__main__":
    main()
