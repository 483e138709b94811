"""The main job as it is shipped: the demo's film shows each shot's prompt in every window."""

import json
from pathlib import Path

import pytest

from devtools import inprocess
from toy import measure

pytestmark = pytest.mark.usefixtures("kept_loaders")

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "api" / "storyboard.json"


def test_demo_film_shows_its_shots_in_every_window(run_prompt):
    workflow = measure.Workflow.read(WORKFLOW)
    assert len(workflow.prompts) == 3 and workflow.plan.num_frames == 240
    result = run_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    assert result.success, result.describe()
    frames = measure.read_film(inprocess.absolute(result.files[0]))
    assert len(frames) == 240
    scores = workflow.scores(frames)
    assert len(scores) == workflow.plan.num_windows
    assert all(score.ok for score in scores), [s for s in scores if not s.ok]
    reversed_film = workflow.scores(frames[::-1])
    assert not any(score.ok for score in reversed_film)


@pytest.mark.parametrize("name", ["image_to_video", "frames"])
def test_a_templates_film_shows_its_prompt_in_every_window(run_prompt, name):
    prompt = json.loads((WORKFLOW.parent / f"{name}.json").read_text(encoding="utf-8"))
    result = run_prompt(prompt)
    assert result.success, result.describe()
    frames = measure.read_film(inprocess.absolute(result.files[0]))
    kinds = {node["class_type"]: node["inputs"] for node in prompt.values()}
    plan = kinds["SkyReelsV2Schedule"]
    assert len(frames) == plan["frames"]
    spans = measure.window_spans(len(frames), plan["window"], plan["overlap"])
    scores = measure.scores(frames, kinds["SkyReelsV2PromptEncode"]["prompt"], spans)
    assert all(score.ok for score in scores), [s for s in scores if not s.ok]
