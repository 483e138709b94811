"""A real ComfyUI for the tests: in this process, and as a server in a process of its own."""

import functools
import gc
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import graphs
import pytest
import torch
from graphs.quantised import scaled
from safetensors.torch import load_file, save_file
from tiny_words import write_model

from devtools import inprocess, serving
from toy.toyset import transformer_path

ROOT = Path(__file__).resolve().parents[2]
I2V = "toy/SkyReels-V2-I2V-Toy-32P/model.safetensors"
IMAGE_ENCODER = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOY, node = graphs.TOY, graphs.node


def _comfyui() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI tree; `python3 dev.py test` fetches one")
    return Path(path)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The ComfyUI tree, booted in this process with this pack loaded; fails where that fails."""
    tree = _comfyui()
    inprocess.boot_host(tree, tmp_path_factory.mktemp("comfyui"))
    inprocess.load_pack(ROOT)
    # A million objects that stay: each full collection would walk over them for half a second.
    gc.collect()
    gc.freeze()
    return tree


@pytest.fixture(scope="session")
def run_prompt(host):
    """`run_prompt(prompt, on_event=...)` -> Result; files by `inprocess.absolute(file)`."""
    return inprocess.execute


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running `serving.Server` on the CPU: `.url`, `.output_folder`, `.log`; with ComfyUI's page
    where that is installed, or another one that SKYREELS_V2_FRONTEND names.
    """
    base = tmp_path_factory.mktemp("server")
    front = os.environ.get("SKYREELS_V2_FRONTEND")
    settings = serving.Server(
        python=Path(sys.executable),
        host=_comfyui(),
        base=base,
        port=serving.free_port(),
        cpu=True,
        page=bool(front) or importlib.util.find_spec("comfyui_frontend_package") is not None,
        front=Path(front) if front else None,
        log=base / "server.log",
    )
    with settings as running:
        yield running
        running.kill()  # it has nothing to tidy up


@pytest.fixture(scope="session")
def look(host):
    """`look(prompt, name=[node, output], …)` runs a graph and returns what reached those links."""
    inprocess.load_pack(ROOT / "tests" / "host" / "probe")
    seen = next(module.SEEN for name, module in sys.modules.items() if name.endswith("/host/probe"))

    def run(prompt, on_event=lambda event, data: None, **links):
        graph = dict(prompt)
        for name, link in links.items():
            inputs = {"value": link, "name": name}
            graph[f"probe {name}"] = {"class_type": "SkyReelsV2TestProbe", "inputs": inputs}
        seen.clear()
        result = inprocess.execute(graph, on_event)
        assert result.success, result.describe()
        return [seen.pop(name) for name in links]

    return run


@pytest.fixture(scope="module")
def kept_loaders(host):
    """Toy models, once loaded, are given again: as a running ComfyUI keeps them between films."""
    import nodes

    with pytest.MonkeyPatch.context() as patch:
        for name in ("Model", "TextEncoder", "VAE", "ImageEncoder"):
            loader = nodes.NODE_CLASS_MAPPINGS[f"SkyReelsV2{name}Loader"]
            load = loader.execute
            kept = functools.cache(load)

            def execute(_cls, load=load, kept=kept, **inputs):
                shipped = any(str(given).startswith("toy/") for given in inputs.values())
                return (kept if shipped else load)(**inputs)

            patch.setattr(loader, "execute", classmethod(execute))
        yield


@pytest.fixture(scope="session")
def models_folder(host, tmp_path_factory):
    """An empty models folder that the host searches, with the categories our loaders list."""
    folder = tmp_path_factory.mktemp("models")
    for category in ("diffusion_models", "text_encoders", "vae", "clip_vision", "loras"):
        (folder / category).mkdir()
    inprocess.add_models(folder)
    return folder


@pytest.fixture(scope="session")
def open_model(look):
    """`open_model(name)` -> our loader's MODEL, computing in fp32, and its report."""

    def run(name, weight_dtype="fp32"):
        prompt = {
            "1": graphs.node(
                "SkyReelsV2ModelLoader",
                model_name=name,
                weight_dtype=weight_dtype,
                attention="pytorch",
                variant="auto",
            )
        }
        return look(prompt, model=["1", 0], report=["1", 1])

    return run


@pytest.fixture(scope="session")
def inputs():
    """Latents, a timestep a frame and a text for the toy model."""
    torch.manual_seed(0)
    x, t = torch.randn(1, 16, 3, 4, 4), torch.tensor([[20.0, 500.0, 999.0]])
    return x, t, torch.randn(1, 512, 64)


@pytest.fixture(scope="session")
def velocity(inputs):
    """`velocity(model)`: what a MODEL makes of these inputs, after loading it as the host does."""

    def run(model):
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        with torch.inference_mode():
            return model.model.diffusion_model(*inputs).clone()

    return run


@pytest.fixture(scope="session")
def plain():
    """The toy model's tensors in float32."""
    return {k: v.float() for k, v in load_file(transformer_path()).items()}


@pytest.fixture(scope="session")
def reference(open_model, velocity, models_folder):
    """`reference(state)`: the velocity of a plain float32 file with these tensors."""

    def run(state):
        save_file(state, models_folder / "diffusion_models" / "meant.safetensors")
        return velocity(open_model("meant.safetensors")[0])

    return run


@pytest.fixture(scope="session")
def small_lora(models_folder):
    """The name of a LoRA of one layer of the toy model."""
    width = load_file(transformer_path())["blocks.0.self_attn.q.weight"].shape[0]
    layer = "diffusion_model.blocks.0.self_attn.q"
    parts = {
        f"{layer}.lora_A.weight": torch.full((2, width), 0.01),
        f"{layer}.lora_B.weight": torch.full((width, 2), 0.01),
    }
    save_file(parts, models_folder / "loras" / "small.safetensors")
    return "small.safetensors"


@pytest.fixture(scope="session")
def small_words(models_folder):
    """The name of a tiny language model with random weights."""
    file = write_model(models_folder / "text_encoders" / "tiny words", "qwen2")
    return f"{file.parent.name}/{file.name}"


@pytest.fixture(scope="session")
def without_fps(models_folder):
    """The toy model without its fps embedding, a file that core's loader reads completely."""
    from safetensors import safe_open

    state = {k: v for k, v in load_file(transformer_path()).items() if not k.startswith("fps_")}
    with safe_open(transformer_path(), framework="pt") as opened:
        metadata = opened.metadata()
    name = "toy_without_fps.safetensors"
    save_file(state, models_folder / "diffusion_models" / name, metadata)
    return name


@pytest.fixture
def transformer(open_model):
    def make(name, dtype, channels, **image):
        model, _ = open_model(name, dtype)
        given = torch.randn(1, channels, 3, 4, 4), torch.randn(1, 512, 64)
        timestep = torch.tensor([[20.0, 500.0, 999.0]])
        compute = model.model.get_dtype_inference()

        def call(device):
            x, context = (tensor.to(device, compute) for tensor in given)
            features = {k: v.to(device, compute) for k, v in image.items()}
            return model.model.diffusion_model(x, timestep.to(device), context, **features)

        return model, call

    return make


@pytest.fixture
def scaled_file(plain, models_folder):
    name = "scaled, in parts.safetensors"
    save_file(scaled(plain), models_folder / "diffusion_models" / name)
    return name


@pytest.fixture
def text_encoder(look, monkeypatch):
    def make():
        # Its check of the tokens reads numbers, of which meta has none.
        module = next(n for n in sys.modules if "/" in n and n.endswith(".text_encoder.network"))
        monkeypatch.setattr(sys.modules[module], "_check_text", lambda *given: [20])
        loader = node("SkyReelsV2TextEncoderLoader", text_encoder_name=TOY["text"])
        (clip,) = look({"1": loader}, clip=["1", 0])
        ids, mask = torch.arange(512)[None] % 100, torch.arange(512)[None] < 20

        def call(device):
            encoder = clip.cond_stage_model.transformer
            return encoder(ids.to(device), mask.to(device), dtype=torch.float32)

        return clip.patcher, call

    return make


@pytest.fixture
def vae(look):
    def make(direction, *shape):
        loader = node("SkyReelsV2VAELoader", vae_name=TOY["vae"])
        (loaded,) = look({"1": loader}, vae=["1", 0])
        given = torch.rand(shape)
        return loaded.patcher, lambda device: getattr(loaded.first_stage_model, direction)(
            given.to(device, loaded.vae_dtype)
        )

    return make


@pytest.fixture
def image_encoder(look):
    def make():
        loader = node("SkyReelsV2ImageEncoderLoader", image_encoder_name=IMAGE_ENCODER)
        (loaded,) = look({"1": loader}, vision=["1", 0])
        images = torch.rand(1, 3, 224, 224)
        model = loaded.model
        return loaded.patcher, lambda device: model.pool(model(images.to(device)))[1]

    return make


@pytest.fixture
def part(transformer, scaled_file, text_encoder, vae, image_encoder):
    """`part(name)` -> a part's patcher, fresh from its file, and a call of it on a device."""
    makers = {
        "transformer": lambda: transformer(TOY["model"], "fp32", 16),
        "transformer in bf16": lambda: transformer(TOY["model"], "bf16", 16),
        "transformer in fp8": lambda: transformer(TOY["model"], "fp8_e4m3fn", 16),
        "transformer in scaled fp8": lambda: transformer(scaled_file, "fp32", 16),
        "I2V": lambda: transformer(I2V, "fp32", 36, clip_fea=torch.randn(1, 257, 1280)),
        "text encoder": text_encoder,
        "VAE decoder": lambda: vae("decode", 1, 16, 2, 4, 4),
        "VAE encoder": lambda: vae("encode", 1, 3, 5, 32, 32),
        "image encoder": image_encoder,
    }

    def make(name):
        torch.manual_seed(0)
        return makers[name]()

    return make


@pytest.fixture
def kernels(host, monkeypatch):
    """Our transformers' blocks run by the plain twins of the kernels; how often each has run."""

    def ours(name):
        return next(m for n, m in sys.modules.items() if "/" in n and n.endswith(f".{name}"))

    plain, ran = ours("skyreels_model.kernels.plain"), Counter()

    def start(name, *given, **numbers):
        ran[name] += 1
        plain.start(name, *given, **numbers)

    kinds, host_side = ours("skyreels_model.kernels"), ours("nodes.host.sockets.kernels")
    made = kinds.Kernels(start, plain.product_gelu)
    runner = kinds.FusedBlocks(made, host_side.HostWeights())
    monkeypatch.setattr(ours("nodes.host.sockets.transformer"), "block_runner", lambda *_of: runner)
    return ran
