"""Transformers' networks from files: built without memory, their layers a host's where it has some.

Nothing is fetched, no code of a file is run, and no pickle is read.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..files import loading
from ..files.checkpoint import Checkpoint, read, shard_files
from ..files.formats import SAFETENSORS
from ..files.packed import gather_packed
from ..files.quantized import gather_scales
from .chat import END
from .families import Family, guess_config, read_config, shorten


def _keep_none(_key: str) -> bool:
    return False


@dataclass(frozen=True)
class Ways:
    """How a host does it, where it does not leave it to PyTorch.

    replace: a layer to the host's own, None to leave it. readable: the weights, those that no
    layer of the host holds made plain. keeps_quantized: of a network, which weights stay packed.
    read_file: how files are read.
    """

    replace: Callable[[nn.Module], nn.Module | None] = lambda layer: None
    readable: Callable[[dict[str, Any]], dict[str, Any]] = lambda weights: weights
    keeps_quantized: Callable[[nn.Module], Callable[[str], bool]] = lambda network: _keep_none
    read_file: Callable[[pathlib.Path], Checkpoint] = read


@dataclass(frozen=True)
class Opened:
    """A language model from files: its network, its tokenizer, and a line that says what it is."""

    family: Family
    network: Any
    tokenizer: Any
    report: str


def open_model(
    path: pathlib.Path, tokenizer_folder: pathlib.Path | None = None, ways: Ways | None = None
) -> Opened:
    """A language model from one file, or from one shard of a set, with what lies in its folder.

    tokenizer_folder: whose tokenizer is taken where the folder has none.
    Raises ValueError for files of another kind, incomplete ones and pickles.
    """
    ways = ways or Ways()
    _require_safe(path)
    file = ways.read_file(path)
    scaled = gather_scales(gather_packed(file.tensors), file.metadata)
    weights = {shorten(key): value for key, value in scaled.items()}
    family, values = read_config(path.parent, weights) or guess_config(weights)
    tokenizer = _read_tokenizer(path.parent, tokenizer_folder)
    _check_tokenizer(tokenizer, weights)
    _mark_pictures(values, family, tokenizer)
    layout, network = _build(family, values), _build(family, values)
    tied = bool(layout.config.tie_word_embeddings)
    named = ways.readable(_name_fully(weights, layout, tied))
    _replace_layers(network, ways.replace)
    _set_dtypes(layout, named)
    kept = ways.keeps_quantized(network)
    report = loading.load_weights(network, named, layout, kept, file.release)
    if tied:
        network.lm_head = TiedHead(network.get_input_embeddings())
    dtype, config = loading.stored_dtype(weights), network.config.get_text_config()
    summary = (
        f"{family.name} of width {config.hidden_size}, {config.num_hidden_layers} layers, stored "
        f"{str(dtype)[6:]}, quantised {loading.quantization(weights)}; {report}"
    )
    return Opened(family, network.eval(), tokenizer, file.add_note(summary))


def _name_fully(weights: dict[str, Any], layout: Any, tied: bool) -> dict[str, Any]:
    """Short names to the network's own; a tied head has the embedding's weight."""
    full = {shorten(key): key for key in layout.state_dict()}
    named = {full.get(key, key): value for key, value in weights.items()}
    head, embedding = full["lm_head.weight"], full["embed_tokens.weight"]
    if tied and embedding in named:
        named[head] = named[embedding]
    return named


def _require_safe(path: pathlib.Path) -> None:
    if path.suffix not in SAFETENSORS:
        raise ValueError(f"it ends in {path.suffix!r}; it must be a safetensors file")
    for shard in shard_files(path):
        _require_file(shard)


def _require_file(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    # Eight bytes of length, then JSON; whatever else calls itself so may be a pickle.
    if start[8:] != b"{":
        raise ValueError(f"{path.name} is no safetensors file inside")


def _read_tokenizer(folder: pathlib.Path, other: pathlib.Path | None) -> Any:
    """The tokenizer of the folder, else of the other one. ValueError where neither has any."""
    from transformers import AutoTokenizer

    has = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    source = folder if has else other
    if source is None:
        raise ValueError("it has no tokenizer beside it (tokenizer.json); take the whole folder")
    try:
        return AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the reader in Rust raises nothing more special
        raise ValueError(f"its tokenizer cannot be read: {error}") from error


def _check_tokenizer(tokenizer: Any, weights: dict[str, Any]) -> None:
    """ValueError for one of another model."""
    known = weights.get("embed_tokens.weight")
    most = None if known is None else known.shape[0]
    if END not in tokenizer.get_vocab() or (most is not None and len(tokenizer) > most):
        raise ValueError(
            f"its tokenizer is another model's: it has {len(tokenizer)} tokens, the model {most}; "
            f"take the whole published folder"
        )


def _mark_pictures(values: dict[str, Any], family: Family, tokenizer: Any) -> None:
    """Which tokens stand for pictures, as its tokenizer numbers them."""
    if not family.sees:
        return
    for name, mark in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        values[name] = tokenizer.convert_tokens_to_ids(mark)


def _build(family: Family, values: dict[str, Any]) -> Any:
    """The network with its parameters on the meta device, and buffers that are numbers."""
    import transformers

    config = getattr(transformers, family.config).from_dict(copy.deepcopy(values))
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        network = getattr(transformers, family.network)(config)
    network.generation_config = transformers.GenerationConfig()
    for name, module in list(network.named_modules()):
        # Frequencies of positions, which no file has.
        buffers = dict(module.named_buffers(recurse=False))
        if any(buffer.is_meta for buffer in buffers.values()):
            again = (
                type(module)(module.config)
                if hasattr(module, "config")
                else type(module)(2 * len(buffers["inv_freq"]))
            )
            _put(network, name, again)
    return network


def _replace_layers(network: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, layer in list(network.named_modules()):
        new = replace(layer) if name and not list(layer.children()) else None
        if new is not None:
            _put(network, name, new)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Another module in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _set_dtypes(layout: nn.Module, weights: dict[str, Any]) -> None:
    """Each parameter in the format of its weight: nothing is converted in memory.

    But what is small, or packed and kept by no layer, becomes bfloat16: networks compute with the
    former as they are.
    """
    for key, parameter in layout.named_parameters():
        value = weights.get(key)
        dtype = value.dtype if isinstance(value, Tensor) else torch.bfloat16
        if dtype.itemsize == 1 and parameter.ndim != 2:
            dtype = torch.bfloat16
        if dtype.is_floating_point:
            parameter.data = parameter.data.to(dtype)


class TiedHead(nn.Module):
    """Writes with the embedding's weight, which is in memory once, whoever moves it."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list: no child, or a host would move it twice

    def forward(self, x: Tensor) -> Tensor:
        embedding: Any = self._embedding[0]
        if hasattr(embedding, "project"):
            scores: Tensor = embedding.project(x)
            return scores
        return nn.functional.linear(x, embedding.weight)
