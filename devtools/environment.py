"""The Python environment a host runs in: the current one when it has all, else one of our own.

Ours is a virtual environment in the cache, grown by groups: running a workflow must not wait for
what only tests or the web page need. A virtual environment cannot be moved once made, so it is
made at its final path, and only a marker written last makes a group count as installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools import cache, process
from devtools.cache import SetupError

PACK = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
# The partners of `TORCH`. Their wheels need a CUDA build of it: see `standins` for where it is not.
TORCH_PARTNERS = ("torchvision==0.28.0", "torchaudio==2.11.0")


@dataclass(frozen=True)
class Group:
    """Packages that are installed together, the modules that show they are there, and why."""

    name: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    why: str
    size: str
    with_dependencies: bool = True


def _pack_requirements() -> tuple[str, ...]:
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


# What each version of ComfyUI wants in one version, here the default's. Newer ones serve older
# ComfyUIs, older ones lack functions that newer ComfyUIs call.
NATIVE = {"comfy-kitchen": "0.2.26", "comfy-aimdo": "0.4.11"}


def _pins(host: Path) -> dict[str, str]:
    """The packages that `host` itself asks for in one version, by name."""
    file = host / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.strip().split("==") for line in lines if "==" in line)
    return {name: version for name, version in pairs}


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def run_group(host: Path | None = None) -> Group:
    """What ComfyUI imports when it executes a workflow, and what this pack needs.

    For the ComfyUI in `host` with native packages as new as it asks for.
    """
    pins = _pins(host) if host else {}
    newest = {name: max(pins.get(name, at), at, key=_numbers) for name, at in NATIVE.items()}
    native = (f"{name}=={version}" for name, version in newest.items())
    return Group(
        "run",
        (
            TORCH,
            "numpy",
            "scipy",
            "einops",
            "transformers>=4.50.3,<5",
            "safetensors>=0.4.2",
            "sentencepiece",
            "av>=16",
            "Pillow",
            "psutil",
            "pyyaml",
            "tqdm",
            "torchsde",
            "kornia>=0.7.1",
            *native,
            *_pack_requirements(),
        ),
        tuple(
            "torch numpy scipy einops transformers safetensors sentencepiece av PIL psutil yaml "
            "tqdm torchsde comfy_kitchen comfy_aimdo ftfy".split()
        ),
        "what ComfyUI needs to execute a workflow",
        "0.5 GB with a CPU build of torch, 3.5 GB with a CUDA build",
    )


SERVER = Group(
    "server",
    (
        "aiohttp>=3.11.8",
        "yarl>=1.18.0",
        "alembic",
        "SQLAlchemy>=2.0.0",
        "filelock",
        "requests",
        "simpleeval>=1.0.0",
        "blake3",
        "pydantic~=2.0",
        "pydantic-settings~=2.0",
    ),
    tuple("aiohttp yarl alembic sqlalchemy requests simpleeval blake3 pydantic_settings".split()),
    "what ComfyUI's server needs",
    "15 MB",
)
TEST = Group(
    "test",
    (
        "pytest>=8",
        "pytest-xdist>=3.6",
        "pytest-randomly>=3.16",
        "ruff==0.17.6",
        "mypy==2.4.1",
        "diffusers==0.39.0",
        "gguf>=0.13",
        "peft>=0.17",
        "lycoris-lora>=4.1",
        "pydantic~=2.0",
        "json-repair>=0.40",
        "scenedetect-headless>=0.7",
        "llguidance>=1.9",
        "bitsandbytes>=0.50",
        "hypothesis>=6.100",
    ),
    tuple(
        "pytest xdist pytest_randomly ruff mypy diffusers gguf peft lycoris pydantic json_repair "
        "scenedetect llguidance bitsandbytes hypothesis".split()
    ),
    "the checkers, diffusers, gguf, peft and LyCORIS as independent judges, hypothesis, and what "
    "is optional",
    "160 MB",
)
# Without their media packages (380 MB), which the page does not need.
TEMPLATES = ("comfyui-workflow-templates-core", "comfyui-workflow-templates-json")


def page_group(host: Path) -> Group:
    """ComfyUI's web page at the versions `host` itself asks for."""
    own = [f"{name}=={it}" for name, it in _pins(host).items() if name.startswith("comfyui-")]
    return Group(
        "page",
        (*sorted(own), *TEMPLATES),
        ("comfyui_frontend_package",),
        "ComfyUI's web page",
        "60 MB",
        with_dependencies=False,
    )


def choose(groups: Sequence[Group], offline: bool, keep_current: bool = True) -> Path:
    """The interpreter that has all `groups`; installs what is missing, but only into our own.

    The interpreter that runs this is taken as it is when it has every module (and
    `keep_current`). Raises SetupError when something must be fetched but cannot.
    """
    if keep_current and all(_has_modules(group) for group in groups):
        return Path(sys.executable)
    folder = folder_of(groups[0])
    missing = [group for group in groups if not is_installed(folder, group)]
    if missing and offline:
        names = "; ".join(f"{g.name} ({', '.join(g.requirements)})" for g in missing)
        raise SetupError(f"--offline, but these packages are missing in {folder}: {names}")
    if missing:
        with cache.lock(folder.name):
            _build(folder, groups)
    return _python_in(folder)


def folder_of(base: Group) -> Path:
    """Where the environment grown from `base` lies, named by Python version and package list."""
    digest = hashlib.sha256("\n".join(base.requirements).encode()).hexdigest()[:10]
    return cache.root() / f"env-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def is_installed(folder: Path, group: Group) -> bool:
    """Whether the marker says that exactly this list of packages was installed to the end."""
    marker = _marker(folder, group)
    return marker.is_file() and marker.read_text(encoding="utf-8") == _marker_text(group)


def _has_modules(group: Group) -> bool:
    if any(importlib.util.find_spec(module) is None for module in group.modules):
        return False
    wanted = (one.split("==") for one in group.requirements if one.partition("==")[0] in NATIVE)
    return all(_is_as_new(name, version) for name, version in wanted)


def _is_as_new(name: str, version: str) -> bool:
    # The default's is not asked for: who has a ComfyUI of their own has what belongs to it.
    if version == NATIVE[name]:
        return True
    try:
        return _numbers(importlib.metadata.version(name)) >= _numbers(version)
    except importlib.metadata.PackageNotFoundError:
        return False


def _marker(folder: Path, group: Group) -> Path:
    return folder / f"skyreels-v2-{group.name}.txt"


def _marker_text(group: Group) -> str:
    return "\n".join(group.requirements) + "\n"


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _build(folder: Path, groups: Sequence[Group]) -> None:
    if folder.exists() and not is_installed(folder, groups[0]):
        print(f"removing a half-made environment: {folder}", flush=True)
        shutil.rmtree(folder)
    if not folder.exists():
        print(f"creating a virtual environment in {folder}", flush=True)
        _call([sys.executable, "-m", "venv", str(folder)])
    python = _python_in(folder)
    for group in groups:
        # Another run may have finished it while this one waited for the lock.
        if not is_installed(folder, group):
            _install(python, group)
            _marker(folder, group).write_text(_marker_text(group), encoding="utf-8")


def _install(python: Path, group: Group) -> None:
    print(f"fetching packages: {group.why}, about {group.size} ...", flush=True)
    begin = time.monotonic()
    if TORCH in group.requirements:
        # First: whatever comes later then fits the torch that is there.
        pip(python, "install", TORCH, "numpy")
        if _is_cuda_build(python):
            pip(python, "install", "--no-deps", *TORCH_PARTNERS)
    options = () if group.with_dependencies else ("--no-deps",)
    pip(python, "install", *options, *group.requirements)
    print(f"  done in {time.monotonic() - begin:.0f} s", flush=True)


def _is_cuda_build(python: Path) -> bool:
    question = "import torch, sys; sys.exit(0 if torch.version.cuda else 1)"
    return subprocess.run([str(python), "-c", question]).returncode == 0


def pip(python: Path, *arguments: str) -> None:
    """Run `python`'s pip, showing errors only; where packages come from is pip's configuration."""
    verb, *rest = arguments
    _call([str(python), "-m", "pip", verb, "-qq", "--no-input", *rest])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, env=process.child_environment(offline=False))
    if done.returncode:
        raise SetupError(f"this command failed with code {done.returncode}:\n  {' '.join(command)}")


def sees_cuda(python: Path) -> bool:
    """Whether `python`'s torch can use an NVIDIA GPU here."""
    # Importing torch takes seconds, so it is only asked where there is a driver at all.
    if not _has_nvidia_driver():
        return False
    question = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([str(python), "-c", question]).returncode == 0


def _has_nvidia_driver() -> bool:
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
