"""A MODEL whose forwards several GPUs share: rank 0's side, in ComfyUI's own process."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
from torch import Tensor

from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import RunBlock
from ....skyreels_model.parallel.degrees import Degrees, choose_degrees
from ....skyreels_model.parallel.forward import SharedBlocks
from ....skyreels_model.parallel.process import Launch
from ....skyreels_model.parallel.shards import Shards
from ....skyreels_model.parallel.team import LOAD_LIMIT, Team
from ....skyreels_model.rules import refusal
from ..notice import LOG
from ..sockets.attention import AUTO, PYTORCH, PYTORCH_ORDER
from ..sockets.sharing import SHARED, Call
from . import patches, refusals, sharding
from .devices import Devices, find_devices

PACK = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("worker_main.py")
# What exchanges hold beside the five tensors that a forward is made of: three more, and a copy.
EXCHANGE = 5 / 3
WHOLE = 0.25  # of what one process needs: the stream before it is cut
PASSED_ON = ("rope_options",)  # of the transformer options: plain numbers
RING_ATTENTION = (AUTO, PYTORCH, PYTORCH_ORDER)


@dataclass(frozen=True)
class SharedSettings:
    """What a person sets. patience: seconds that a model call may take before it is given up.

    sharded: each GPU holds a part of the weights.
    """

    devices: Devices
    degrees: Degrees
    patience: float
    sharded: bool = False


def share_model(
    model: comfy.model_patcher.ModelPatcher,
    gpus: str,
    prompts: int,
    ulysses: int,
    patience: float,
    sharded: bool = False,
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """The model with its forwards shared, and a line that says how; the one given stays as it is.

    prompts, ulysses: as in `choose_degrees`. sharded: each GPU holds a part of the weights. Raises
    ValueError for what does not fit.
    """
    refusals.require_ours(model)
    refusals.refuse_split(model)
    if SHARED in model.model_options["transformer_options"]:
        raise ValueError(f"model has {refusals.NODE} already; it can have one")
    devices = find_devices(gpus)
    if prompts and devices.world % prompts:
        rule = f"automatic or off, since {devices.world} GPUs do not divide by {prompts}"
        raise refusal("split_prompts", "on", rule, "off")
    config: ModelConfig = model.get_model_object("diffusion_model").config
    degrees = choose_degrees(devices.world, config.num_heads, prompts, ulysses)
    attention = model.cached_patcher_init[1][2]
    if degrees.ring > 1 and attention not in RING_ATTENTION:
        rule = f"pytorch or auto where {degrees.ring} GPUs pass keys on to each other (a ring)"
        raise refusal("model's attention", attention, rule, PYTORCH)
    if degrees.world == 1:
        return model.clone(), describe(devices, degrees, False)
    if sharded:
        sharding.require_plain(model)
    shared = sharding.empty_blocks(model) if sharded else model.clone()
    sharing = SharedModel(SharedSettings(devices, degrees, patience, sharded))
    shared.model_options["transformer_options"][SHARED] = sharing
    return shared, describe(devices, degrees, sharded)


def describe(devices: Devices, degrees: Degrees, sharded: bool) -> str:
    """How the work is divided, in a line for people."""
    if degrees.world == 1:
        return "1 GPU: nothing to share"
    names = ", ".join(devices.name(rank) for rank in range(degrees.world))
    parts = {"prompts": degrees.prompts, "heads": degrees.heads, "ring": degrees.ring}
    told = " x ".join(f"{count} {name}" for name, count in parts.items() if count > 1)
    weights = f", each holds 1/{degrees.world} of the weights" if sharded else ""
    return f"{degrees.world} GPUs ({names}): {told}{weights}"


class SharedModel:
    """What travels on the MODEL. Its workers start at the first run, and end with it."""

    def __init__(self, settings: SharedSettings) -> None:
        self.settings = settings
        self.team: Team | None = None
        self.patched: Any = None
        self.model: weakref.ref[Any] | None = None

    def prepare(self, patcher: comfy.model_patcher.ModelPatcher, conds: Mapping[str, Any]) -> None:
        """Before a sampling run: workers are there, and have this patcher's weights."""
        refusals.require_ours(patcher)
        refusals.check_patcher(patcher, conds)
        weights = patches.write_patches(patcher)
        if self.team is not None and self.team.failure is not None:
            self.team.close()
            self.team = None
        if self.team is None:
            self.team, self.patched = self._start(*patcher.cached_patcher_init[1]), None
        if self.patched != patcher.patches_uuid:
            self._bring_patches(self.team, *weights)
            if self.settings.sharded:
                self.team.shard(lambda mesh: sharding.keep_share(patcher, mesh), LOAD_LIMIT)
            self.patched = patcher.patches_uuid
        self.model = weakref.ref(patcher.model)

    def _bring_patches(self, team: Team, found: Any, tensors: dict[str, Tensor]) -> None:
        name = patches.identify(found, tensors)
        asked = {"do": "patch", "patches": found, "digest": name}
        for answer in team.ask(asked, LOAD_LIMIT, tensors):
            if answer["digest"] != name:
                raise RuntimeError("a worker has other LoRA weights than it was sent")

    def _start(self, path: Path, *loaded: Any) -> Team:
        """Workers that have loaded a file as our loader did, and have found each other."""
        settings = self.settings
        told = describe(settings.devices, settings.degrees, settings.sharded)
        LOG.info("%s: loading", told)
        device = comfy.model_management.get_torch_device()
        listen = comfy.model_management.throw_exception_if_processing_interrupted
        launch = functools.partial(launch_workers, settings.devices)
        sharded = settings.sharded
        team = Team(launch, settings.degrees, device, settings.patience, listen, sharded)
        try:
            team.start(describe_host())
            asked = {"do": "load", "path": str(path), "settings": loaded, "sharded": sharded}
            team.ask(asked, LOAD_LIMIT)
            team.join()
        except BaseException:
            team.close()
            raise
        return team

    def memory(self, needed: float, shape: Sequence[int]) -> float:
        """Bytes that each rank needs, of those that one process would need alone."""
        degrees, batch = self.settings.degrees, shape[0]
        shards = Shards(batch, 1, 1, 1, min(degrees.prompts, batch))
        share = shards.most / batch / degrees.sequence
        if degrees.sequence > 1:
            share *= EXCHANGE
        # A block is gathered, and copied into place.
        model = self.model() if self.model else None
        gathered = 2 * sharding.count_bytes(model)[1] if self.settings.sharded and model else 0
        return needed * min(1.0, WHOLE + share) + gathered

    def _memory_of(self, call: Call) -> float:
        """What a worker has to have free for a forward, as this process was told of its own."""
        model = self.model() if self.model else None
        if model is None:
            return 0.0
        text = {"c_crossattn": [call.given["context"].shape]}
        return float(model.memory_required(call.given["x"].shape, text))

    @contextlib.contextmanager
    def share(self, call: Call) -> Iterator[RunBlock]:
        refusals.check_options(call.options)
        team = self.team
        if team is None or team.mesh is None:
            raise ValueError(
                f"a node calls the model outside a sampling run, which {refusals.NODE} cannot "
                f"share. Connect the model without one of the two"
            )
        options = {name: call.options[name] for name in PASSED_ON if name in call.options}
        needed = self._memory_of(call)
        told = {"options": options, "whole_stream": call.cached, "needed": needed}
        blocks = SharedBlocks(
            team.mesh,
            call.given["x"].shape[0],
            call.grid,
            len(call.transformer.blocks),
            call.run,
            whole_stream=call.cached,
            begin=lambda: team.begin(told, call.given),
        )
        with team.forward(), blocks.share_head(call.transformer.head):
            yield blocks


def launch_workers(devices: Devices, folder: Path) -> list[Launch]:
    """How the workers of ranks 1 and up are started."""
    command = (sys.executable, str(PROGRAM))
    return [
        Launch(devices.name(r), command, folder / f"{r}.log", devices.environment(r))
        for r in range(1, devices.world)
    ]


def describe_host() -> dict[str, Any]:
    """What a worker needs to become the same ComfyUI, without its server and its nodes."""
    plain = bool | int | float | str | None
    arguments = {k: v for k, v in vars(comfy.cli_args.args).items() if isinstance(v, plain)}
    arguments |= {"cuda_device": None, "default_device": None}
    fast = sorted(feature.value for feature in comfy.cli_args.args.fast)
    return {"path": sys.path, "pack": str(PACK), "arguments": arguments, "fast": fast}
