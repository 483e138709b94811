"""Shipped workflows: the templates people open, and the same as prompts for scripts."""

import copy
import json
from pathlib import Path

import pytest

from devtools import inprocess

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
PROMPTS = sorted((ROOT / "workflows" / "api").glob("*.json"))
# As they were first shipped; people have saved them.
LANDED = sorted((ROOT / "tests" / "fixtures" / "workflows").glob("*.json"))
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
TOY_FILES = {
    "model_name": "toy/SkyReels-V2-DF-Toy-32P/model.safetensors",
    "text_encoder_name": "toy/umt5_xxl_fp16.safetensors",
    "vae_name": "toy/Wan2.1_VAE.pth",
}
TITLE_HEIGHT = 30


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


def wiring(prompt):
    """The links of a prompt by class, without the previews."""
    kind = {node_id: node["class_type"] for node_id, node in prompt.items()}
    return {
        (kind[value[0]], value[1], kind[node_id], name)
        for node_id, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and not kind[node_id].startswith("Preview")
    }


def outputs(prompt):
    """Ids of the output nodes; the host drops those it cannot run, and goes on with the others."""
    kinds = {i: node_class(node["class_type"]) for i, node in prompt.items()}
    return sorted(i for i, kind in kinds.items() if getattr(kind, "OUTPUT_NODE", False))


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
            assert end["link"] == link_id and end["type"] in (kind, "*")
            assert node_class(nodes_by_id[source]["type"]).RETURN_TYPES[output] == kind
        ends = [i["link"] for n in template["nodes"] for i in n["inputs"] if i["link"] is not None]
        assert sorted(ends) == sorted(link[0] for link in template["links"])

    def test_the_host_takes_it(self, host, path):
        prompt = with_toy_files(as_prompt(load(path)))
        assert sorted(inprocess.validate(prompt)) == outputs(prompt)

    def test_no_node_covers_another(self, path):
        boxes = []
        for node in load(path)["nodes"]:
            (x, y), (width, height) = node["pos"], node["size"]
            boxes.append((x, y - TITLE_HEIGHT, x + width, y + height))
        for index, a in enumerate(boxes):
            for b in boxes[index + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)

    def test_a_note_says_where_files_go(self, path):
        notes = [n["widgets_values"][0] for n in load(path)["nodes"] if n["type"] in NOTES]
        names = [
            value
            for node in working_nodes(load(path))
            if node["type"].endswith("Loader")
            for value in node["widgets_values"][:1]
        ]
        assert names and all(any(name in note for note in notes) for name in names)

    def test_has_a_picture(self, path):
        assert path.with_suffix(".jpg").is_file()

    def test_prompt_for_scripts_is_wired_alike(self, host, path):
        assert wiring(as_prompt(load(path))) == wiring(load(path.parent / "api" / path.name))


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_the_host_takes_the_prompt(host, path):
    prompt = load(path)
    assert sorted(inprocess.validate(prompt)) == outputs(prompt) != []


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_the_prompt_makes_its_film(run_prompt, path):
    """All of it, at two steps, and of long ones the beginning."""
    prompt = load(path)
    for node in prompt.values():
        if node["class_type"] == "SkyReelsV2Schedule":
            ar_step = 2 if node["inputs"]["ar_step"] else 0
            frames = min(node["inputs"]["frames"], 81)
            node["inputs"] |= {"steps": 2, "ar_step": ar_step, "frames": frames}
    result = run_prompt(prompt)
    assert result.success, result.describe()
    assert [file.filename[-4:] for file in result.files] == [".mp4"]


@pytest.mark.parametrize("path", LANDED, ids=lambda path: path.stem)
class TestLanded:
    def test_the_host_still_takes_it(self, host, path):
        prompt = with_toy_files(as_prompt(load(path)))
        assert sorted(inprocess.validate(prompt)) == outputs(prompt)

    def test_without_its_files_only_the_plan_is_made(self, host, path):
        prompt = as_prompt(load(path))
        kinds = {prompt[node_id]["class_type"] for node_id in inprocess.validate(prompt)}
        assert kinds == {"PreviewAny", "PreviewImage"}


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
    }
    assert inputs["SkyReelsV2Schedule"] == published
    assert inputs["SkyReelsV2Sampler"]["cfg"] == 6
    assert inputs["SaveVideo"]["format"] == "mp4"
