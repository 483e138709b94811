"""Errors of missing memory: known whatever says them, and explained once."""

from fractions import Fraction

import pytest
import torch

from skyreels_model.lack import explain_lack, lacks_memory
from skyreels_model.video import pixels
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.writer import FilmWriter


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (OSError("out of memory"), False),
    ],
    ids=str,
)
def test_errors_of_missing_memory(error, lacks):
    assert lacks_memory(error) is lacks


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("CUDA error: out of memory"), torch.OutOfMemoryError),
        (RuntimeError("MPS backend out of memory"), torch.OutOfMemoryError),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), torch.OutOfMemoryError),
    ],
    ids=str,
)
def test_they_are_explained_once_and_a_gpus_stays_one(error, kind):
    with (
        pytest.raises(kind) as raised,
        explain_lack("the node", "close something"),
        explain_lack("its part", "choose less"),
    ):
        raise error
    reported = str(error) or "MemoryError"
    assert str(raised.value) == (
        f"its part: there is not enough memory; choose less. Reported: {reported}"
    )


def test_other_errors_pass_as_they_are():
    error = RuntimeError("mat1 and mat2")
    with pytest.raises(RuntimeError) as raised, explain_lack("what", "advice"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_coding_without_memory_leaves_nothing_and_says_what_to_change(tmp_path, monkeypatch, kind):
    calls = []

    def fail(frames, most):
        calls.append(frames)
        if len(calls) > 2:
            raise kind("as the test wants it")
        return to_levels(frames, most)

    to_levels = pixels.to_levels
    monkeypatch.setattr(pixels, "to_levels", fail)
    writer = FilmWriter(tmp_path / "film.mp4", VideoSettings("h264"), Fraction(24))
    with pytest.raises(kind, match=r"writing the video: there is not enough .*Choose codec h264"):
        with writer:
            writer.write(torch.rand(5, 16, 16, 3))
    assert not sorted(tmp_path.iterdir())
