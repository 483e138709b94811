"""Every ComfyUI at hand has the names that the pack uses, and takes its calls as they are."""

import os
from pathlib import Path

import pytest

from devtools import cache, host, host_symbols

ROOT = Path(__file__).resolve().parents[2]
NAMED = [os.environ[host.PATH_VARIABLE]] if os.environ.get(host.PATH_VARIABLE) else []
CACHED = [cache.root() / f"ComfyUI-{version}" for version in host.RELEASES]
TREES = sorted({Path(tree) for tree in [*NAMED, *CACHED] if host.is_tree(Path(tree))})


@pytest.mark.parametrize("tree", TREES, ids=[tree.name for tree in TREES])
def test_a_comfyui_has_what_the_pack_uses(tree):
    assert not host_symbols.scan(ROOT, tree)


def test_the_scan_sees_the_pack():
    used = {".".join(use.name) for use in host_symbols.uses_of(ROOT)}
    assert {"comfy.model_patcher.ModelPatcher", "folder_paths.get_filename_list"} <= used
    assert len(used) > 100
