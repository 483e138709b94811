"""The endpoint that the person has set up, in the environment of ComfyUI, never in a workflow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.model_management

from ....skyreels_model.words import Message, OnToken, Sampling
from ....skyreels_model.words.endpoint import Endpoint, EndpointEngine

URL, KEY, MODEL = (f"SKYREELS_V2_WORDS_{name}" for name in ("URL", "KEY", "MODEL"))


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
            f"{URL} is not set, and nothing is sent until it is; it must be your server's address, "
            f"such as http://localhost:11434/v1, set before you start ComfyUI (and {KEY}, if the "
            f"server wants a key)"
        )


def open_endpoint(
    model: str,
    sees_pictures: bool,
    clips_as_video: bool,
    environment: Mapping[str, str] = os.environ,
) -> EndpointEngine | NoEndpoint:
    """The engine at the address that the environment names; nothing is sent before it is asked.

    model: empty for the environment's, or the server's first. Raises ValueError for an address
    that is none.
    """
    url = environment.get(URL, "").strip()
    if not url:
        return NoEndpoint(sees_pictures)
    endpoint = Endpoint(
        url,
        environment.get(KEY, "").strip(),
        model.strip() or environment.get(MODEL, "").strip(),
        sees_pictures,
        clips_as_video,
    )
    return EndpointEngine(
        endpoint, comfy.model_management.throw_exception_if_processing_interrupted
    )
