"""The example makes its film, and the film shows what its prompt says."""

import importlib.util
from pathlib import Path

import pytest

from toy import measure

FILE = Path(__file__).resolve().parents[2] / "example.py"


@pytest.mark.slow
def test_example(tmp_path):
    spec = importlib.util.spec_from_file_location("example", FILE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(tmp_path / "film.mp4"))
    frames = measure.read_film(tmp_path / "film.mp4")
    assert frames.shape[:3] == (81, 32, 32)
    spans = measure.window_spans(len(frames), 33, 17)
    scores = measure.scores(frames, example.PROMPT, spans)
    assert len(scores) == 4 and all(score.ok for score in scores)
