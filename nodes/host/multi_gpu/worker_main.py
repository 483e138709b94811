"""The program of a worker process: ComfyUI's model code without its server, obeying a channel."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

ALIAS = "skyreels_v2_worker"


def register_pack(pack: Path) -> None:
    """Make the pack's files importable as those of `ALIAS`, without its list of nodes."""
    for name, folder in ((ALIAS, pack), (f"{ALIAS}.nodes", pack / "nodes")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def main() -> None:
    register_pack(Path(__file__).resolve().parents[3])
    worker = importlib.import_module(f"{ALIAS}.skyreels_model.parallel.worker")

    def make(message: dict) -> object:
        sys.path[:] = message["path"]
        import comfy.cli_args

        given = comfy.cli_args.args
        vars(given).update(message["arguments"])
        given.fast = {comfy.cli_args.PerformanceFeature(name) for name in message["fast"]}
        # After the arguments, which the host's modules read as they are imported.
        follower = importlib.import_module(f"{ALIAS}.nodes.host.multi_gpu.follower")
        return follower.HostFollower()

    worker.serve(worker.open_channel(), make)


if __name__ == "__main__":
    main()
