"""The pack on ComfyUI's own page, in a headless Chromium, in both of its renderers.

Where there is no Chromium (`CHROMIUM_PATH` names one that is not on the path) these are skipped.
SKYREELS_V2_FRONTEND names the unpacked `static` folder of another frontend to test with. The
server is the one of all tests, so that what is set on it is set back.
"""

import json
import re
import uuid
from pathlib import Path

import pytest
from pages import (
    await_page,
    await_plan,
    await_title,
    change_settings,
    named_links,
    open_template,
    read,
    turn,
)

from devtools import browser

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "output" / "page"
TEMPLATES = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
RENDERERS = {"classic": False, "nodes_2": True}
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Execution.PreviewMethod": "latent2rgb",
}
# The plan's name in another language, which a page is loaded with.
LANGUAGES = {
    "classic": ("zh", "\u5f71\u7247\u89c4\u5212"),
    "nodes_2": ("ja", "\u52d5\u753b\u306e\u30d7\u30e9\u30f3"),
}
ENTER, UP = 13, 38
# A fresh user has none of these files, and the page asks for them.
HOSTS_OWN = ("user.css", "/api/userdata", "accessed before initialization")
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tab(server, tmp_path_factory):
    """A tab with the page, ready."""
    program = browser.find_chromium()
    if program is None:
        pytest.skip("no Chromium is on the path, and CHROMIUM_PATH names none")
    if not server.page:
        pytest.skip("ComfyUI's page is not installed; `python3 dev.py host` fetches it")
    change_settings(server, SETTINGS)
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as chromium:
        opened = chromium.page()
        opened.open(server.url)
        await_page(opened)
        yield opened
        opened.close()


@pytest.fixture(params=RENDERERS, scope="module")
def renderer(request, tab):
    """The name of a renderer, which the page now uses."""
    script = "await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    tab.run(script, on=RENDERERS[request.param])
    return request.param


@pytest.fixture
def page(tab, renderer):
    """The tab; a test fails with what went wrong on the page."""
    tab.problems.clear()
    yield tab
    own = [one for one in tab.problems if not any(word in one for word in HOSTS_OWN)]
    assert not own


def test_templates_open_and_are_saved_as_they_were(page, renderer):
    for name in TEMPLATES:
        file = open_template(page, name)
        if any(node["type"] == "SkyReelsV2Schedule" for node in file["nodes"]):
            page.wait("document.querySelector('.srv2-line')")
        saved = page.run("return app.graph.serialize()")
        own = page.run(
            "return Object.fromEntries(app.graph.nodes.map((node) => [node.id,"
            "  (node.widgets ?? []).filter((widget) => widget.serialize !== false).length]))"
        )
        missing = page.run(
            "return app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type])"
            ".map((node) => node.type)"
        )
        assert not missing, name
        for before in file["nodes"]:
            after = next(node for node in saved["nodes"] if node["id"] == before["id"])
            values = before.get("widgets_values") or []
            # What a node has got since then stands at the end.
            saved_values = (after.get("widgets_values") or [])[: len(values)]
            assert saved_values == values, (name, before["type"])
            if before["type"].startswith("SkyReelsV2"):
                # What we draw on a node is no value of it.
                count = len(after.get("widgets_values") or [])
                assert count == own[str(before["id"])], (name, before["type"])
        assert named_links(saved) == named_links(file), name
        page.screenshot(SHOTS / f"{name}.{renderer}.png")


def test_the_plan_follows_the_widgets(page):
    open_template(page, "film_from_text")
    await_plan(page, "257 frames")
    turn(page, "frames", 14400)
    await_plan(page, "10 min 0 s, 14400 frames")
    turn(page, "seconds", 1.5)
    await_plan(page, "36 frames")
    turn(page, "preset", "14B 540P, text")
    await_plan(page, "1 window, 30 model calls")


def test_the_plan_follows_the_storyboard_and_what_is_given(page):
    open_template(page, "storyboard")
    await_plan(page, "240 frames")
    turn(page, "text", "0s: a red circle\n2s cut: a green square", "SkyReelsV2StoryboardText")
    turn(page, "seconds", 4, "SkyReelsV2StoryboardText")
    await_plan(page, "96 frames")
    await_title(page, "Shot 2, after a cut: 2 s to 4 s", 0.75, 22)
    open_template(page, "frames")
    await_title(page, "Start image", 0, 56)
    await_title(page, "Key image at 2", 0.5, 56)
    await_title(page, "End image", 1, 56)


def test_the_endpoint_is_set_where_the_host_keeps_settings(page, server):
    name, url = "SkyReelsV2.Words.Url", "http://localhost:11434/v1"
    file = server.base / "user" / "default" / "comfy.settings.json"
    set_to = "await app.extensionManager.setting.set(name, url)"
    assert page.run("return app.extensionManager.setting.get(name)", name=name) == ""  # default
    try:
        page.run(set_to, name=name, url=url)
        assert json.loads(file.read_text(encoding="utf-8"))[name] == url
    finally:
        page.run(set_to, name=name, url="")


def test_a_number_that_is_not_legal_is_set_to_the_nearest_by_a_key(page, renderer):
    open_template(page, "film_from_text")
    await_plan(page, "257 frames")
    turn(page, "overlap", 97)
    await_plan(page, "overlap is 97; it must be of the form 4k + 1")
    page.screenshot(SHOTS / f"refused.{renderer}.png")
    page.run("document.querySelector('.srv2-refused button').focus()")
    page.press("Enter", ENTER)
    await_plan(page, "257 frames")
    assert read(page, "overlap") == 29


def test_a_film_is_made_and_shown_another_is_cancelled_and_the_graph_is_kept(
    page, renderer, server
):
    open_template(page, "film_from_text")
    for name, value in {"frames": 41, "steps": 2, "ar_step": 0}.items():
        turn(page, name, value)
    page.run(
        "const { api } = await import('/scripts/api.js'); window.seen = [];"
        "for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])"
        "  api.addEventListener(name, () => window.seen.push(name));"
        "window.told = [];"
        "api.addEventListener('skyreels_v2.film', ({ detail }) => window.told.push(detail));"
        "await app.queuePrompt(0, 1);"
    )
    page.wait("window.seen.length", seconds=60)
    assert page.run("return window.seen.splice(0)") == ["execution_success"]
    page.wait("document.querySelector('video:not(.srv2-film)')?.videoWidth")
    await_film_so_far(page)
    page.screenshot(SHOTS / f"made.{renderer}.png")
    turn(page, "steps", 500)
    page.run("await app.queuePrompt(0, 1)")
    page.wait("app.runningNodeId", seconds=60)
    page.run("const { api } = await import('/scripts/api.js'); await api.interrupt(null)")
    page.wait("window.seen.length", seconds=60)
    assert page.run("return window.seen.splice(0)") == ["execution_interrupted"]
    await_kept(page, server, *LANGUAGES[renderer])


def test_a_shot_is_made_again_from_its_row(page):
    open_template(page, "storyboard")
    page.run(
        "const find = (type) => app.graph.nodes.find((node) => node.type === type);"
        "const store = LiteGraph.createNode('SkyReelsV2Store'); app.graph.add(store);"
        "if (!store.widgets.find((widget) => widget.name === 'takes'))"
        "  store.addWidget('text', 'takes', '', () => {});"
        "const sampler = find('SkyReelsV2Sampler');"
        "store.connect(0, sampler, sampler.inputs.findIndex((one) => one.name === 'store'));"
        "window.queued = 0; app.queuePrompt = () => window.queued++;"
        "const { api } = await import('/scripts/api.js'); api.dispatchCustomEvent('graphChanged');"
    )
    again = "document.querySelector('[aria-label=\"Make shot 2 again, with another seed\"]')"
    page.wait(again)
    page.run(f"{again}.click()")
    said = read(page, "takes", "SkyReelsV2Store")
    assert re.fullmatch(r"shot 2: seed \d+", said) and page.run("return window.queued") == 1
    page.run("document.querySelectorAll('.srv2-grip')[1].focus()")
    page.press("ArrowUp", UP)
    assert read(page, "takes", "SkyReelsV2Store") == said.replace("shot 2", "shot 1")
    page.run(
        "const field = document.querySelector('.srv2-take'); field.value = '3';"
        "field.dispatchEvent(new Event('change'))"
    )
    assert read(page, "takes", "SkyReelsV2Store") == "shot 1: take 3"
    page.run("delete app.queuePrompt")


def test_a_long_storyboard_in_any_writing_is_shown_in_rows(page):
    open_template(page, "storyboard")
    await_plan(page, "240 frames")
    # A picture, Arabic, a mark of direction, Hebrew.
    words = "\U0001f3ac \u0644\u0642\u0637\u0629 {} \u200f\u05de\u05e6\u05d5"
    lines = [f"{shot}s cut: {words.format(shot)}" for shot in range(500)]
    turn(page, "seconds", 500, "SkyReelsV2StoryboardText")
    turn(page, "text", "\n".join(lines), "SkyReelsV2StoryboardText")
    await_plan(page, "12000 frames")
    page.wait("document.querySelectorAll('.srv2-row').length === 500")
    shown = page.run("return document.querySelectorAll('.srv2-row textarea')[499].value")
    assert shown == words.format(499)


def test_the_strength_of_a_lora_is_a_field_of_a_row(page):
    open_template(page, "storyboard")
    kind = "SkyReelsV2StoryboardText"
    field = "document.querySelector('[aria-label=\"Strength of the LoRA in shot 2\"]')"
    page.wait("document.querySelectorAll('.srv2-row').length > 2")
    assert not page.run(f"return {field}")
    turn(page, "lora_name", "a file", kind)
    page.wait(field)
    page.run(
        f"const field = {field}; field.value = '0.5'; field.dispatchEvent(new Event('change'))"
    )
    marks = [line.split(":")[0] for line in read(page, "text", kind).splitlines()]
    assert marks[1].endswith(" lora 0.5") and "lora" not in marks[0]
    turn(page, "text", "0s: one\n2s lora -1: two", kind)
    page.wait(f"{field}?.value === '-1'")


def test_a_graph_of_a_newer_version_opens(page):
    open_template(page, "film_from_text")
    file = page.run("return app.graph.serialize()")
    schedule = next(node for node in file["nodes"] if node["type"] == "SkyReelsV2Schedule")
    schedule["inputs"].append({"name": "of_a_newer_one", "type": "FLOAT", "link": None})
    schedule["widgets_values"].append("of a newer one")
    page.run("await app.loadGraphData(file, true, true, 'newer')", file=file)
    # The page gives the last of our inputs the last of the file's values.
    await_plan(page, "finished_frames is 5; it must be one of")
    page.run("document.querySelector('.srv2-refused button').click()")
    assert read(page, "finished_frames") == "computed"
    await_plan(page, "refresh_every is 'of a newer one'; it must be a whole number")
    page.run("document.querySelector('.srv2-refused button').click()")
    await_plan(page, "257 frames")
    assert read(page, "refresh_every") == 5


def test_a_server_that_does_not_answer_is_named_on_the_node(page):
    open_template(page, "film_from_text")
    await_plan(page, "257 frames")
    page.run(
        "const { api } = await import('/scripts/api.js'); window.fetchApi = api.fetchApi;"
        "api.fetchApi = (route, ...more) => route.startsWith('/skyreels_v2/')"
        "  ? Promise.reject(new Error('it is gone')) : window.fetchApi.call(api, route, ...more);"
    )
    turn(page, "frames", 41)
    await_plan(page, "The server cannot be asked: it is gone")
    page.run("const { api } = await import('/scripts/api.js'); api.fetchApi = window.fetchApi")
    turn(page, "frames", 57)
    await_plan(page, "57 frames")


def await_film_so_far(page):
    """Play what the page was told while the film was made."""
    page.run(
        "const { FilmView } = await import('/extensions/skyreels-v2/lib/film_view.js');"
        "const view = new FilmView(); document.body.append(view.element);"
        "for (const one of window.told) await (one.begin ? view.clear(one) : view.add(one));"
        "window.view = view;"
    )
    assert "2 of 2 windows" in page.run("return view.line.textContent")
    # The film has 11 latents, and a latent 4 x 4 numbers.
    assert page.run("return [view.pictures.length, view.canvas.width]") == [11, 4]
    page.wait("view.at > 1")
    page.run("view.clear({}); view.element.remove()")


def await_kept(page, server, language, plan):
    """Load the page again, in another language: it has the same graph."""
    # Results are shown by widgets that the page does not keep; what is typed in, it keeps.
    typed = "/Schedule|PromptEncode/.test(node.type) ? node.widgets_values : null"
    graph = f"app.graph.serialize().nodes.map((node) => [node.id, node.type, {typed}])"
    before = page.run(f"return {graph}")
    # The page saves its graph now and then: it has, once the last change is in its store.
    mark = f"kept {uuid.uuid4()}"
    page.run(
        "app.graph.nodes[0].title = mark; window.changed = performance.now();"
        "app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.();",
        mark=mark,
    )
    stores = "[localStorage, sessionStorage].flatMap((store) => Object.values(store))"
    page.wait(
        f"{stores}.some((text) => text.includes(mark)) || performance.now() > changed + 1500",
        mark=mark,
    )
    change_settings(server, {"Comfy.Locale": language})
    page.run("window.left = true")
    page.call("Page.reload")
    page.wait("!window.left", seconds=60)
    await_page(page)
    same = "JSON.stringify(now.sort()) === JSON.stringify(before.sort())"
    page.wait(f"((now) => {same})({graph})", before=before)
    page.wait("document.querySelector(`[aria-label='${plan}'] .srv2-title`)", plan=plan)
    label, prompt = page.run(
        "const node = app.graph.nodes.find((node) => node.type === 'SkyReelsV2Schedule');"
        "const widget = node.widgets.find((widget) => widget.name === 'history');"
        "const { output } = await app.graphToPrompt();"
        "return [widget.options.getOptionLabel(widget.value), output[node.id].inputs.history]"
    )
    assert prompt == "pixels" and re.fullmatch("[\u4e00-\u9fff]+\uff08pixels\uff09", label)
    page.run(
        "const words = await import('/extensions/skyreels-v2/lib/words.js'); words.takeWords({})"
    )
    # Told by the page, it would load its graph once more, after this test.
    change_settings(server, {"Comfy.Locale": "en"})


def test_what_a_node_says_is_shown_in_the_language_of_the_page(page):
    """Also where the page itself shows it: how far a film is, and why a run has failed."""
    open_template(page, "film_from_text")
    said = page.run(
        "const words = await import('/extensions/skyreels-v2/lib/words.js');"
        "words.takeWords(await (await fetch('/extensions/skyreels-v2/words/zh.json')).json());"
        "const { api } = await import('/scripts/api.js');"
        "const node = app.graph.nodes.find((node) => node.type === 'SkyReelsV2Sampler');"
        "const hear = (name, detail) => new Promise((told) => {"
        "  const stop = (event) => { event.stopImmediatePropagation(); told(event.detail); };"
        "  api.addEventListener(name, stop, { capture: true, once: true });"
        "  api.dispatchCustomEvent(name, detail); });"
        "const text = 'Window 1 of 2, model call 3 of 6, 40 s left. 0 of 41 frames done';"
        "const wrong = 'cfg is 200; it must be 0 to 100; nearest: 100';"
        "const failed = { exception_message: wrong, node_id: String(node.id), traceback: [] };"
        "const told = [await hear('progress_text', { nodeId: String(node.id), text }),"
        "  await hear('execution_error', { ...failed, node_type: node.type }),"
        "  await hear('execution_error', { ...failed, node_type: 'KSampler' })];"
        "words.takeWords({}); return told"
    )
    assert not re.search("[a-z]", said[0]["text"]) and "40" in said[0]["text"]
    ours, english = said[1]["exception_message"].split("\n\n")
    assert (
        english == said[2]["exception_message"] == "cfg is 200; it must be 0 to 100; nearest: 100"
    )
    assert re.fullmatch("cfg [^a-z]+", ours) and ours.endswith("100")
