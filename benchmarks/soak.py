"""One server, many films: does anything grow, and does a late film differ from a fresh server's?

    python3 benchmarks/soak.py --comfyui COMFYUI --runs 100 --seed 0

Queues the templates in a drawn order, in few steps, each time with a seed of its own. Some films
are stored, watched and written by SkyReels-V2 Film to Video. Some runs are cancelled on their way
and some are refused. After each run the server's memory, threads, open files and temporary files
are read. Prints a line every ten runs, and at the end what grew after the first round: medians of
the twenty runs after it and of the last twenty. Then some of the runs are made again, each by a
fresh server, and compared to the bit. Ends with 1 if any differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from devtools.prompt import InvalidPrompt  # noqa: E402
from devtools.remote import Client  # noqa: E402
from devtools.serving import Server, free_port  # noqa: E402

# All but those that need a language model.
TEMPLATES = [
    path
    for path in sorted((ROOT / "workflows" / "api").glob("*.json"))
    if "SkyReelsV2LanguageEndpoint" not in path.read_text(encoding="utf-8")
]
SAMPLERS = ("SkyReelsV2Sampler", "KSampler")
CANCELLED, REFUSED, STORED = 0.1, 0.1, 0.4  # shares of the runs
STEPS = {"steps": 4, "ar_step": 1}
HOST_PREVIEWS = "ComfyUI_temp_"  # of its own Preview Image, which it keeps until it starts again
COMPARED = 5
ROUND = 10  # runs a line
ENDS = 20  # runs whose medians are compared


@dataclass(frozen=True)
class Run:
    """A film to be made: its template and seed, and how it ends: done, cancelled or refused.

    stored: whether it is saved while it is made, and written to a video file.
    """

    number: int
    template: Path
    seed: int
    end: str
    stored: bool

    def graph(self) -> dict[str, Any]:
        """The template with this seed, and its latents saved."""
        nodes = json.loads(self.template.read_text(encoding="utf-8"))
        for name, node in list(nodes.items()):
            if node["class_type"] == "SkyReelsV2Schedule":
                node["inputs"] |= STEPS
            if node["class_type"] not in SAMPLERS:
                continue
            if self.stored and node["class_type"] == SAMPLERS[0]:
                nodes |= self._store(name, node["inputs"])
            node["inputs"]["seed"] = self.seed
            if self.end == "refused":
                node["inputs"]["cfg"] = -1e9
            saved = {"samples": [name, 0], "filename_prefix": f"run_{self.number:04d}_{name}_"}
            nodes[f"saved{name}"] = {"class_type": "SaveLatent", "inputs": saved}
        return nodes

    def _store(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """A store for this sampler, which gets it, and a video of its film."""
        film = {"name": f"run {self.number} {name}", "save_every": 0.0, "start_afresh": False}
        film["watch"] = "vae" in inputs
        vae = inputs.get("vae", ["3", 0])
        coding = {"codec": "h264", "quality": 80, "bit_depth": "8", "fps": 0.0}
        video = {"vae": vae, "samples": [name, 0], "filename_prefix": "soak", **coding}
        inputs["store"] = [f"store{name}", 0]
        return {
            f"store{name}": {"class_type": "SkyReelsV2Store", "inputs": film},
            f"video{name}": {"class_type": "SkyReelsV2FilmToVideo", "inputs": video},
        }

    def make(self, client: Client) -> bool:
        """Whether the run ends as it should."""
        graph = self.graph()
        if self.end == "refused":
            try:
                # The host still makes outputs that hang on nothing refused: of a plan, say.
                made = client.run(graph, lambda event, data: None).files
            except InvalidPrompt:
                return True
            return not any(file.filename.startswith("run_") for file in made)
        begun = threading.Event()

        def on_event(event: str, data: Mapping[str, Any]) -> None:
            if self.end == "cancelled" and not begun.is_set() and _samples(event, data):
                begun.set()
                client.interrupt(data["prompt_id"])

        result = client.run(graph, on_event)
        return result.interrupted if self.end == "cancelled" else result.success

    def latents(self, folder: Path) -> list[torch.Tensor]:
        files = sorted(folder.glob(f"run_{self.number:04d}_*.latent"))
        return [load_file(file)["latent_tensor"] for file in files]


def _samples(event: str, data: Mapping[str, Any]) -> bool:
    """Whether an event tells of a node that is some calls on its way."""
    return event == "progress_state" and any(
        1 < node["value"] < node["max"] for node in data["nodes"].values()
    )


@dataclass(frozen=True)
class Use:
    """What a server uses: memory in MB, threads, open files, temporary files."""

    memory: float
    threads: int
    files: int
    temporary: int

    @classmethod
    def of(cls, process: psutil.Process, base: Path) -> Use:
        folders = (base / "temp", Path(tempfile.gettempdir()))  # the host's, and the system's
        found = [path for one in folders for path in sorted(one.rglob("*")) if path.is_file()]
        temporary = sum(not path.name.startswith(HOST_PREVIEWS) for path in found)
        return cls(
            process.memory_info().rss / 1e6, process.num_threads(), process.num_fds(), temporary
        )

    @classmethod
    def median(cls, some: list[Use]) -> Use:
        names = (field.name for field in dataclasses.fields(cls))
        return cls(*(statistics.median(getattr(use, name) for use in some) for name in names))

    def __str__(self) -> str:
        return f"{self.memory:.0f} | {self.threads} | {self.files} | {self.temporary}"


def draw_runs(count: int, seed: int) -> list[Run]:
    draw, runs = random.Random(seed), []
    for number in range(count):
        # Each template once a round, so that every one is there before anything is compared.
        template = TEMPLATES[number] if number < len(TEMPLATES) else draw.choice(TEMPLATES)
        chance = draw.random() if number >= len(TEMPLATES) else 1.0
        end = "cancelled" if chance < CANCELLED else "done"
        end = "refused" if CANCELLED <= chance < CANCELLED + REFUSED else end
        stored = draw.random() < STORED
        runs.append(Run(number, template, 1000 + number, end, stored))
    return runs


def soak(server: Server, runs: list[Run]) -> tuple[list[Use], list[Run]]:
    """What the server uses after each run, and the runs that did not end as they should."""
    client, uses, wrong = Client(server.url), [], []
    assert server._child is not None
    process = psutil.Process(server._child.pid)
    print("| run | memory, MB | threads | open files | temporary files |\n|---|---|---|---|---|")
    for run in runs:
        if not run.make(client):
            wrong.append(run)
        uses.append(Use.of(process, server.base))
        if (run.number + 1) % ROUND == 0:
            print(f"| {run.number + 1} | {uses[-1]} |", flush=True)
    return uses, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs = draw_runs(options.runs, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        # Servers inherit it, so that what they leave there is theirs alone.
        os.environ["TMPDIR"] = tempfile.tempdir = f"{folder}/tmp"
        os.mkdir(tempfile.tempdir)

        def server(name: str) -> Server:
            base = Path(folder) / name
            base.mkdir()
            log = base / "server.log"
            return Server(Path(sys.executable), options.comfyui, base, free_port(), True, log=log)

        with server("soak") as running:
            uses, wrong = soak(running, runs)
        done = [run for run in runs[len(TEMPLATES) :] if run.end == "done"] or runs
        differ = []
        for run in random.Random(options.seed).sample(done, min(COMPARED, len(done))):
            with server(f"fresh{run.number}") as fresh:
                run.make(Client(fresh.url))
            found, expected = (run.latents(one.output_folder) for one in (running, fresh))
            if (
                not found
                or len(found) != len(expected)
                or not all(map(torch.equal, found, expected))
            ):
                differ.append(run)
    later = uses[len(TEMPLATES) :] or uses
    first, last = Use.median(later[:ENDS]), Use.median(later[-ENDS:])
    ends = {end: sum(run.end == end for run in runs) for end in ("done", "cancelled", "refused")}
    print(f"{len(runs)} runs ({ends}), {len(wrong)} did not end as they should: {wrong}")
    print(
        f"memory {100 * (last.memory / first.memory - 1):+.1f} % after the first round, threads "
        f"{last.threads - first.threads:+g}, open files {last.files - first.files:+g}, temporary "
        f"files {last.temporary - first.temporary:+g}"
    )
    print(f"{min(COMPARED, len(done))} made again by fresh servers, {len(differ)} differ: {differ}")
    return int(bool(differ or wrong))


if __name__ == "__main__":
    sys.exit(main())
