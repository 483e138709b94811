"""The endpoint that the person has set up: in the environment of ComfyUI or in its settings."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.cli_args
import comfy.model_management
import folder_paths

from ....skyreels_model.words import Message, OnToken, Sampling
from ....skyreels_model.words.endpoint import Endpoint, EndpointEngine
from .. import notice

URL, KEY, MODEL = (f"SKYREELS_V2_WORDS_{name}" for name in ("URL", "KEY", "MODEL"))
# What js/settings.js calls the same.
SETTINGS = {
    URL: "SkyReelsV2.Words.Url",
    KEY: "SkyReelsV2.Words.Key",
    MODEL: "SkyReelsV2.Words.Model",
}
SETTINGS_FILE = "comfy.settings.json"
USER = "default"


@dataclass(frozen=True)
class NoEndpoint:
    """In the place of an engine where no address is set: it refuses when it is asked.

    So a workflow with an endpoint runs anywhere as long as nobody has to write.
    """

    sees_pictures: bool
    name: str = "the endpoint"
    constrains_json: bool = False

    def generate(
        self, _messages: Sequence[Message], _sampling: Sampling, _on_token: OnToken
    ) -> str:
        raise ValueError(
            f"no address is set, and nothing is sent until one is; it must be your server's, such "
            f"as http://localhost:11434/v1: in ComfyUI's settings under SkyReels-V2, or in the "
            f"environment as {URL} before you start ComfyUI (and {KEY}, if the server wants a key)"
        )


def read_places(
    environment: Mapping[str, str] = os.environ, settings: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Address, key and model as the environment has them, or where it has no address the settings.

    Never some of each: a key goes only to the server that it was set for.
    """
    if environment.get(URL, "").strip():
        return {name: environment.get(name, "").strip() for name in SETTINGS}
    given = read_settings() if settings is None else settings
    found = {name: given.get(identifier) for name, identifier in SETTINGS.items()}
    return {name: v.strip() if isinstance(v, str) else "" for name, v in found.items()}


def read_settings() -> dict[str, Any]:
    """What is set on the page. With several users there is nothing: a graph does not say whose."""
    if getattr(comfy.cli_args.args, "multi_user", False):
        return {}
    file = pathlib.Path(folder_paths.get_user_directory()) / USER / SETTINGS_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notice.LOG.warning("ComfyUI's settings cannot be read: %s", error)
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint() -> str:
    """Another one as soon as another endpoint is set; what it is cannot be read from it."""
    return hashlib.sha256(json.dumps(read_places()).encode()).hexdigest()


def open_endpoint(
    model: str, sees_pictures: bool, clips_as_video: bool
) -> EndpointEngine | NoEndpoint:
    """The engine at the address that is set; nothing is sent before it is asked.

    model: empty for the one that is set, or the server's first. Raises ValueError for an address
    that is none.
    """
    places = read_places()
    if not places[URL]:
        return NoEndpoint(sees_pictures)
    name = model.strip() or places[MODEL]
    endpoint = Endpoint(places[URL], places[KEY], name, sees_pictures, clips_as_video)
    return EndpointEngine(
        endpoint, comfy.model_management.throw_exception_if_processing_interrupted
    )
