"""PyTorch's zip archives, looked at before anything in them is unpacked."""

from __future__ import annotations

import pathlib
import struct
import zipfile

from .limits import MOST_TENSORS

# What describes the tensors, and all else that is none: 0.2 MB in the largest published model.
_LARGEST_OTHER = 8 << 20
# The archive's own list of what is in it, by a generous length of an entry.
_LARGEST_LIST = 400 * MOST_TENSORS
_END, _END_SIZE, _LONGEST_COMMENT = b"PK\5\6", 22, 65535


def check_archive(file: pathlib.Path) -> None:
    """Raise ValueError for an archive that would take more to unpack than tensors take.

    PyTorch stores its members as they are, so that none is larger than the file. A compressed one
    may be a thousand times as large, and it would be unpacked before anything in it is looked at.
    """
    try:
        _check_list(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is not a whole PyTorch file: {error}"
        ) from error
    if len(members) > 2 * MOST_TENSORS:
        raise _refusal(file, f"it has {len(members)} members")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _refusal(
                file, f"its member {member.filename} is packed, to {member.file_size} bytes"
            )
        is_data = pathlib.PurePosixPath(member.filename).parent.name == "data"
        if not is_data and member.file_size > _LARGEST_OTHER:
            raise _refusal(file, f"its member {member.filename} has {member.file_size} bytes")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise _refusal(file, "its members are larger than itself")


def _check_list(file: pathlib.Path) -> None:
    """Raise ValueError where the archive's list of members is longer than any model's."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - _END_SIZE - _LONGEST_COMMENT))
        end = opened.read()
    at = end.rfind(_END)
    if at < 0:
        raise ValueError("its end is missing; it is likely truncated, fetch it again")
    (length,) = struct.unpack_from("<I", end, at + 12)
    if length > _LARGEST_LIST:
        raise ValueError(f"its list of members has {length} bytes, many times that of any model")


def _refusal(file: pathlib.Path, why: str) -> ValueError:
    return ValueError(
        f"{file.name} is no file that PyTorch writes and is refused: {why}; get the safetensors "
        f"version of it"
    )
