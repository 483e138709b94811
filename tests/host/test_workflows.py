"""Shipped workflows: the templates people open, and the same as prompts for scripts."""

import copy
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from devtools import inprocess
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.presets import PRESETS

pytestmark = pytest.mark.usefixtures("kept_loaders")

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
PROMPTS = sorted((ROOT / "workflows" / "api").glob("*.json"))
# As they were shipped before; people have saved them.
FIRST = sorted((ROOT / "tests" / "fixtures" / "workflows").glob("*.json"))
EARLIER = ROOT / "tests" / "fixtures" / "workflows_2026_11"
LANDED = [*FIRST, *sorted(EARLIER.glob("*.json"))]
LANDED_PROMPTS = sorted((EARLIER / "api").glob("*.json"))
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
TOY_FILES = {
    "model_name": "toy/SkyReels-V2-DF-Toy-32P/model.safetensors",
    "text_encoder_name": "toy/umt5_xxl_fp16.safetensors",
    "vae_name": "toy/Wan2.1_VAE.pth",
}
TITLE_HEIGHT = 30
# The page opens a template with 3/4 of its window filled, 10 px around the nodes.
# Heights with the title, measured in the page: the larger one of both renderers. The sampler's is
# with the previews of a film at work.
LEAST_HEIGHTS = {
    "SkyReelsV2ModelLoader": 220, "SkyReelsV2TextEncoderLoader": 140, "SkyReelsV2VAELoader": 140,
    "SkyReelsV2ImageEncoderLoader": 140, "SkyReelsV2PromptEncode": 244, "SkyReelsV2Schedule": 908,
    "SkyReelsV2Sampler": 814, "SkyReelsV2Decode": 140, "SkyReelsV2Frames": 360,
    "SkyReelsV2LanguageEndpoint": 176, "SkyReelsV2CaptionFilm": 424,
    "SkyReelsV2PromptEnhancer": 370, "SkyReelsV2FilmToVideo": 320, "SkyReelsV2Store": 292,
    "SkyReelsV2TeaCache": 220, "CreateVideo": 160, "SaveVideo": 160, "ManualSigmas": 124,
}  # fmt: skip
WINDOW, FILLED, MARGIN = (1600, 1000), 0.75, 10


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def working_nodes(template):
    return [node for node in template["nodes"] if node["type"] not in NOTES]


def node_class(kind):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[kind]


def is_widget(kind, options):
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def read_widgets(inputs, values, prefix=""):
    """Widget values by input name, taken from `values` in the order the page stores them."""
    found = {}
    for name, (kind, *rest) in (inputs.get("required", {}) | inputs.get("optional", {})).items():
        options = rest[0] if rest else {}
        if not is_widget(kind, options):
            continue
        if not values and name in inputs.get("optional", {}):
            # Added after the template was saved: the page gives it its default.
            found[prefix + name] = options["default"]
            continue
        if not values:  # saved before the widget was there: the page fills its default in
            assert "default" in options, name
            found[prefix + name] = options["default"]
            continue
        found[prefix + name] = values.pop(0)
        if options.get("control_after_generate"):
            assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(o for o in options["options"] if o["key"] == found[prefix + name])
            found |= read_widgets(chosen["inputs"], values, f"{prefix}{name}.")
    return found


def as_prompt(template):
    """What the page would send for a template."""
    links = {link[0]: [str(link[1]), link[2]] for link in template["links"]}
    prompt = {}
    for node in working_nodes(template):
        values = list(node.get("widgets_values", []))
        inputs = read_widgets(node_class(node["type"]).INPUT_TYPES(), values)
        # Core nodes gain widgets from version to version; ours are all known here.
        assert not values or not node["type"].startswith("SkyReelsV2"), (node["type"], values)
        linked = {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return prompt


def with_toy_files(prompt):
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        node["inputs"] |= {k: v for k, v in TOY_FILES.items() if k in node["inputs"]}
    return prompt


def known_inputs(prompt):
    """Class and inputs by node, without those that an older host does not know.

    Widgets of ours that a prompt does not name have their defaults, as where it is run.
    """
    known = {}
    for node_id, node in prompt.items():
        kinds = node_class(node["class_type"]).INPUT_TYPES()
        optional = kinds.get("optional", {})
        names = set(kinds.get("required", {}) | optional)
        inputs = {k: v for k, v in node["inputs"].items() if k in names or "." in k}
        if node["class_type"].startswith("SkyReelsV2"):
            widgets = {k: spec for k, spec in optional.items() if is_widget(spec[0], spec[1])}
            inputs = {k: spec[1]["default"] for k, spec in widgets.items()} | inputs
        known[node_id] = (node["class_type"], inputs)
    return known


def box(node):
    """Left, top, right and bottom, with the title; a collapsed node is its title only."""
    (x, y), (width, height) = node["pos"], node["size"]
    height = 0 if node["flags"].get("collapsed") else height
    return (x, y - TITLE_HEIGHT, x + width, y + height)


def groups_of(template, node):
    """Titles of the groups that hold all of a node."""
    left, top, right, bottom = box(node)
    found = []
    for group in template["groups"]:
        x, y, width, height = group["bounding"]
        if x <= left and y <= top and right <= x + width and bottom <= y + height:
            found.append(group["title"])
    return found


def note_of(template):
    (note,) = [n["widgets_values"][0] for n in template["nodes"] if n["type"] in NOTES]
    return note


def outputs(prompt):
    """Ids of the output nodes; the host drops those it cannot run, and goes on with the others."""
    kinds = {i: node_class(node["class_type"]) for i, node in prompt.items()}
    return sorted(i for i, kind in kinds.items() if getattr(kind, "OUTPUT_NODE", False))


def shortened(prompt):
    """At two steps, of long films the beginning, and at the least size that the model takes."""
    for node in prompt.values():
        node["inputs"] |= {k: 16 for k in ("width", "height") if node["inputs"].get(k) == 32}
        if node["class_type"] == "SkyReelsV2Schedule":
            ar_step = 2 if node["inputs"]["ar_step"] else 0
            node["inputs"] |= {"steps": 2, "ar_step": ar_step}
            if not isinstance(node["inputs"]["frames"], list):
                node["inputs"]["frames"] = min(node["inputs"]["frames"], 81)
    return prompt


def with_answers(prompt):
    """As if a language model described the toy's films; no server is there to ask."""
    said = {"subjects": [{"action": "a red circle moving right on a black background"}]}
    for node in prompt.values():
        if node["class_type"] == "SkyReelsV2LanguageEndpoint":
            node |= {"class_type": "ScriptedWords", "inputs": {"answer": json.dumps(said)}}
    return prompt


def test_there_are_workflows():
    assert TEMPLATES and PROMPTS


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
class TestTemplate:
    def test_knows_its_nodes(self, host, path):
        import nodes

        kinds = {node["type"] for node in working_nodes(load(path))}
        assert kinds <= set(nodes.NODE_CLASS_MAPPINGS)

    def test_links_have_two_ends_of_one_type(self, host, path):
        template = load(path)
        nodes_by_id = {node["id"]: node for node in template["nodes"]}
        for link_id, source, output, target, slot, kind in template["links"]:
            end = nodes_by_id[target]["inputs"][slot]
            assert link_id in nodes_by_id[source]["outputs"][output]["links"]
            # Of an input for several types, the page writes them all.
            assert end["link"] == link_id and {kind, "*"} & set(end["type"].split(","))
            assert node_class(nodes_by_id[source]["type"]).RETURN_TYPES[output] == kind
        ends = [i["link"] for n in template["nodes"] for i in n["inputs"] if i["link"] is not None]
        assert sorted(ends) == sorted(link[0] for link in template["links"])

    def test_the_host_takes_it(self, host, path):
        prompt = with_toy_files(as_prompt(load(path)))
        assert sorted(inprocess.validate(prompt)) == outputs(prompt)

    def test_no_node_covers_another(self, path):
        boxes = [box(node) for node in load(path)["nodes"]]
        for index, a in enumerate(boxes):
            for b in boxes[index + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)

    def test_no_node_grows_over_another(self, path):
        """In Nodes 2.0, where nodes are as high as what they show, and while a film is made."""
        boxes = []
        for node in load(path)["nodes"]:
            left, top, right, bottom = box(node)
            least = 0 if node["flags"].get("collapsed") else LEAST_HEIGHTS.get(node["type"], 0)
            boxes.append((left, top, right, max(bottom, top + least)))
        for index, a in enumerate(boxes):
            for b in boxes[index + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)

    def test_opens_large_enough_to_read(self, path):
        boxes = [box(node) for node in load(path)["nodes"]]
        sides = [
            max(b[axis + 2] for b in boxes) - min(b[axis] for b in boxes) + 2 * MARGIN
            for axis in (0, 1)
        ]
        assert min(FILLED * w / side for w, side in zip(WINDOW, sides, strict=True)) >= 0.7

    def test_has_few_nodes_in_groups(self, path):
        template = load(path)
        working = working_nodes(template)
        assert len(working) <= 14
        titles = {group["title"]: group["bounding"][0] for group in template["groups"]}
        numbered = sorted(title for title in titles if title[0].isdigit())
        assert [title[0] for title in numbered] == list("12345"[: len(numbered)])
        assert {title[2:] for title in numbered[:3]} == {"Models", "Prompt", "Film"}
        assert numbered[0] == "1 Models"
        for node in working:
            titles = groups_of(template, node)
            assert len(titles) == 1, (node["type"], titles)
            assert ("1 Models" in titles) == (node["type"].endswith("Loader")), node["type"]

    def test_note_leads_to_the_real_film_in_three_edits(self, path):
        template = load(path)
        note = note_of(template)
        edits = re.findall(r"^(\d)\. \*\*(.+?)\.\*\*", note, re.MULTILINE)
        assert [number for number, _ in edits] == ["1", "2", "3"] and edits[0][1] == "Models"
        folders = {
            "ModelLoader": "diffusion_models",
            "TextEncoderLoader": "text_encoders",
            "VAELoader": "vae",
            "ImageEncoderLoader": "clip_vision",
        }
        for node in working_nodes(template):
            folder = folders.get(node["type"].removeprefix("SkyReelsV2"))
            assert folder is None or f"models/{folder}" in note
        kinds = {node["type"] for node in working_nodes(template)}
        named = re.findall(r"preset to \*\*(.+?)\*\*", note)
        assert len(named) == ("SkyReelsV2Schedule" in kinds) and set(named) <= set(PRESETS)
        assert "`" not in note  # hardly readable in the page

    def test_takes_the_authors_guidance_already(self, path):
        """So that it is none of the edits."""
        cfg = {
            node["widgets_values"][2 if node["type"] != "KSampler" else 3]
            for node in working_nodes(load(path))
            if node["type"] in ("SkyReelsV2Sampler", "KSampler")
        }
        pictures = {"frames", "image_to_video"}
        assert cfg == {1.0 if path.stem == "few_steps" else 5.0 if path.stem in pictures else 6.0}

    def test_has_a_picture_that_moves(self, path):
        file = path.with_suffix(".jpg")
        with Image.open(file) as picture:
            assert picture.n_frames > 10 and file.stat().st_size < 100_000

    def test_prompt_for_scripts_is_the_same(self, host, path):
        prompt = load(path.parent / "api" / path.name)
        assert known_inputs(as_prompt(load(path))) == known_inputs(prompt)


def test_presets_keep_what_templates_need(host):
    """The third edit of every note, taken: the plan is still one that can be made."""
    for path in TEMPLATES:
        template = load(path)
        for preset in re.findall(r"preset to \*\*(.+?)\*\*", note_of(template)):
            for node in as_prompt(template).values():
                if node["class_type"] != "SkyReelsV2Schedule":
                    continue
                numbers = node["inputs"] | PRESETS[preset].numbers(upright=False)
                for name in ("seconds", "preset", "sigmas"):
                    numbers.pop(name, None)
                frames = numbers.pop("frames")
                FilmPlan(num_frames=97 if isinstance(frames, list) else frames, **numbers)


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_the_host_takes_the_prompt(host, path):
    prompt = load(path)
    assert sorted(inprocess.validate(prompt)) == outputs(prompt) != []


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_the_prompt_makes_its_film(run_prompt, look, path):
    """All of it, at two steps, and of long ones the beginning."""
    result = run_prompt(with_answers(shortened(load(path))))
    assert result.success, result.describe()
    assert [f.filename[-4:] for f in result.files if f.kind == "output"] == [".mp4"]


def test_a_second_look_at_a_film_makes_one_shot_again(run_prompt):
    """As the note of the template says; the others are read from disk, and the first comes back."""
    prompt = shortened(load(ROOT / "workflows" / "api" / "retake.json"))
    prompt["11"]["inputs"] |= {"name": "looked at twice", "watch": False}
    prompt["10"]["inputs"] |= {"text": "0s: a red circle\n1s cut: a blue circle", "seconds": 2.0}
    made = []
    for takes in ("", "shot 2: seed 8", "shot 2: take 1"):
        prompt["11"]["inputs"]["takes"] = takes
        result = run_prompt(prompt)
        assert result.success, result.describe()
        made.append("".join(result.outputs["13"]["text"]))
    assert "0 of 2 windows were on disk, 2 made" in made[0]
    assert "1 of 2 windows were on disk, 1 made" in made[1]
    assert "shot 2 has takes 1 (seed 7), 2 (seed 8, in this film)" in made[1]
    assert "2 of 2 windows were on disk, 0 made" in made[2]


@pytest.mark.parametrize("path", LANDED, ids=lambda path: path.stem)
class TestLanded:
    def test_the_host_still_takes_it(self, host, path):
        prompt = with_toy_files(as_prompt(load(path)))
        assert sorted(inprocess.validate(prompt)) == outputs(prompt)


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem)
def test_without_its_files_only_the_plan_is_made(host, path):
    prompt = as_prompt(load(path))
    kinds = {prompt[node_id]["class_type"] for node_id in inprocess.validate(prompt)}
    assert kinds == {"PreviewAny", "PreviewImage"}


@pytest.mark.parametrize("path", LANDED_PROMPTS, ids=lambda path: path.stem)
def test_the_host_still_takes_the_prompt(host, path):
    prompt = load(path)
    assert sorted(inprocess.validate(prompt)) == outputs(prompt) != []


@pytest.mark.parametrize("name", ["frames", "image_to_video"])
def test_an_earlier_prompt_still_makes_its_film(run_prompt, name):
    result = run_prompt(shortened(load(EARLIER / "api" / f"{name}.json")))
    assert result.success, result.describe()


def test_shipped_workflows_run_without_a_download(host):
    for path in (*TEMPLATES, *PROMPTS):
        prompt = load(path) if path in PROMPTS else as_prompt(load(path))
        inputs = [item for node in prompt.values() for item in node["inputs"].items()]
        files = [value for name, value in inputs if name in TOY_FILES]
        assert len(files) >= 3 and all(file.startswith("toy/") for file in files), path.name


def test_first_template_has_the_published_numbers(host):
    prompt = as_prompt(load(ROOT / "tests" / "fixtures" / "workflows" / "film_from_text_0.1.json"))
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    published = {
        "width": 960,
        "height": 544,
        "frames": 257,
        "window": 97,
        "overlap": 17,
        "steps": 30,
        "shift": 8,
        "ar_step": 0,
        "block_size": 1,
        "prefix_noise": 20,
        "fps": 24,
        "seconds": 0,
        "history": "pixels",
        "sliding": False,
        "anchor": 0.0,
        "denoise": 1.0,
        "preset": "custom",
        "idle_frames": "computed",
        "finished_frames": "computed",
        "refresh_every": 5,
    }
    assert inputs["SkyReelsV2Schedule"] == published
    assert inputs["SkyReelsV2Sampler"]["cfg"] == 6
    assert inputs["SaveVideo"]["format"] == "mp4"
