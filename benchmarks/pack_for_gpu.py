"""Packs what `benchmarks/gpu.py` needs beside the repository, into one folder that git ignores.

    python benchmarks/pack_for_gpu.py [--host COMFYUI] [--reference FOLDER] [--out for_gpu]
    python benchmarks/pack_for_gpu.py --rehearsal     # without a network, for --rehearse here

Into it go: the sources of ComfyUI that run without a page (of the tree that `dev.py` would use),
the packages that they import and a bare machine does not have, as wheels for Python 3.12 on x86-64
Linux, unpacked, and the inference code of the reference, where FOLDER (or SKYREELS_V2_REFERENCE) is
a source tree of SkyworkAI/SkyReels-V2. The largest library is kept compressed; `gpu.py` unpacks it.
With --rehearsal the packages are those of this Python, without kernels of cards.
"""

from __future__ import annotations

import argparse
import importlib.util
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.append(str(ROOT))

from gpu.paths import COMPRESSED, HOST, PACKED, REFERENCE, SITE  # noqa: E402

from devtools import host as hosts  # noqa: E402

LIMIT = 40 * 10**6
# By their versions in the host's requirements, where it has one.
PACKAGES = ("comfy-kitchen", "comfy-aimdo", "torchsde", "trampoline", "ftfy", "wcwidth")
MODULES = ("comfy_kitchen", "comfy_aimdo", "torchsde", "trampoline", "ftfy", "wcwidth")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
PLATFORMS += ("manylinux2014_x86_64",)
PYTHON = "3.12"
# Of the host's tree: its packages that a run without a page imports, and its small data.
HOST_FOLDERS = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "app", "utils")
HOST_DATA, SMALL = (".json", ".yaml", ".txt"), 20_000
# Kernels of other makers' cards.
OTHERS = re.compile(r"backends/hip/|_rocm\.so$|__pycache__")
COMPRESS_FROM = 10 * 2**20


def pack_host(tree: pathlib.Path, target: pathlib.Path) -> None:
    """Copy the host's sources; tokenizers and other large data stay out."""
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        inside = len(relative.parts) == 1 or relative.parts[0] in HOST_FOLDERS
        wanted = path.suffix == ".py" or (
            path.suffix in HOST_DATA and path.is_file() and path.stat().st_size < SMALL
        )
        if inside and wanted:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def pinned(tree: pathlib.Path) -> list[str]:
    """The packages, at the versions that the host asks for."""
    lines = (tree / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].strip(): line.strip() for line in lines if "==" in line}
    return [pins.get(name, name) for name in PACKAGES]


def pack_wheels(requirements: list[str], target: pathlib.Path) -> None:
    """Fetch wheels for the card's machine and unpack them."""
    with tempfile.TemporaryDirectory() as scratch:
        platforms = [part for name in PLATFORMS for part in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", scratch]
        command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
        subprocess.run([*command, *platforms, *requirements], check=True)
        for wheel in sorted(pathlib.Path(scratch).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                kept = [name for name in archive.namelist() if not OTHERS.search(name)]
                archive.extractall(target, kept)
    for path in sorted(target.rglob("*.so")):
        if path.stat().st_size > COMPRESS_FROM:
            with (
                path.open("rb") as source,
                lzma.open(f"{path}{COMPRESSED}", "wb", preset=3) as file,
            ):
                shutil.copyfileobj(source, file, 2**24)
            path.unlink()


def pack_installed(target: pathlib.Path) -> None:
    """Copy the packages from this Python, without kernels of cards."""
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None and not spec.submodule_search_locations:
            sys.exit(f"{name} is not installed here; `python3 dev.py test` installs it")
        if not spec.submodule_search_locations:
            shutil.copyfile(str(spec.origin), target / pathlib.Path(str(spec.origin)).name)
            continue
        for folder in spec.submodule_search_locations:
            shutil.copytree(folder, target / name, ignore=_left_out)


def _left_out(folder: str, names: list[str]) -> list[str]:
    places = [pathlib.Path(folder, name) for name in names]
    large = (p for p in places if p.is_file() and p.stat().st_size > COMPRESS_FROM)
    return [p.name for p in places if OTHERS.search(p.as_posix())] + [p.name for p in large]


def pack_reference(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copy the inference code of a source tree of the reference, for use on the card alone.

    Raises ValueError where it has none.
    """
    if not (folder / "skyreels_v2_infer").is_dir():
        raise ValueError(f"--reference is {folder}; it must be a source tree of SkyReels-V2")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(folder / "skyreels_v2_infer", target / "skyreels_v2_infer", ignore=ignore)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", help="a ComfyUI source tree (else as dev.py finds or fetches it)")
    given = os.environ.get("SKYREELS_V2_REFERENCE")
    parser.add_argument("--reference", type=pathlib.Path, default=given)
    parser.add_argument("--out", type=pathlib.Path, default=PACKED)
    parser.add_argument("--rehearsal", action="store_true", help="of this Python, for --rehearse")
    options = parser.parse_args()
    tree = hosts.locate(options.host, ROOT, pathlib.Path(sys.executable), options.rehearsal)
    if options.out.exists():
        if not (options.out / HOST).is_dir() and any(options.out.iterdir()):
            print(
                f"--out is {options.out}; it must be new, empty, or packed before", file=sys.stderr
            )
            return 2
        shutil.rmtree(options.out)
    (options.out / SITE).mkdir(parents=True)
    pack_host(tree, options.out / HOST)
    if options.rehearsal:
        pack_installed(options.out / SITE)
    else:
        pack_wheels(pinned(tree), options.out / SITE)
    if options.reference:
        pack_reference(pathlib.Path(options.reference), options.out / REFERENCE)
    return report(options.out)


def report(out: pathlib.Path) -> int:
    """Say what each part weighs; 1 where the whole is too large to take along."""
    total = 0
    for part in sorted(path for path in out.iterdir() if path.is_dir()):
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        total += size
        print(f"{part.name:10} {size / 1e6:6.1f} MB")
    print(f"{'in all':10} {total / 1e6:6.1f} MB in {out}")
    if total > LIMIT:
        print(f"that is more than {LIMIT / 1e6:.0f} MB", file=sys.stderr)
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
