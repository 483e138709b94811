"""ComfyUI in this process, from the packed sources, with our pack loaded into it."""

from __future__ import annotations

import atexit
import importlib
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from devtools import inprocess, standins

from .paths import HOST, ROOT

# Imported by the host at its start, for what is not measured here.
UNNEEDED = ("torchvision", "torchaudio", "av")
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")


def boot_for(packed: pathlib.Path, rehearse: bool) -> bool:
    """The host as sections want it that look at networks alone."""
    return boot(packed, ["--cpu"] if rehearse else ["--disable-dynamic-vram"])


def boot(packed: pathlib.Path, arguments: list[str], dynamic: bool = False) -> bool:
    """Import the host with these arguments, and our pack; whether its dynamic memory is on.

    With `dynamic`, nothing may have imported torch before: its allocator is caught at the start.
    A second call does nothing.
    """
    if "nodes" in sys.modules:
        return sys.modules["comfy.memory_management"].aimdo_enabled
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="skyreels-v2-gpu-"))
    atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    for name in FOLDERS:
        (workdir / name).mkdir()
    sys.path.insert(0, str(packed / HOST))
    base = ["--base-directory", str(workdir), "--database-url", "sqlite:///:memory:"]
    inprocess.parse_host_arguments([*base, *arguments])
    if dynamic:
        importlib.import_module("comfy_aimdo.control").init()
    standins.install_absent(UNNEEDED)
    importlib.import_module("nodes")
    enabled = dynamic and _enable_dynamic()
    inprocess.load_pack(ROOT)
    return enabled


def _enable_dynamic() -> bool:
    """What the host's `main.py` does on NVIDIA; False where the machine does not let it."""
    import comfy.memory_management
    import comfy.model_management as management
    import comfy.model_patcher

    if not management.is_nvidia():
        return False
    control = importlib.import_module("comfy_aimdo.control")
    if not control.init_devices((d.index, 0) for d in management.get_all_torch_devices()):
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def ours(name: str) -> Any:
    """A module of our pack as the host has loaded it, such as "nodes.host.sockets.transformer"."""
    package = next(key for key in sys.modules if key.endswith(".nodes.host"))
    return importlib.import_module(package.removesuffix("nodes.host") + name)
