"""The main job as it is shipped: the demo's film shows its prompt from first to last window."""

import json
from pathlib import Path

from devtools import inprocess
from toy import measure

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "api" / "film_from_text.json"


def test_demo_film_shows_its_prompt_in_every_window(run_prompt, tmp_path):
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    plan = prompt["5"]["inputs"]
    numbers = [plan[k] for k in ("frames", "window", "overlap", "prefix_noise", "fps")]
    assert numbers == [257, 33, 17, 20, 24] and plan["ar_step"] > 0
    result = run_prompt(prompt)
    assert result.success, result.describe()
    film = inprocess.absolute(result.files[0])
    frames = measure.read_film(film)
    spans = measure.window_spans(257, 33, 17)
    scores = measure.scores(frames, prompt["4"]["inputs"]["prompt"], spans)
    assert len(frames) == 257 and len(scores) == 15
    assert all(score.ok for score in scores), [s for s in scores if not s.ok]
    wrong = measure.scores(frames, "a blue circle moving left on a white background", spans)
    assert not any(score.ok for score in wrong)
