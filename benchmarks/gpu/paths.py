"""What is imported from where on a bare machine: the repository, and the packed folder."""

from __future__ import annotations

import lzma
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKED = ROOT / "for_gpu"
SITE, HOST, REFERENCE = "site", "host", "reference"
COMPRESSED = ".xz"


def prepare(packed: pathlib.Path) -> None:
    """Put repository and packed packages on the path, after what the machine has itself."""
    sys.path += [str(ROOT), str(ROOT / "tests"), str(packed / SITE)]


def unpack(packed: pathlib.Path) -> None:
    """Unpack the libraries that were compressed, beside their archives."""
    for archive in sorted((packed / SITE).rglob(f"*{COMPRESSED}")):
        target = archive.with_suffix("")
        if not target.exists():
            scratch = target.with_name(f"{target.name}.new")
            with lzma.open(archive) as source, scratch.open("wb") as file:
                shutil.copyfileobj(source, file, 2**24)
            scratch.replace(target)


def reference_folder(packed: pathlib.Path, given: pathlib.Path | None) -> pathlib.Path | None:
    """The source tree of the reference: the one given, else the packed one, else None."""
    folder = given or packed / REFERENCE
    return folder if (folder / "skyreels_v2_infer").is_dir() else None


def require_packed(packed: pathlib.Path) -> None:
    """Raise ValueError unless the folder was packed."""
    if not (packed / HOST / "nodes.py").is_file():
        raise ValueError(
            f"--packed is {packed}; it must be a folder that benchmarks/pack_for_gpu.py made"
        )
