"""The host's patcher class for our models."""

from __future__ import annotations

import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models


def patcher_type(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """The host's patcher class; looked up at each call, since the host swaps it at start-up."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
