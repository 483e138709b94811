"""What the page's tests do on it: settings, templates, widgets, and waiting for the plan."""

import json
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def change_settings(server, settings):
    """What a person sets, as the page tells the server."""
    body = json.dumps(settings).encode()
    request = urllib.request.Request(f"{server.url}/settings", data=body)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def await_page(tab):
    known = "window.app?.graph && window.LiteGraph?.registered_node_types?.SkyReelsV2Schedule"
    tab.wait(known, seconds=90)
    # The page then opens a graph of its own, which must not come after a test's.
    tab.wait("window.app?.extensionManager?.workflow?.activeWorkflow", seconds=90)
    tab.run("await new Promise((done) => setTimeout(done, 500))")


def open_template(page, name):
    """Open a template as the template browser does; its JSON."""
    page.run(
        "const file = await fetch(`/api/workflow_templates/skyreels-v2/${name}.json`);"
        "await app.loadGraphData(await file.json(), true, true, name, {openSource: 'template'});",
        name=name,
    )
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def named_links(workflow):
    """Links by the names of the inputs they lead to, whose order may be the page's own."""
    inputs = {node["id"]: node["inputs"] for node in workflow["nodes"]}
    return sorted(
        (number, origin, output, target, inputs[target][slot]["name"], kind)
        for number, origin, output, target, slot, kind in workflow["links"]
    )


def turn(page, name, value, kind="SkyReelsV2Schedule"):
    """Set a widget as the page does when a person turns it."""
    page.run(
        "const node = app.graph.nodes.find((node) => node.type === kind);"
        "const widget = node.widgets.find((widget) => widget.name === name);"
        "widget.value = value; widget.callback?.(value, app.canvas, node);",
        **{"kind": kind, "name": name, "value": value},
    )


def read(page, name, kind="SkyReelsV2Schedule"):
    return page.run(
        "return app.graph.nodes.find((node) => node.type === kind)"
        ".widgets.find((widget) => widget.name === name).value",
        **{"kind": kind, "name": name},
    )


def await_plan(page, text):
    """Wait until the plan's words have this text."""
    words = "document.querySelector('[aria-label=\"Plan of the film\"] [role=status]')"
    page.wait(f"{words}?.innerText.includes(text)", text=text)


def await_title(page, text, across, down):
    """Wait until a part of the timeline, so far across (0 to 1) and so many pixels down, has it."""
    page.wait(
        "((line) => {"
        "  if (!line) return false;"
        "  const { left, top, width, height } = line.getBoundingClientRect();"
        "  const spot = { clientX: left + across * width, clientY: top + (down / 62) * height };"
        "  line.dispatchEvent(new PointerEvent('pointermove', spot));"
        "  return line.querySelector('title').textContent.startsWith(text);"
        "})(document.querySelector('.srv2-line'))",
        **{"text": text, "across": across, "down": down},
    )
