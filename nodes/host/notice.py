"""Texts for the person at the page, on the node at work; and in the log."""

from __future__ import annotations

import logging
import sys

from comfy_execution.utils import get_executing_context

LOG = logging.getLogger("skyreels_v2")


def warn(text: str) -> None:
    """Say something to the person, in the log and on the node at work."""
    LOG.warning(text)
    show(text)


def show(text: str) -> None:
    """Show a text on the node at work; nothing where no page is served."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    send, context = getattr(server, "send_progress_text", None), get_executing_context()
    if send is not None and context is not None:
        send(text, context.node_id)
