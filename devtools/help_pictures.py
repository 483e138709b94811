"""The help pages' pictures: each node as ComfyUI's page shows it, above frames of a film it made.

    python3 -m devtools.help_pictures --comfyui COMFYUI [NODE ...]

Opens a template with each node, or a graph of that node alone, and writes
js/docs/pictures/NODE.jpg. The frames are the template's thumbnail's (`devtools.thumbnails`).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # The root's `nodes` would shadow the host's.
    sys.path[0] = str(ROOT)

from devtools import browser, serving  # noqa: E402

PICTURES = ROOT / "js" / "docs" / "pictures"
FIRST = (
    "film_from_text"  # the template that is tried first, and whose film stands for nodes of none
)
FRAMES, SIDE, GAP = 6, 92, 6  # px
MARGIN, CORNER = 10, (340, 180)  # px: around the node, and where it is put on the page
DARK = (24, 25, 29)
# Without these a new user is shown ComfyUI's own welcome.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
READY = (
    "window.app?.graph && window.LiteGraph?.registered_node_types?.SkyReelsV2Schedule"
    " && window.app.extensionManager?.workflow?.activeWorkflow"
)
SHOW = """
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
if (template) {
  const file = await fetch(`/api/workflow_templates/skyreels-v2/${template}.json`);
  await app.loadGraphData(await file.json(), true, true, template, { openSource: 'template' });
} else {
  app.graph.clear();
  app.graph.add(LiteGraph.createNode(kind));
}
await pause(600);
const node = app.graph.nodes.find((node) => node.type === kind);
const [x, y, width, height] = node.getBounding();
const page = app.canvas.canvas.getBoundingClientRect();
app.canvas.ds.scale = 1;
app.canvas.ds.offset[0] = corner[0] - page.left - x;
app.canvas.ds.offset[1] = corner[1] - page.top - y;
app.canvas.deselectAll?.();
app.canvas.setDirty(true, true);
await pause(900);
return { width, height };
"""


def find_template(kind: str) -> str:
    """The first template that shows this kind of node unfolded; empty where there is none."""
    files = sorted((ROOT / "workflows").glob("*.json"))
    for file in sorted(files, key=lambda file: file.stem != FIRST):
        nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
        folded = [node["flags"].get("collapsed", False) for node in nodes if node["type"] == kind]
        if not all(folded):
            return file.stem
    return ""


def take(page: browser.Page, kind: str, template: str) -> Any:
    """The node as a picture."""
    from PIL import Image

    size = page.run(SHOW, kind=kind, template=template, corner=CORNER)
    clip = {
        "x": CORNER[0] - MARGIN,
        "y": CORNER[1] - MARGIN,
        "width": size["width"] + 2 * MARGIN,
        "height": size["height"] + 2 * MARGIN,
        "scale": 1,
    }
    answer = page.call("Page.captureScreenshot", format="png", clip=clip)
    return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")


def draw(node: Any, film: Path, target: Path) -> None:
    """The node, and a row of the film's frames under it."""
    from PIL import Image, ImageSequence

    cards = [card.convert("RGB") for card in ImageSequence.Iterator(Image.open(film))]
    row = FRAMES * SIDE + (FRAMES + 1) * GAP
    width = max(row, node.width)
    picture = Image.new("RGB", (width, node.height + SIDE + 2 * GAP), DARK)
    picture.paste(node, ((width - node.width) // 2, 0))
    for number in range(FRAMES):
        card = cards[number * (len(cards) - 1) // (FRAMES - 1)]
        left, edge = (card.width - card.height) // 2, card.height
        frame = card.crop((left, 0, left + edge, edge - 3)).resize((SIDE, SIDE))
        picture.paste(frame, ((width - row) // 2 + GAP + number * (SIDE + GAP), node.height + GAP))
    picture.save(target, "JPEG", quality=85)


def main() -> int:
    """Make the pictures; 1 where there is no Chromium."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("nodes", nargs="*")
    options = parser.parse_args()
    kinds = options.nodes or sorted(file.stem for file in (ROOT / "js" / "docs").glob("*.md"))
    program = browser.find_chromium()
    if program is None:
        print("no Chromium is on the path, and CHROMIUM_PATH names none", file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        base = Path(work)
        server = serving.Server(
            python=Path(sys.executable),
            host=options.comfyui,
            base=base,
            port=serving.free_port(),
            cpu=True,
            page=True,
            log=base / "server.log",
        )
        with server as running, browser.Browser(program, base / "profile") as chromium:
            body = json.dumps(SETTINGS).encode()
            urllib.request.urlopen(urllib.request.Request(f"{running.url}/settings", body)).close()
            page = chromium.page()
            window = {"width": 1600, "height": 2000, "deviceScaleFactor": 1, "mobile": False}
            page.call("Emulation.setDeviceMetricsOverride", **window)
            page.open(running.url)
            page.wait(READY, seconds=90)
            for kind in kinds:
                template = find_template(kind)
                film = ROOT / "workflows" / f"{template or FIRST}.jpg"
                draw(take(page, kind, template), film, PICTURES / f"{kind}.jpg")
                print(f"{kind}: {template or 'alone'}", flush=True)
            page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
