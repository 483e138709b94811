"""Templates through clients that others have written: ComfyUI's own, and independent packages.

Skipped where a client is not installed: `pip install comfy-cli comfy-api-simplified` and
`pip install "comfy-script[runtime]"`.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from toy import measure

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "workflows" / "api" / "film_from_text.json"
FRAMES = 21
pytestmark = pytest.mark.server


@pytest.fixture
def workflow(tmp_path):
    """The file of a template's graph, short and of its own seed, so that nothing is cached."""
    graph = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    for one in graph.values():
        if one["class_type"] == "SkyReelsV2Schedule":
            one["inputs"] |= {"frames": FRAMES, "window": 17, "overlap": 9, "steps": 2}
        if one["class_type"] == "SaveVideo":
            one["inputs"]["filename_prefix"] = tmp_path.name
    file = tmp_path / "film.json"
    file.write_text(json.dumps(graph))
    return file


def test_comfy_cli(server, workflow, tmp_path):
    program = shutil.which("comfy")
    if program is None:
        pytest.skip("comfy-cli is not installed")
    host, _, port = server.url.removeprefix("http://").partition(":")
    command = [program, "--skip-prompt", "run", "--workflow", workflow, "--wait"]
    command += ["--host", host, "--port", port, "--timeout", "60"]
    # Its settings and records go to a folder of the test's.
    own = {**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    subprocess.run(
        [program, "--skip-prompt", "tracking", "disable"], env=own, check=True, capture_output=True
    )
    done = subprocess.run(list(map(str, command)), env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (film,) = Path(server.output_folder).glob(f"{tmp_path.name}*.mp4")
    assert len(measure.read_film(film)) == FRAMES


def test_comfy_api_simplified(server, workflow, tmp_path):
    client = pytest.importorskip("comfy_api_simplified")
    graph = client.ComfyWorkflowWrapper(str(workflow))
    graph.set_node_param("Prompt", "prompt", "a green circle moving up on a grey background")
    api = client.ComfyApiWrapper(server.url)
    # What it gathers meanwhile are binary messages, of which our progress in words is one.
    number, _ = asyncio.run(api.queue_prompt_and_wait(graph))
    saved = api.get_history(number)[number]["outputs"][graph.get_node_id("Save video")]
    (file,) = saved["images"]
    film = tmp_path / "film.mp4"
    film.write_bytes(api.get_image(file["filename"], file["subfolder"], file["type"]))
    assert len(measure.read_film(film)) == FRAMES


# Each node is a function there, with the node's inputs in their order.
SCRIPT = """
from comfy_script.runtime import *
load("{url}")
from comfy_script.runtime.nodes import *
with Workflow(wait=True):
    model, _ = SkyReelsV2ModelLoader("toy/SkyReels-V2-DF-Toy-32P/model.safetensors", "default")
    clip, _ = SkyReelsV2TextEncoderLoader("toy/umt5_xxl_fp16.safetensors")
    vae, _ = SkyReelsV2VAELoader("toy/Wan2.1_VAE.pth")
    positive, negative = SkyReelsV2PromptEncode(clip, "a red circle on black", "")
    schedule = SkyReelsV2Schedule(32, 32, {frames}, 17, 9, 2, 5.0, 0, 1, 20, 24)
    latent = SkyReelsV2Sampler(model, positive, negative, schedule[0], 7, 6.0, "unipc", vae)[0]
    SaveVideo(CreateVideo(SkyReelsV2Decode(latent, vae), schedule[4]), "{name}", "mp4", "h264")
"""


def test_comfy_script(server, tmp_path):
    if find_spec("comfy_script") is None:
        pytest.skip("comfy-script is not installed")
    names = {"url": server.url, "frames": FRAMES, "name": tmp_path.name}
    script = tmp_path / "film.py"  # which it reads again, to keep it with the film
    script.write_text(SCRIPT.format(**names))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (film,) = Path(server.output_folder).glob(f"{tmp_path.name}*.mp4")
    assert len(measure.read_film(film)) == FRAMES
