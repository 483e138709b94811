"""One transformer in four implementations, with equal random weights: ours, and three rivals.

"diffusers" is its SkyReelsV2Transformer3DModel. "reference" is the WanModel of
SkyworkAI/SkyReels-V2, from a source tree that is fetched beside the project; where it wants flash
attention and there is none, PyTorch's own attention stands in for it, from outside. "core" is
ComfyUI's own WanModel, from a ComfyUI tree, with PyTorch's attention. "products" is no model: the
matrix products and the attention of the blocks, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from skyreels_model.attention import sdpa  # noqa: E402
from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.model.names import transformer_key_to_original  # noqa: E402

RIVALS = ("ours", "diffusers", "reference", "core")
PRODUCTS = "products"

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_state(
    config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Weights of a transformer under their original names, the same for all rivals."""
    generator = torch.Generator(device).manual_seed(0)
    wanted = SkyReelsModel(config, dtype=dtype, device="meta").state_dict()
    return {
        key.replace(".modulation.weight", ".modulation"): torch.empty(
            value.shape, dtype=value.dtype, device=device
        ).normal_(std=0.02, generator=generator)
        for key, value in wanted.items()
    }


def build(
    rival: str,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    reference: pathlib.Path | None = None,
    host: pathlib.Path | None = None,
) -> Forward:
    """A rival's forward: x (B, C, F, H, W), timesteps (B,) or (B, F), text (B, N, D) -> velocity.

    reference, host: the source trees that "reference" and "core" come from; raises ValueError for
    "reference" without.
    """
    state = random_state(config, dtype, torch.device(device))
    if rival == "diffusers":
        return _diffusers(config, state)
    if rival == PRODUCTS:
        return lambda x, _t, text: _products(config, state, x, text)
    if rival == "core":
        return _core(config, state, dtype, host)
    if rival == "reference":
        # It holds all in one dtype, and computes the time embedding in float32 nonetheless.
        model = reference_model(config, {k: v.to(dtype) for k, v in state.items()}, reference)
        fps = {"fps": [1]} if config.fps_embedding else {}
        return lambda x, t, text: model(x, t, text, **fps)
    model = SkyReelsModel(config, dtype=dtype, device="meta").requires_grad_(False)
    model.load_state_dict(state, assign=True)
    return model


def _diffusers(config: ModelConfig, state: dict[str, Tensor]) -> Forward:
    import diffusers

    settings = {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "inject_sample_info": config.fps_embedding,
    }
    # Built with numbers only because its rotary tables are buffers outside of the state dict.
    with torch.device(state["patch_embedding.weight"].device):
        model = diffusers.SkyReelsV2Transformer3DModel(**settings)
    named = {key: state[transformer_key_to_original(key)] for key in model.state_dict()}
    model.load_state_dict(named, assign=True)
    model.eval().requires_grad_(False)
    fps = {"fps": torch.ones(1, dtype=torch.long)} if config.fps_embedding else {}
    return lambda x, t, text: model(
        x, t, text, enable_diffusion_forcing=t.ndim == 2, return_dict=False, **fps
    )[0]


def _core(
    config: ModelConfig, state: dict[str, Tensor], dtype: torch.dtype, host: pathlib.Path | None
) -> Forward:
    """ComfyUI's own Wan, which has no fps embedding."""
    sys.path.append(str(host))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = args.use_pytorch_cross_attention = True
    wan = importlib.import_module("comfy.ldm.wan.model")
    layers = importlib.import_module("comfy.ops").disable_weight_init
    model = wan.WanModel(
        dim=config.dim, ffn_dim=config.ffn_dim, num_heads=config.num_heads,
        num_layers=config.num_layers, operations=layers, dtype=dtype, device="meta",
    )  # fmt: skip
    model.requires_grad_(False).load_state_dict(state, assign=True)
    return lambda x, t, text: model(x, t, text)


def reference_model(
    config: ModelConfig, state: dict[str, Tensor], folder: pathlib.Path | None
) -> torch.nn.Module:
    """The reference's transformer with these weights, from its source tree in `folder`.

    Raises ValueError where that is no such tree.
    """
    if folder is None or not (folder / "skyreels_v2_infer").is_dir():
        raise ValueError(f"--reference is {folder}; it must be a source tree of SkyReels-V2")
    # Its packages import a whole pipeline each; the transformer needs none of it.
    for name in ("skyreels_v2_infer", "skyreels_v2_infer.modules"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    if "diffusers" not in sys.modules and importlib.util.find_spec("diffusers") is None:
        _stand_in_for_diffusers()
    module = importlib.import_module("skyreels_v2_infer.modules.transformer")
    attention = importlib.import_module("skyreels_v2_infer.modules.attention")
    if not (attention.FLASH_ATTN_2_AVAILABLE or attention.FLASH_ATTN_3_AVAILABLE):
        module.flash_attention = _attention
    first = state["patch_embedding.weight"]
    with torch.device("meta"):
        model = module.WanModel(
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            inject_sample_info=config.fps_embedding,
        )
    model.load_state_dict(state, assign=True)
    half = config.head_dim // 6
    widths = (config.head_dim - 4 * half, 2 * half, 2 * half)
    model.freqs = torch.cat([module.rope_params(1024, width) for width in widths], dim=1)
    model.freqs = model.freqs.to(first.device)
    return model.eval().requires_grad_(False)


def _stand_in_for_diffusers() -> None:
    """What the reference's transformer takes from diffusers: bases that load and save files."""
    made = {
        "configuration_utils": {
            "ConfigMixin": type("ConfigMixin", (), {}),
            "register_to_config": lambda init: init,
        },
        "loaders": {"PeftAdapterMixin": type("PeftAdapterMixin", (), {})},
        "models": {},
        "models.modeling_utils": {"ModelMixin": torch.nn.Module},
    }
    sys.modules["diffusers"] = types.ModuleType("diffusers")
    for name, attributes in made.items():
        module = types.ModuleType(f"diffusers.{name}")
        vars(module).update(attributes)
        sys.modules[module.__name__] = module


def _products(config: ModelConfig, state: dict[str, Tensor], x: Tensor, text: Tensor) -> Tensor:
    """Of the blocks, for latents x and as many rows as text has: (1, tokens, dim)."""
    tokens = x.shape[2] * x.shape[3] * x.shape[4] // 4
    stream = torch.randn(1, tokens, config.dim, dtype=x.dtype, device=x.device)
    words = torch.randn(1, text.shape[1], config.dim, dtype=x.dtype, device=x.device)

    def through(layer: str, given: Tensor) -> Tensor:
        return torch.nn.functional.linear(given, state[layer + ".weight"], state[layer + ".bias"])

    for index in range(config.num_layers):
        block = f"blocks.{index}."
        for part, told in (("self_attn.", stream), ("cross_attn.", words)):
            q, k, v = (
                through(block + part + n, y)
                for n, y in zip("qkv", (stream, told, told), strict=True)
            )
            stream = through(block + part + "o", sdpa(q, k, v, config.num_heads))
        stream = through(block + "ffn.2", through(block + "ffn.0", stream))
    return stream


def _attention(q: Tensor, k: Tensor, v: Tensor, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """(B, L, heads, d) each -> (B, Lq, heads, d)."""
    q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
