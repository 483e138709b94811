"""The endpoint that the person has set up, in the environment of ComfyUI, never in a workflow."""

from __future__ import annotations

import os
from collections.abc import Mapping

import comfy.model_management

from ....skyreels_model.words.endpoint import Endpoint, EndpointEngine

URL, KEY, MODEL = (f"SKYREELS_V2_WORDS_{name}" for name in ("URL", "KEY", "MODEL"))


def open_endpoint(
    model: str,
    sees_pictures: bool,
    clips_as_video: bool,
    environment: Mapping[str, str] = os.environ,
) -> EndpointEngine:
    """The engine at the address that the environment names. model: empty for the environment's, or
    the server's first.

    Raises ValueError where it names none, before anything is sent.
    """
    url = environment.get(URL, "").strip()
    if not url:
        raise ValueError(
            f"{URL} is not set; nothing is sent until it is. Set it to your server's address, such "
            f"as http://localhost:11434/v1, and {KEY} to its key if it wants one, before you start "
            f"ComfyUI"
        )
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
