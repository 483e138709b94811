"""A process that makes films in ComfyUI on one device and writes down what came of them.

Nothing may import torch before the host is booted: its dynamic memory takes over the allocator.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import graphs

from devtools import inprocess

from . import comfyui
from .paths import ROOT

ROOM = 3 * 2**30  # bytes left free for the film that is streamed
LARGE_FILE = "random-1.3B.safetensors"


def make_films(place: str, out: pathlib.Path, packed: pathlib.Path, rehearse: bool) -> None:
    """The toy film on the "card" or the "processor", and the film of 1.3B where there is one."""
    on_card = place == "card"
    exact = ["--fp32-text-enc", "--fp32-vae"]
    dynamic = comfyui.boot(packed, [*exact, *([] if on_card else ["--cpu"])], dynamic=on_card)
    import torch

    # As exact as a processor's, for the comparison.
    torch.backends.cudnn.allow_tf32 = False
    inprocess.load_pack(ROOT / "tests" / "host" / "probe")
    found: dict[str, Any] = {"dynamic": dynamic, "toy": None, "large": [], "errors": []}

    def attempt(make: Callable[[], None]) -> None:
        try:
            make()
        except Exception as error:
            traceback.print_exc()
            found["errors"].append(f"{type(error).__name__}: {error}"[:200])
        (out / "films.json").write_text(json.dumps(found), encoding="utf-8")

    attempt(lambda: found.update(toy=_toy_film(out, rehearse)))
    if on_card or rehearse:
        attempt(lambda: found["large"].extend(_large_films(out, rehearse)))


def _toy_film(out: pathlib.Path, rehearse: bool) -> float:
    """Two windows that go on through pixels; returns its seconds, its latents into `out`."""
    import torch

    short = {"frames": 9, "window": 5, "overlap": 1, "steps": 2}
    prompt = graphs.film(ar_step=1, **(short if rehearse else {"frames": 25}))
    prompt["1"]["inputs"]["weight_dtype"] = "fp32"
    latents, taken, _ = _run(prompt)
    torch.save(latents, out / "toy.pt")
    return taken


def _large_films(out: pathlib.Path, rehearse: bool) -> list[dict[str, Any]]:
    """Rows of the film of 1.3B: with room for all weights, and with little."""
    import comfy.model_management as management
    import torch

    prompt = _large_prompt(out, rehearse)
    right, taken, held = _run(prompt)
    rows = [{"film": "1.3B, room for all", "seconds": taken, "weights on the card": held}]
    management.unload_all_models()
    management.soft_empty_cache()
    filler = None
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        filler = torch.empty(max(0, free - ROOM), dtype=torch.uint8, device="cuda")
    latents, taken, held = _run(prompt)
    del filler
    apart = float((latents.double() - right.double()).norm() / right.double().norm())
    label = f"1.3B, {ROOM / 2**30:.0f} GiB free"
    row = {"film": label, "seconds": taken, "difference": apart, "weights on the card": held}
    return [*rows, {**row, "note": "equal" if torch.equal(latents, right) else "NOT EQUAL"}]


def _large_prompt(out: pathlib.Path, rehearse: bool) -> dict[str, Any]:
    """A window of 1.3B with random weights, through our loader and sampler; prompts are given."""
    import folder_paths
    import torch
    from safetensors.torch import save_file

    from . import networks

    config, device = networks.config_of("1.3B", rehearse), torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda")
    state = networks.random_weights(config, torch.bfloat16, device)
    folder = out / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, folder / LARGE_FILE)
    del state
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    generator = torch.Generator().manual_seed(2)
    probe = _probe()
    for name in ("positive", "negative"):
        text = torch.randn(1, 512, config.text_dim, generator=generator)
        probe.GIVEN[name] = [[text, {}]]
    size = {"width": 64, "height": 64} if rehearse else {"width": 448, "height": 256}
    frames = 5 if rehearse else 33
    steps = 1 if rehearse else 3
    prompt = graphs.film(frames=frames, window=frames, overlap=1, steps=steps, **size)
    loader, sampler = prompt["1"]["inputs"], prompt["6"]["inputs"]
    loader.update(model_name=LARGE_FILE, weight_dtype="bf16")
    del sampler["vae"]
    for name in ("positive", "negative"):
        prompt[f"given {name}"] = graphs.node("SkyReelsV2TestGiver", name=name)
        sampler[name] = [f"given {name}", 0]
    return {key: node for key, node in prompt.items() if key not in ("2", "3", "4", "7")}


def _probe() -> Any:
    """The nodes that take what reaches a link, and give what a link is to have."""
    return next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))


def _run(prompt: dict[str, Any]) -> tuple[Any, float, str | None]:
    """The latents of node "6", the seconds it took, and what lay of the weights on the card."""
    probe = _probe()
    graph = {key: node for key, node in prompt.items() if key != "7"}
    graph["probe"] = graphs.node("SkyReelsV2TestProbe", value=["6", 0], name="latents")
    held: list[float] = []

    def watch(event: str, _data: Any) -> None:
        if event == "progress" or event == "progress_state":
            held.append(_loaded_bytes())

    begin = time.perf_counter()
    result = inprocess.execute(graph, watch)
    taken = time.perf_counter() - begin
    if not result.success:
        raise RuntimeError(result.describe())
    least = f"{min(held) / 2**30:.2f} to {max(held) / 2**30:.2f} GiB" if held else None
    return probe.SEEN.pop("latents")["samples"].cpu(), taken, least


def _loaded_bytes() -> float:
    """Of all models that the host has loaded, what lies on the device."""
    import comfy.model_management as management

    models = [loaded.model for loaded in management.current_loaded_models]
    return float(sum(model.loaded_size() for model in models if model is not None))
