"""Random wrong inputs for every node, and what is made of them: refused clearly, or a fault.

Each case runs one node in a real ComfyUI. Its inputs are what a working graph gives it, but for one
or two: those are given by a link, past the bounds of widgets, or as a prompt over the API has them.
"""

import dataclasses
import math
import random

import torch

import graphs

REFUSED, MADE, UNCLEAR, NONSENSE = "refused", "made", "unclear", "not finite"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case: its kind, and the host's words."""

    kind: str
    words: str = ""


def values():
    """Wrong and odd values, by a name for people. Made anew each time: nodes may keep them."""
    nan, image = torch.tensor(math.nan), torch.rand(5, 32, 32, 3)
    samples = torch.randn(1, 16, 3, 4, 4)
    return {
        "None": None, "True": True, "-1": -1, "0": 0, "3": 3, "2^31": 2**31, "2^63": 2**63,
        "-2^63": -(2**63), "1e308": 1e308, "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
        **{str(n): n for n in (1, 2, 5, 9, 16, 17, 32, 48, 97, 121, 1000, 1001, 4096, 16384)},
        **{str(x): x for x in (0.05, 0.3, 1.0, 1.5, 8.0, 24.5, 100.0, 86400.0, 1e6)},
        "times": "0.1, 0.3", "curve": "1: 6, 0.5: 3", "shots": "0s: a / 0.3s cut: b",
        "nearly shots": "0s: a\n0,3s: b\n/ 1e9s: c", "sigmas": torch.tensor([1.0, 0.5, 0.0]),
        "images": image, "small images": image[:, :7, :5], "one image": image[:1],
        "many images": image.repeat(7, 1, 1, 1), "large image": torch.rand(1, 64, 96, 3),
        "pixels": "pixels", "latents": "latents", "euler": "euler", "lcm": "lcm", "pad": "pad",
        "0.5": 0.5, "-0.5": -0.5, "1e-9": 1e-9, "empty text": "", "text": "x", "'nan'": "nan",
        "long text": "a " * 5000, "newlines": "\n" * 5000, "bytes": b"x", "list": [], "dict": {},
        "tuple": (), "object": object(), "list of None": [None], "complex": 1j,
        "no images": image[:0], "images without rows": image[:, :0], "nan images": image * nan,
        "bytes as images": (image * 255).to(torch.uint8), "two channels": image[..., :2],
        "one image, 3-D": image[0], "video, 5-D": image[None], "far beyond 0..1": image * 1e30,
        "wide images": image[:, :16], "halves": image.half(), "infinite images": image / 0,
        "four channels": torch.rand(1, 32, 32, 4), "complex images": image.to(torch.complex64),
        "latent": {"samples": samples}, "latent without samples": {},
        "latent None": {"samples": None},
        "nan latent": {"samples": samples * nan}, "image latent": {"samples": samples[:, :, 0]},
        "two latents": {"samples": samples.repeat(2, 1, 1, 1, 1)},
        "no frames": {"samples": samples[:, :, :0]}, "latent of bytes": {"samples": samples.byte()},
        "four channels' latent": {"samples": samples[:, :4]}, "latent list": {"samples": [samples]},
        "no size": {"samples": samples[..., :0]}, "half latent": {"samples": samples.half()},
        "empty conditioning": [[]], "conditioning without text": [[None, {}]],
        "narrow text": [[torch.zeros(1, 4, 8), {}]], "flat text": [[torch.zeros(64), {}]],
        "nan text": [[torch.full((1, 512, 64), math.nan), {}]],
        "conditioning without options": [[torch.zeros(1, 512, 64)]],
        "sigmas that rise": torch.tensor([0.0, 1.0]), "no sigmas": torch.empty(0),
        "nan sigmas": torch.tensor([1.0, math.nan, 0.0]), "one sigma": torch.tensor([1.0]),
    }  # fmt: skip


# Values of an input's own kind are drawn more often: what is nearly right goes deeper.
OWN_KIND = 0.7


def kind_of(value):
    """The type of socket that a value is for."""
    if isinstance(value, dict):
        return "LATENT"
    if isinstance(value, list):
        return "CONDITIONING"
    if isinstance(value, torch.Tensor):
        return "SIGMAS" if value.ndim == 1 else "IMAGE"
    kinds = {bool: "BOOLEAN", str: "STRING", int: "INT", float: "FLOAT"}
    return kinds.get(type(value), "other")


def is_for(kind, value):
    """Whether a value could be for an input of this type."""
    own = kind_of(value)
    return own == kind or {own, kind} in ({"INT", "FLOAT"}, {"STRING", "COMBO"})


def plain(value):
    """Whether a prompt over the API can hold it."""
    return value is None or isinstance(value, (bool, int, float, str, list, dict))


def cases(inputs, count, seed):
    """(node class, {input: (name of a value, by link)}) of so many cases.

    inputs: the types of each node class's inputs by name.
    """
    draw = random.Random(seed)
    classes, names, offered = sorted(inputs), sorted(values()), values()
    for _ in range(count):
        one = draw.choice(classes)
        chosen = draw.sample(sorted(inputs[one]), min(draw.choice((1, 1, 1, 2)), len(inputs[one])))
        mutated = {}
        for name in chosen:
            kind = inputs[one][name]
            own = [value for value in names if is_for(kind, offered[value])]
            value = draw.choice(own if own and draw.random() < OWN_KIND else names)
            # A list in a prompt is read as a link.
            direct = plain(offered[value]) and not isinstance(offered[value], list)
            mutated[name] = (value, not direct or draw.random() < 0.7)
        yield one, mutated


def working_graph(lora_name):
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
        "20": image,
    }  # fmt: skip


def declared(node_class):
    """The types of the inputs that a node of the host declares, by name."""
    kinds = node_class.INPUT_TYPES()
    found = {**kinds.get("required", {}), **kinds.get("optional", {})}
    return {n: "COMBO" if isinstance(spec[0], list) else spec[0] for n, spec in found.items()}


def finite(value):
    """Whether all numbers in what a node gives are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return True


def run(case, working, outputs, given, seen, execute, invalid):
    """The Verdict of a case.

    working: {class: {input: value that works}}; outputs: {class: how many}; given, seen: the dicts
    of the test pack's SkyReelsV2TestGiver and SkyReelsV2TestProbe; execute: runs a prompt; invalid:
    what it raises where the host refuses the prompt.
    """
    one, mutated = case
    offered, inputs, prompt = values(), {}, {}
    wanted = {name: (value, not plain(value)) for name, value in working[one].items()}
    wanted |= {name: (offered[key], linked) for name, (key, linked) in mutated.items()}
    for name, (value, linked) in wanted.items():
        if linked:
            given[name] = value
            prompt[f"give {name}"] = graphs.node("SkyReelsV2TestGiver", name=name)
            value = [f"give {name}", 0]
        inputs[name] = value
    prompt["fuzzed"] = graphs.node(one, **inputs)
    for slot in range(outputs[one]):
        link, name = ["fuzzed", slot], f"fuzzed {slot}"
        prompt[f"see {slot}"] = graphs.node("SkyReelsV2TestProbe", value=link, name=name)
    try:
        result = execute(prompt)
    except invalid as error:
        return Verdict(REFUSED, f"by the host: {error}")
    made = [seen.pop(f"fuzzed {slot}", None) for slot in range(outputs[one])]
    if result.success:
        return Verdict(MADE if finite(made) else NONSENSE)
    words = result.describe()
    message = str(result.error["exception_message"])
    named = any(name in message for name in mutated)
    clear = result.error["exception_type"].endswith("ValueError") and named
    return Verdict(REFUSED if clear else UNCLEAR, words)


class Bench:
    """The host with the pack and the test pack in it, ready to run cases."""

    def __init__(self, node_classes, probe, execute, invalid, lora_name):
        """node_classes: the host's, by id; probe: the test pack's module."""
        self.probe, self.execute, self.invalid = probe, execute, invalid
        graph = working_graph(lora_name)
        self.inputs, self.outputs, self.working = {}, {}, {}
        links = {}
        for node in graph.values():
            for value in node["inputs"].values():
                if isinstance(value, list):
                    links.setdefault(tuple(value), f"{value[0]}/{value[1]}")
        probes = {
            f"see {name}": graphs.node("SkyReelsV2TestProbe", value=list(link), name=name)
            for link, name in links.items()
        }
        result = execute({**graph, **probes})
        assert result.success, result.describe()
        real = {link: probe.SEEN.pop(name) for link, name in links.items()}
        for node in graph.values():
            one = node["class_type"]
            if one.startswith("SkyReelsV2"):
                self.inputs[one] = declared(node_classes[one])
                self.outputs[one] = len(node_classes[one].RETURN_TYPES)
                self.working[one] = {
                    name: real[tuple(value)] if isinstance(value, list) else value
                    for name, value in node["inputs"].items()
                }

    def cases(self, count, seed):
        return cases(self.inputs, count, seed)

    def verdict(self, case):
        given, seen = self.probe.GIVEN, self.probe.SEEN
        return run(case, self.working, self.outputs, given, seen, self.execute, self.invalid)
