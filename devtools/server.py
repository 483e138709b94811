"""Runs ComfyUI's own main.py with stand-ins in place: `server.py HOST [ARGUMENTS OF MAIN.PY]`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Become the ComfyUI server."""
    # As a script this file's folder is on the path, where it would shadow the host's `server.py`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from devtools import standins

    host = Path(sys.argv[1])
    standins.install()
    sys.path[0] = str(host)
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
