"""Random wrong inputs for every node, and what is made of them: refused clearly, or a fault.

Each case runs one node in a real ComfyUI. Its inputs are what a working graph gives it, but for
one to three: those are given by a link, past the bounds of widgets, or as a prompt over the API has
them.
"""

import dataclasses
import math
import os
import random
import re

import torch

import graphs
from graphs.odd_values import graph_of_objects, values

REFUSED, MADE, UNCLEAR, NONSENSE = "refused", "made", "unclear", "nonsense"
# What a person can act on: a rule, or what to do.
RULES = re.compile(
    r"must be|needed|needs|connect|disconnect|use |set |choose|takes|get |fetch|there are|"
    r"of which|such as|at least|turn |give |shorten|make |failed|outside|best|[Tt]ry |append "
)
# What Python and PyTorch say of their insides.
RAW = re.compile(
    r"size of tensor|has no attribute|NoneType|not supported between|must match|mat1|out of bounds|"
    r"object is not|Error\b|unexpected keyword|positional argument|expected scalar|CUDA|__\w+__"
)
# A number of a summary that is none.
NO_NUMBER = re.compile(r"(?<![\w'])(nan|inf|None)(?![\w'])")
WIDGETS = ("BOOLEAN", "COMBO", "FLOAT", "INT", "STRING")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case: its kind, and why, or the host's words."""

    kind: str
    words: str = ""


# Values of an input's own kind are drawn more often: what is nearly right goes deeper.
OWN_KIND, WITHIN_BOUNDS = 0.7, 0.5
# Half of the numbers in the lowest 60th: what is large and legal takes its time.
POWER = 6


def kind_of(value):
    """The type of socket that a plain value is for."""
    if isinstance(value, dict):
        return "LATENT"
    if isinstance(value, list):
        return "CONDITIONING"
    if isinstance(value, torch.Tensor):
        return "SIGMAS" if value.ndim <= 2 else "IMAGE"
    kinds = {bool: "BOOLEAN", str: "STRING", int: "INT", float: "FLOAT"}
    return kinds.get(type(value), "other")


def is_for(kind, own):
    """Whether a value of the type `own` could be for an input of this type."""
    return own == kind or {own, kind} in ({"INT", "FLOAT"}, {"STRING", "COMBO"})


def plain(value):
    """Whether a prompt over the API can hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(one) for key, one in value.items())
    return value is None or type(value) in (bool, int, float, str)


def within(fraction, declared):
    """A number between the bounds of a widget; the smaller ones more often."""
    least, most = declared[1]["min"], declared[1]["max"]
    number = least + (most - least) * fraction**POWER
    return int(number) if declared[0] == "INT" else number


def cases(inputs, objects, count, seed):
    """(node class, {input: (name of a value, by link)}) of so many cases, every input as often.

    inputs: what each node class declares, by input: (type, options). objects: the types of values
    that the host made, by name. A number as the name of a value is a share of the widget's bounds.
    """
    draw, deck = random.Random(seed), []
    kinds = {name: kind_of(value) for name, value in values().items()} | objects
    names, offered = sorted(kinds), values()
    for _ in range(count):
        if not deck:
            deck = [(one, name) for one in sorted(inputs) for name in sorted(inputs[one])]
            draw.shuffle(deck)
        one, first = deck.pop()
        more = draw.sample(sorted(inputs[one]), min(draw.choice((0, 0, 1, 2)), len(inputs[one])))
        mutated = {}
        for name in dict.fromkeys([first, *more]):
            declared = inputs[one][name]
            own = [value for value in names if is_for(declared[0], kinds[value])]
            bounded = declared[0] in ("INT", "FLOAT") and draw.random() < WITHIN_BOUNDS
            if bounded:
                mutated[name] = (draw.random(), draw.random() < 0.5)
                continue
            value = draw.choice(own if own and draw.random() < OWN_KIND else names)
            # A list in a prompt is read as a link.
            mutated[name] = (value, not plain(offered.get(value, object())) or draw.random() < 0.7)
        yield one, mutated


def working_graph(lora_name, words_name):
    """A graph in which every node of the pack works, with a value for every input it has."""
    image = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=0)
    text = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    return {
        **graphs.film(frames=17, window=9, overlap=5, steps=2),
        "8": graphs.node("SkyReelsV2ImageEncoderLoader", image_encoder_name=text),
        "9": graphs.node(
            "SkyReelsV2ImageToVideo",
            positive=["4", 0], negative=["4", 1], vae=["3", 0], start_image=["20", 0],
            width=32, height=32, frames=9, clip_vision=["8", 0], fit="crop",
        ),
        "10": graphs.node("SkyReelsV2Frames", schedule=["5", 0], start_image=["20", 0]),
        "11": graphs.node("SkyReelsV2Storyboard", clip=["2", 0], prompt="a", seconds=0.5),
        "12": graphs.node("SkyReelsV2StoryboardText", clip=["2", 0], text="0s: a", seconds=0.5),
        "13": graphs.node("SkyReelsV2ColorAnchor", samples=["6", 0], strength=0.5),
        "14": graphs.node("SkyReelsV2Encode", pixels=["20", 0], vae=["3", 0]),
        "15": graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name=lora_name, strength=1.0
        ),
        "16": graphs.node(
            "SkyReelsV2TeaCache", model=["1", 0], mode="automatic", threshold=0.1, start=0.0,
            end=0.1,
        ),
        # Or a film of another case would be taken from the disk.
        "17": graphs.node("SkyReelsV2Store", name="fuzz", save_every=60.0, start_afresh=True),
        "18": graphs.node(
            "SkyReelsV2FilmToVideo", samples=["6", 0], vae=["3", 0], filename_prefix="fuzz",
            codec="h264", quality=50, bit_depth="8", fps=0.0,
        ),
        "19": graphs.node(
            "SkyReelsV2MultiGPU", model=["1", 0], gpus="cpu:1", split_prompts="automatic",
            ulysses=0, patience=300.0,
        ),
        "20": image,
        "21": graphs.node("ScriptedWords", answer='{"lighting": "dim"}'),
        "22": graphs.node("SkyReelsV2Captioner", engine=["21", 0], images=["20", 0], seed=0),
        "23": graphs.node(
            "SkyReelsV2CaptionFilm",
            engine=["21", 0], images=["20", 0], seed=0, fps=24.0, cuts="", shortest_shot=1.0,
            longest_part=10.0,
        ),
        "24": graphs.node("SkyReelsV2LanguageModelLoader", language_model_name=words_name),
        "25": graphs.node("SkyReelsV2LanguageEndpoint", model="m", sees_images=True),
        "26": graphs.node(
            "SkyReelsV2PromptEnhancer", engine=["21", 0], prompt="a", seed=0, language="english"
        ),
    }  # fmt: skip


def declared(node_class):
    """(type, options) of the inputs that a node of the host declares, by name."""
    kinds = node_class.INPUT_TYPES()
    found = {**kinds.get("required", {}), **kinds.get("optional", {})}
    optional = kinds.get("optional", {})
    return {
        name: (
            "COMBO" if isinstance(spec[0], list) else spec[0],
            {**(spec[1] if len(spec) > 1 else {}), "optional": name in optional},
        )
        for name, spec in found.items()
    }


def finite(value):
    """Whether all numbers in what a node gives are finite, in whatever they lie."""
    if isinstance(value, torch.Tensor):
        return value.is_meta or not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, float):
        return math.isfinite(value)
    if dataclasses.is_dataclass(value):
        return all(finite(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    patches = getattr(value, "patches", None)  # of a MODEL: (strength, LoRA, ...) by weight
    return patches is None or finite([patch[0] for every in patches.values() for patch in every])


def fault(kind, value):
    """What is wrong with an output of a node, or nothing."""
    if not finite(value):
        return "not finite"
    if kind == "IMAGE":
        right = value.ndim == 4 and value.shape[3] == 3 and value.numel() and not value.is_meta
        if not right or value.dtype != torch.float32:
            return f"images of {tuple(value.shape)}, {value.dtype}"
        if value.min() < 0 or value.max() > 1:
            return f"images from {value.min():g} to {value.max():g}"
    if kind == "LATENT":
        samples = value["samples"]
        right = samples.ndim == 5 and samples.shape[1] == 16 and samples.numel()
        if not right or samples.is_meta or not samples.is_floating_point():
            return f"latents of {tuple(samples.shape)}, {samples.dtype}, {samples.device}"
        if samples.abs().max() > 1e6:
            return f"latents up to {samples.abs().max():g}"
    if kind == "STRING" and NO_NUMBER.search(value):
        return f"the text {value!r}"
    return ""


def unclear(message, trace, known, given):
    """Why a person could not act on the words of an error, or nothing.

    known: the names of inputs; given: the types of those of this case, by name. Where one of them
    is a film's plan or another thing with numbers inside, those may be named instead.
    """
    named = re.match(r"(the model's answer)?['\"]?(\w*)", message)
    if not named[1] and named[2] not in known:
        return "does not begin with an input"
    inside = any(kind not in WIDGETS for kind in given.values())
    if not inside and not any(re.search(rf"(?<!\w){name}(?!\w)", message) for name in given):
        return "names none of the inputs that were wrong"
    if RAW.search(message):
        return "has words of the insides"
    if not RULES.search(message):
        return "says no rule"
    if not trace or "site-packages" in trace[-1] or "comfy/" in trace[-1]:
        return "was not raised by the pack"
    return ""


class Bench:
    """The host with the pack and the test pack in it, ready to run cases."""

    def __init__(self, node_classes, probe, execute, invalid, lora_name, words_name):
        """node_classes: the host's, by id; probe: the test pack's module; execute: runs a prompt;
        invalid: what it raises where the host refuses the prompt."""
        self.probe, self.execute, self.invalid = probe, execute, invalid
        os.environ["SKYREELS_V2_CPU_RANKS"] = "1"  # lets Multi-GPU work without a GPU
        graph = working_graph(lora_name, words_name)
        more, found = graph_of_objects(lora_name)
        links = {tuple(v) for n in graph.values() for v in n["inputs"].values() if type(v) is list}
        links |= {tuple(link) for _, link in found.values()}
        real = self._make({**graph, **more}, links)
        self.objects = {name: real[tuple(link)] for name, (_, link) in found.items()}
        self.kinds = {name: kind for name, (kind, _) in found.items()}
        self.inputs, self.outputs, self.working = {}, {}, {}
        for node in graph.values():
            one = node["class_type"]
            if one.startswith("SkyReelsV2"):
                self.inputs[one] = declared(node_classes[one])
                self.outputs[one] = node_classes[one].RETURN_TYPES
                self.working[one] = {
                    name: real[tuple(value)] if isinstance(value, list) else value
                    for name, value in node["inputs"].items()
                }
        self.names = {name for inputs in self.inputs.values() for name in inputs}
        self.before = self._film()

    def _make(self, graph, links):
        """What lies on the links of a graph."""
        names = {link: "/".join(map(str, link)) for link in links}
        for link, name in names.items():
            graph[f"see {name}"] = graphs.node("SkyReelsV2TestProbe", value=list(link), name=name)
        result = self.execute(graph)
        assert result.success, result.describe()
        return {link: self.probe.SEEN.pop(name) for link, name in names.items()}

    def _film(self):
        """The film of the working inputs, which no case may change."""
        (found,) = self._run("SkyReelsV2Sampler", {})[1][:1]
        return found["samples"]

    def intact(self):
        """Whether the working inputs still make the film that they made at first."""
        return torch.equal(self._film(), self.before)

    def cases(self, count, seed):
        return cases(self.inputs, self.kinds, count, seed)

    def _run(self, one, given):
        """The host's result, and each output of a node with these inputs: (value, by link)."""
        prompt, inputs = {}, {}
        wanted = {name: (value, not plain(value)) for name, value in self.working[one].items()}
        for name, (value, linked) in (wanted | given).items():
            if linked:
                self.probe.GIVEN[name] = value
                prompt[f"give {name}"] = graphs.node("SkyReelsV2TestGiver", name=name)
                value = [f"give {name}", 0]
            inputs[name] = value
        prompt["fuzzed"] = graphs.node(one, **inputs)
        slots = range(len(self.outputs[one]))
        for slot in slots:
            name = f"fuzzed {slot}"
            link = ["fuzzed", slot]
            prompt[f"see {slot}"] = graphs.node("SkyReelsV2TestProbe", value=link, name=name)
        result = self.execute(prompt)
        return result, [self.probe.SEEN.pop(f"fuzzed {slot}", None) for slot in slots]

    def verdict(self, case):
        """What becomes of a case."""
        one, mutated = case
        offered, declares = {**values(), **self.objects}, self.inputs[one]
        given = {
            name: (within(key, declares[name]) if isinstance(key, float) else offered[key], linked)
            for name, (key, linked) in mutated.items()
        }
        try:
            result, made = self._run(one, given)
        except self.invalid as error:
            crashed = "xception" in str(error) or not any(name in str(error) for name in mutated)
            return Verdict(UNCLEAR if crashed else REFUSED, f"by the host: {error}")
        except Exception as error:
            return Verdict(UNCLEAR, f"the host itself failed: {error!r}")
        if result.success:
            wrong = self._taken(declares, mutated, given)
            wrong += [f"gives {why}" for why in map(fault, self.outputs[one], made) if why]
            return Verdict(NONSENSE if wrong else MADE, ", ".join(wrong))
        message = str(result.error["exception_message"]).strip()
        kinds = {name: declares[name][0] for name in mutated}
        why = unclear(message, result.error["traceback"], self.names, kinds)
        if not result.error["exception_type"].endswith("ValueError"):
            why = "is no ValueError"
        return Verdict(UNCLEAR if why else REFUSED, f"{why and why + ': '}{result.describe()}")

    def _taken(self, declares, mutated, given):
        """What a node has taken by a link that is of another type than the input's."""
        wrong = []
        for name, (key, linked) in mutated.items():
            kind, options = declares[name]
            value = given[name][0]
            own = self.kinds.get(key) or kind_of(value)
            may_be_left = value is None and options["optional"]
            if linked and not may_be_left and own != "other" and not is_for(kind, own):
                wrong.append(f"{name} took {key}")
        return wrong
