"""Make many films: `python3 -m farm films/*.json --comfyui "python3 /srv/ComfyUI/main.py"`.

Each file is a workflow in API form, and its name the film's. Run it from the pack's folder. It ends
with 0 when all films were made, 1 when some were not, 2 when it cannot begin, 3 when the cluster
went away. Started again with the same folder it goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from . import cluster
from .driver import Farm, Gone, summarize
from .films import Queue, read_films

GONE = 3  # the code when the cluster went away


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (a command's output)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m farm", description=__doc__)
    parser.add_argument("films", nargs="+", type=Path, help="workflows in API form")
    parser.add_argument(
        "--comfyui", required=True, help="ComfyUI's command, the same on each machine"
    )
    parser.add_argument("--folder", type=Path, default=Path("farm_output"), help="for results")
    parser.add_argument("--gpus", type=float, default=1, help="GPUs of each worker")
    parser.add_argument("--workers", type=int, default=0, help="0: as many as the GPUs make")
    parser.add_argument("--address", default="", help="of a Ray cluster; without: this machine")
    return parser.parse_args()


def main() -> int:
    given = read_arguments()
    try:
        queue = Queue(read_films(given.films))
        with cluster.connect(given.address) as ray:
            count = cluster.count_workers(ray, given.workers, given.gpus)
            command = shlex.split(given.comfyui)
            workers: list[cluster.RayWorker] = []
            try:
                for number in range(1, count + 1):
                    name = f"worker {number}"
                    workers.append(cluster.RayWorker(ray, name, command, given.gpus))
                made = Farm(queue, workers, given.folder, say).run()
            except Gone as error:
                say(f"the cluster is gone: {error}. Start again with the same folder to go on")
                if not cluster.answers(ray):
                    # Ray would wait for its head to clean up, and then end with a code of its own.
                    sys.stdout.flush()
                    os._exit(GONE)
                return GONE
            finally:
                for worker in workers:
                    worker.stop()
    except (ValueError, ImportError, ConnectionError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    say(summarize(queue))
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
