"""A server that is killed while it makes films, again and again: is anything lost, or mixed?

    python3 benchmarks/kills.py --comfyui COMFYUI --kills 50 --seed 0

Films of several kinds with SkyReels-V2 Store that saves after every model call. The server is
killed (SIGKILL) at drawn moments and started again, until the film is done. Prints a line for each
film: kills, windows that were on disk at the end, files that a kill left half-written, and whether
its latents are equal, to the bit, to those of the film that was never interrupted. Ends with 1 if
any are not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from devtools.remote import Client  # noqa: E402
from devtools.serving import Server, free_port  # noqa: E402
from toy.toyset import transformer_path  # noqa: E402

FILM = ROOT / "workflows" / "api" / "film_from_text.json"
KINDS: dict[str, dict[str, Any]] = {
    "windows, pixels": {},
    "windows, latents, anchor": {"history": "latents", "anchor": 0.5},
    "one sequence": {"sliding": True, "ar_step": 5},
    "synchronous": {"ar_step": 0},
    "cache, LoRA": {"block_size": 5, "ar_step": 5},
}
LORA = "small.safetensors"
LONGEST = 4.0  # seconds from a start of a film to its kill, drawn evenly


def prompt(kind: str, store: bool) -> dict[str, Any]:
    """The graph of a film whose latents are saved, with or without a store."""
    nodes = json.loads(FILM.read_text(encoding="utf-8"))
    kept = {number: nodes[number] for number in ("1", "2", "3", "4", "5", "6")}
    kept["5"]["inputs"] |= {"frames": 161, **KINDS[kind]}
    if "LoRA" in kind:
        kept["10"] = _node("SkyReelsV2LoraLoader", model=["1", 0], lora_name=LORA, strength=0.7)
        cache = {"mode": "automatic", "threshold": 0.15, "start": 0.0, "end": 1.0}
        kept["11"] = _node("SkyReelsV2TeaCache", model=["10", 0], **cache)
        kept["6"]["inputs"]["model"] = ["11", 0]
    kept["20"] = _node("SaveLatent", samples=["6", 0], filename_prefix=f"{store:d}")
    if store:
        kept["30"] = _node("SkyReelsV2Store", name=kind, save_every=0.0, start_afresh=False)
        kept["6"]["inputs"]["store"] = ["30", 0]
    return kept


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def write_lora(folder: Path) -> None:
    """A LoRA of one layer of the toy model."""
    folder.mkdir(parents=True, exist_ok=True)
    width = load_file(transformer_path())["blocks.0.self_attn.q.weight"].shape[0]
    layer = "diffusion_model.blocks.0.self_attn.q"
    down, up = torch.full((2, width), 0.01), torch.full((width, 2), 0.01)
    parts = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(parts, folder / LORA)


def made(server: Server, graph: dict[str, Any]) -> torch.Tensor:
    """The latents of a film that nobody interrupts."""
    result = Client(server.url).run(graph, lambda event, data: None)
    if not result.success:
        raise SystemExit(result.describe())
    newest = max(server.output_folder.glob("*.latent"), key=lambda path: path.stat().st_mtime_ns)
    return load_file(newest)["latent_tensor"]


def killed(server: Server, graph: dict[str, Any], seconds: float) -> bool:
    """Kill the server so long after it was given the film; False if the film was done by then."""
    with server:
        client = Client(server.url)
        number = client.queue(graph)
        time.sleep(seconds)
        if client.history(number):
            return False
        server.kill()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    draw, kills, wrong = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)

        def server() -> Server:
            log = base / "server.log"
            return Server(
                Path(sys.executable), options.comfyui, base / "base", free_port(), True, log=log
            )

        write_lora(base / "base" / "models" / "loras")
        with server() as running:
            expected = {kind: made(running, prompt(kind, False)) for kind in options.films}
        films = base / "base" / "output" / "skyreels_v2_films"
        print("| film | kills | on disk before the last run | half-written files | equal |")
        print("|---|---|---|---|---|")
        for number in range(options.kills):
            kind = options.films[number % len(expected)]
            # Each film anew, with as many kills as it takes.
            name = f"{kind}, {number}"
            graph = prompt(kind, True)
            graph["30"]["inputs"]["name"] = name
            count, halves = 0, 0
            while killed(server(), graph, draw.uniform(0, LONGEST)):
                count += 1
                halves += len(sorted((films / name).glob("*.part")))
            windows = len(sorted((films / name).glob("window_*")))
            with server() as running:
                equal = torch.equal(made(running, graph), expected[kind])
            print(f"| {name} | {count} | {windows} | {halves} | {equal} |", flush=True)
            kills, wrong = kills + count, wrong + (not equal)
            if kills >= options.kills:
                break
    print(f"{kills} kills, {wrong} films not equal")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
