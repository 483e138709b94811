"""Wrong and odd values for every kind of socket, by a name for people."""

import decimal
import math

import numpy
import torch

import graphs


def numbers():
    nan = math.nan
    return {
        "True": True,
        "-1": -1,
        "0": 0,
        "-0.0": -0.0,
        "3": 3,
        "2^31": 2**31,
        "2^63": 2**63,
        "-2^63": -(2**63),
        "10^400": 10**400,
        "1e308": 1e308,
        "5e-324": 5e-324,
        "nan": nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "0.5": 0.5,
        "-0.5": -0.5,
        "1e-9": 1e-9,
        "3.0": 3.0,
        **{str(n): n for n in (1, 2, 5, 9, 16, 17, 32, 48, 97, 121, 1000, 1001, 4096, 16384)},
        **{str(x): x for x in (0.05, 0.3, 1.5, 8.0, 24.5, 100.0, 86400.0, 1e6)},
        "numpy 3": numpy.int64(3),
        "numpy 0.5": numpy.float32(0.5),
        "numpy nan": numpy.float64(nan),
    }


def texts():
    return {
        "empty text": "",
        "text": "x",
        "'nan'": "nan",
        "'3'": "3",
        "'true'": "true",
        "'1e999'": "1e999",
        "times": "0.1, 0.3",
        "times twice": "0.1, 0.1",
        "time before": "-1",
        "curve": "1: 6, 0.5: 3",
        "curve of nan": "1: nan",
        "curve backwards": "0: 1, 1: 6",
        "curves": "1: 6; 1: 1;",
        "far": "1: 1e99",
        "shots": "0s: a / 0.3s cut: b",
        "nearly shots": "0s: a\n0,3s: b\n/ 1e9s: c",
        "late": "1e308s: a",
        "pixels": "pixels",
        "latents": "latents",
        "euler": "euler",
        "lcm": "lcm",
        "pad": "pad",
        "PAD": "PAD",
        "long text": "a " * 5000,
        "long word": "a" * 100_000,
        "newlines": "\n" * 5000,
        "slashes": "/" * 5000,
        "surrogate": "\ud800",
        "zero byte": "a\0b",
        "path": "../../../etc/passwd",
        "unicode": "\u732b\u304c\u8d70\u308b \U0001f408\u200d\u2b1b \u0663 0\u066b5 \u202e",
        "entities": "&amp;" * 2000,
        "other digits": "\u0663",
    }


def images():
    image = torch.rand(5, 32, 32, 3)
    return {
        "images": image,
        "small images": image[:, :7, :5],
        "one image": image[:1],
        "many images": image.repeat(7, 1, 1, 1),
        "large image": torch.rand(1, 64, 96, 3),
        "odd image": torch.rand(1, 33, 31, 3),
        "a row": torch.rand(1, 1, 300, 3),
        "no images": image[:0],
        "images without rows": image[:, :0],
        "nan images": image * math.nan,
        "bytes as images": (image * 255).to(torch.uint8),
        "two channels": image[..., :2],
        "one image, 3-D": image[0],
        "video, 5-D": image[None],
        "far beyond 0..1": image * 1e30,
        "negative images": -image,
        "wide images": image[:, :16],
        "halves": image.half(),
        "doubles": image.double(),
        "fp8 images": image.to(torch.float8_e4m3fn),
        "bfloat16": image.bfloat16(),
        "infinite images": image / 0,
        "grey": image[:1, ..., :1],
        "four channels": torch.rand(1, 32, 32, 4),
        "complex images": image.to(torch.complex64),
        "nan in alpha": torch.tensor([0.5, 0.5, 0.5, math.nan]).expand(1, 32, 32, 4),
        "images on meta": image.to("meta"),
        "sparse images": image.to_sparse(),
        "images of a net": image.clone().requires_grad_(),
        "turned images": image.transpose(1, 2),
        "long thin image": torch.rand(1, 2, 20_000, 3),
    }


def latents():
    samples = torch.randn(1, 16, 3, 4, 4)
    made = {
        "latent": samples,
        "latent None": None,
        "nan latent": samples * math.nan,
        "image latent": samples[:, :, 0],
        "two latents": samples.repeat(2, 1, 1, 1, 1),
        "one latent frame": samples[:, :, :1],
        "no frames": samples[:, :, :0],
        "latent of bytes": samples.byte(),
        "four channels' latent": samples[:, :4],
        "latent list": [samples],
        "no size": samples[..., :0],
        "half latent": samples.half(),
        "double latent": samples.double(),
        "huge latent": samples * 1e30,
        "odd latent": samples[..., :3],
        "fp8 latent": samples.to(torch.float8_e4m3fn),
        "latent on meta": samples.to("meta"),
        "sparse latent": samples.to_sparse(),
        "latent of a net": samples.clone().requires_grad_(),
        "flat latent": torch.zeros_like(samples),
        "almost infinite latent": samples.sign() * 3e38,
        "large latent": torch.randn(1, 16, 2, 8, 12),
        "complex latent": samples.to(torch.complex64),
    }
    extras = {
        "latent with a mask": {"samples": samples, "noise_mask": torch.ones(1, 1, 4, 4)},
        "latent with odd record": {"samples": samples, "skyreels_v2_film": "x"},
        "latent without samples": {},
    }
    return {**{name: {"samples": value} for name, value in made.items()}, **extras}


def conditioning():
    text = torch.zeros(1, 512, 64)
    return {
        "empty conditioning": [[]],
        "conditioning without text": [[None, {}]],
        "narrow text": [[torch.zeros(1, 4, 8), {}]],
        "flat text": [[torch.zeros(64), {}]],
        "nan text": [[text * math.nan, {}]],
        "conditioning without options": [[text]],
        "short text": [[text[:, :1], {}]],
        "no text": [[text[:, :0], {}]],
        "long conditioning": [[text.repeat(1, 2, 1), {}]],
        "two texts": [[text.repeat(2, 1, 1), {}]],
        "text on meta": [[text.to("meta"), {}]],
        "half text": [[text.half(), {}]],
        "text twice": [[text, {}], [text, {}]],
        "options of None": [[text, None]],
        "area": [[text, {"area": (2, 2, 0, 0), "strength": 1.0}]],
        "area in percent": [[text, {"area": ("percentage", 0.5, 0.5, 0, 0), "strength": 1.0}]],
        "area outside": [[text, {"area": (900, 900, 900, 900), "strength": 1.0}]],
        "mask": [[text, {"mask": torch.ones(1, 32, 32), "mask_strength": 1.0}]],
        "bounds": [
            [text, {"mask": torch.ones(1, 4, 4), "mask_strength": 1.0, "set_area_to_bounds": True}]
        ],
        "strength nan": [[text, {"area": (2, 2, 0, 0), "strength": math.nan}]],
        "image in text": [[text, {"concat_latent_image": torch.zeros(1, 16, 3, 4, 4)}]],
        "late text": [[text, {"start_percent": 0.5, "end_percent": 0.2}]],
        "text of words": ["x"],
        "huge text": [[text + 1e38, {}]],
        "infinite text": [[text.half() + math.inf, {}]],
    }


def others():
    return {
        "None": None,
        "bytes": b"x",
        "list": [],
        "dict": {},
        "tuple": (),
        "object": object(),
        "list of None": [None],
        "list of numbers": [3, 3],
        "complex": 1j,
        "class": dict,
        "function": print,
        "set": {1},
        "decimal": decimal.Decimal("0.5"),
        "tensor of 3": torch.tensor(3.0),
        "list of images": [torch.rand(1, 32, 32, 3)],
        "sigmas": torch.tensor([1.0, 0.5, 0.0]),
        "sigmas that rise": torch.tensor([0.0, 1.0]),
        "no sigmas": torch.empty(0),
        "nan sigmas": torch.tensor([1.0, math.nan, 0.0]),
        "one sigma": torch.tensor([1.0]),
        "whole sigmas": torch.tensor([1, 0]),
        "equal sigmas": torch.tensor([1.0, 1.0, 0.0]),
        "sigmas above 1": torch.tensor([14.6, 1.0, 0.0]),
        "sigmas below 0": torch.tensor([1.0, -1.0]),
        "many sigmas": torch.linspace(1, 0, 5000),
        "sigmas to 0.5": torch.tensor([1.0, 0.5]),
        "half sigmas": torch.tensor([1.0, 0.5, 0.0]).half(),
        "close sigmas": torch.tensor([1.0, 1e-40, 0.0]),
        "sigmas, 2-D": torch.tensor([[1.0, 0.0]]),
    }


def values():
    """All that needs no host; new each time, since nodes may keep them."""
    torch.manual_seed(0)
    return {**numbers(), **texts(), **images(), **latents(), **conditioning(), **others()}


# Sizes of films that differ from the working graph's, each in a way that goes another path.
PLANS = {
    "one frame": {"frames": 1},
    "long film": {"frames": 33, "window": 9, "overlap": 5},
    "in latents": {"frames": 17, "window": 9, "overlap": 5, "history": "latents"},
    "one after another": {"frames": 13, "window": 9, "overlap": 5, "ar_step": 1},
    "sliding film": {"frames": 25, "window": 9, "overlap": 5, "ar_step": 1, "sliding": True},
    "large film": {"width": 64, "height": 48},
    "anchored": {"anchor": 1.0},
    "to change": {"frames": 9, "denoise": 0.5},
    "one step": {"steps": 1},
    "slow film": {"fps": 1},
    "fast film": {"fps": 240},
    "shift": {"shift": 100.0},
}


# {name: (type, link)} of odd things for sockets of the host.
OBJECTS = {
    "T2V model": ("MODEL", ["t2v", 0]),
    "I2V model": ("MODEL", ["i2v", 0]),
    "core model": ("MODEL", ["core", 0]),
    "shifted model": ("MODEL", ["shifted", 0]),
    "cached model": ("MODEL", ["cached", 0]),
    "strong LoRA": ("MODEL", ["lora", 0]),
    "core VAE": ("VAE", ["core vae", 0]),
    "our model": ("MODEL", ["1", 0]),
    "our VAE": ("VAE", ["3", 0]),
    "our CLIP": ("CLIP", ["2", 0]),
    "our CLIP vision": ("CLIP_VISION", ["8", 0]),
    "short shot": ("SKYREELS_V2_STORYBOARD", ["short shot", 0]),
    "a cut": ("SKYREELS_V2_STORYBOARD", ["no shot", 0]),
    "two shots": ("SKYREELS_V2_STORYBOARD", ["shots", 0]),
    "prompt with image": ("CONDITIONING", ["in video", 0]),
    "a film": ("LATENT", ["6", 0]),
}
PLAN = {
    "width": 32,
    "height": 32,
    "frames": 9,
    "window": 17,
    "overlap": 9,
    "steps": 2,
    "shift": 5.0,
    "ar_step": 0,
    "block_size": 1,
    "prefix_noise": 20,
    "fps": 24,
}


def _loaded_and_made(lora_name):
    """The nodes that load models and make shots and conditioning of odd kinds."""
    t2v, i2v = (f"toy/SkyReels-V2-{kind}-Toy-32P/model.safetensors" for kind in ("T2V", "I2V"))
    loader = {"weight_dtype": "default", "attention": "auto", "variant": "auto"}
    shot = {"clip": ["2", 0], "prompt": "a"}
    return {
        "t2v": graphs.node("SkyReelsV2ModelLoader", model_name=t2v, **loader),
        "i2v": graphs.node("SkyReelsV2ModelLoader", model_name=i2v, **loader),
        "core": graphs.node("UNETLoader", unet_name=graphs.TOY["model"], weight_dtype="default"),
        "core vae": graphs.node("VAELoader", vae_name=graphs.TOY["vae"]),
        "shifted": graphs.node("ModelSamplingSD3", model=["1", 0], shift=3.0),
        "cached": graphs.node(
            "EasyCache",
            model=["1", 0],
            reuse_threshold=0.2,
            start_percent=0.15,
            end_percent=0.95,
            verbose=False,
        ),
        "lora": graphs.node(
            "LoraLoaderModelOnly", model=["1", 0], lora_name=lora_name, strength_model=20.0
        ),
        "short shot": graphs.node("SkyReelsV2Storyboard", **shot, seconds=0.1),
        "no shot": graphs.node("SkyReelsV2Storyboard", **shot, seconds=0.3, transition="cut"),
        "shots": graphs.node(
            "SkyReelsV2Storyboard",
            **shot,
            seconds=0.3,
            previous=["no shot", 0],
            ease=8,
            model=["t2v", 0],
        ),
        "pictures": graphs.node("EmptyImage", width=30, height=50, batch_size=9, color=255),
        "in video": graphs.node(
            "SkyReelsV2ImageToVideo",
            positive=["4", 0],
            negative=["4", 1],
            vae=["3", 0],
            start_image=["20", 0],
            width=32,
            height=32,
            frames=17,
            clip_vision=["8", 0],
            fit="pad",
        ),
    }


def graph_of_objects(lora_name):
    """A graph that makes odd things for sockets of the host, and {name: (type, link)}."""
    prompt, found = _loaded_and_made(lora_name), dict(OBJECTS)
    for name, changes in PLANS.items():
        prompt[name] = graphs.node("SkyReelsV2Schedule", **{**PLAN, **changes})
        found[name] = ("SKYREELS_V2_SCHEDULE", [name, 0])
    for role in ("start_image", "end_image", "video", "prepend_to", "source"):
        images = ["20" if role.endswith("image") else "pictures", 0]
        schedule = ["to change" if role == "source" else "5", 0]
        prompt[role] = graphs.node("SkyReelsV2Frames", schedule=schedule, **{role: images})
        found[f"given {role}"] = ("SKYREELS_V2_FRAMES", [role, 0])
    return prompt, found
