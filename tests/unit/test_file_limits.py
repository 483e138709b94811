"""Files that would unpack to more than they are, or hold more than any model has."""

import zipfile

import pytest
import torch
from safetensors.torch import save_file

from skyreels_model.files import checkpoint, limits


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, content in members.items():
            with made.open(f"archive/{name}", "w") as member:
                for _ in range(content):
                    member.write(bytes(1 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data.pkl", "data/0", "byteorder", "version"])
def test_archives_that_unpack_to_more_than_they_are(tmp_path, name, monkeypatch):
    """Of PyTorch's loader nothing is called: it would unpack first."""
    monkeypatch.setattr(torch, "load", None)
    archive(tmp_path / "bomb.pth", {name: 64}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(ValueError, match=rf"bomb\.pth .*/{name} is packed, to 67108864 bytes"):
        checkpoint.read(tmp_path / "bomb.pth")


def test_an_archive_with_a_huge_description(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    archive(tmp_path / "long.pth", {"data/0": 1, "data.pkl": 9})
    with pytest.raises(ValueError, match=r"long\.pth .*data\.pkl has 9437184 bytes"):
        checkpoint.read(tmp_path / "long.pth")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "old.pth", "gguf"])
def test_more_tensors_than_any_model_has(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(limits, "MOST_TENSORS", 20)
    file, many = tmp_path / f"many.{kind}", {f"a.{i}": torch.zeros(1) for i in range(21)}
    if kind == "safetensors":
        save_file(many, file)
    elif kind == "gguf":
        file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (10**6).to_bytes(8, "little"))
        pytest.importorskip("gguf")
    else:
        torch.save(many, file, _use_new_zipfile_serialization=kind == "pth")
    with pytest.raises(ValueError, match=rf"{kind} holds \d+ tensors; a file may have up to 20"):
        checkpoint.read(file)
