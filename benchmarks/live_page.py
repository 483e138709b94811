"""How long the page takes for ten minutes of film, from a widget's turn to the drawn plan.

    python3 benchmarks/live_page.py --comfyui COMFYUI [--turns 15]

Opens the template film_from_text in a headless Chromium, makes it ten minutes long and turns one
number again and again. Prints, in milliseconds, the least and the median from the turn until the
plan is in the page, and of them how long the page itself works (questions read, answers drawn, the
page's layout), the server and the way to it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from devtools import browser, serving  # noqa: E402

FRAMES = 14400
RENDERERS = {"classic": False, "nodes_2": True}
SHAPES: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "blocks of 1": {"ar_step": 5, "block_size": 1},
    "windows of 401": {"ar_step": 5, "block_size": 1, "window": 401},
    "sliding": {"ar_step": 5, "block_size": 1, "sliding": True},
}
OPEN = """
const file = await fetch('/api/workflow_templates/skyreels-v2/film_from_text.json');
await app.loadGraphData(await file.json(), true, true, 'film', {openSource: 'template'});
const { PlanView } = await import('/extensions/skyreels-v2/lib/plan_view.js');
const { api } = await import('/scripts/api.js');
const show = PlanView.prototype.show;
PlanView.prototype.show = function (...given) {
  const begin = performance.now();
  const shown = show.apply(this, given);
  this.element.getBoundingClientRect(); // the page's layout is part of it
  window.drawn = { begin, end: performance.now() };
  return shown;
};
const fetchApi = api.fetchApi;
api.fetchApi = async function (route, ...more) {
  if (!route.startsWith('/skyreels_v2/')) return fetchApi.call(this, route, ...more);
  window.asked = performance.now();
  const answer = await fetchApi.call(this, route, ...more);
  window.answered = performance.now();
  return answer;
};
window.turnNumbers = (numbers) => {
  const node = app.graph.nodes.find((one) => one.type === 'SkyReelsV2Schedule');
  for (const [name, value] of Object.entries(numbers)) {
    const widget = node.widgets.find((one) => one.name === name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
};
"""
# Each turn until the answer to it is drawn.
TURN = """
const times = [];
for (let turn = 0; turn < turns; turn++) {
  window.drawn = null;
  const begin = performance.now();
  window.turnNumbers({ prefix_noise: turn });
  while (!window.drawn) await new Promise((done) => setTimeout(done, 1));
  const { drawn } = window;
  times.push({ all: drawn.end - begin, page: drawn.end - drawn.begin + window.asked - begin,
    server: window.answered - window.asked });
  await new Promise((done) => setTimeout(done, 150));
}
return times;
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--turns", type=int, default=15)
    return parser.parse_args()


def _await_page(page: browser.Page) -> None:
    page.wait("window.LiteGraph?.registered_node_types?.SkyReelsV2Schedule", seconds=90)
    page.wait("window.app?.extensionManager?.workflow?.activeWorkflow", seconds=90)


def _report(name: str, times: list[dict[str, float]]) -> None:
    columns = ([one[key] for one in times] for key in ("all", "page", "server"))
    found = [f"{min(one):6.1f} {statistics.median(one):6.1f}" for one in columns]
    print(f"{name:26} {'   '.join(found)}", flush=True)


def _measure(page: browser.Page, turns: int) -> None:
    for renderer, on in RENDERERS.items():
        page.run("await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on=on)
        page.run(OPEN)
        for name, numbers in SHAPES.items():
            plan = {"frames": FRAMES, "sliding": False, "window": 97, **numbers}
            page.run("window.turnNumbers(plan)", plan=plan)
            page.wait("window.drawn")
            page.run("await new Promise((done) => setTimeout(done, 500))")  # the page's own work
            _report(f"{renderer}, {name}", page.run(TURN, turns=turns))


def main() -> int:
    """Print the table."""
    options = _arguments()
    program = browser.find_chromium()
    if program is None:
        print("no Chromium is on the path, and CHROMIUM_PATH names none")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        server = serving.Server(
            python=Path(sys.executable),
            host=options.comfyui,
            base=Path(folder) / "host",
            port=serving.free_port(),
            cpu=True,
            page=True,
            log=Path(folder) / "server.log",
        )
        with server, browser.Browser(program, Path(folder) / "profile") as chromium:
            page = chromium.page()
            page.open(server.url)
            _await_page(page)
            print(f"{'':26} in all          the page        the server")
            print(f"{'':26} {'   '.join([' least median'] * 3)}")
            _measure(page, options.turns)
            page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
