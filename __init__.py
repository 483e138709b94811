"""SkyReels-V2 for ComfyUI: films of any length by diffusion forcing, on native sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> ComfyExtension:
    # Imported here, so that the package itself imports without a host (tests, tools).
    from .nodes import SkyReelsV2Extension

    return SkyReelsV2Extension()
