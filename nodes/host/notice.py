"""Texts for the person at the page, on the node at work; and in the log."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_execution.utils import get_executing_context

LOG = logging.getLogger("skyreels_v2")


def warn(text: str) -> None:
    """Say something to the person, in the log and on the node at work."""
    LOG.warning(text)
    show(text)


def show(text: str) -> None:
    """Show a text on the node at work; nothing where no page is served."""
    send, context = getattr(_server(), "send_progress_text", None), get_executing_context()
    if send is not None and context is not None:
        # Half letters, of texts in a wrong encoding, cannot be sent.
        send(text.encode("utf-8", "replace").decode("utf-8"), context.node_id)


def send(event: str, content: dict[str, Any]) -> None:
    """Send something about the node at work to the page that has queued it, if there is one."""
    context = get_executing_context()
    if has_page() and context is not None:
        server = _server()
        server.send_sync(event, {"node": context.node_id, **content}, server.client_id)


def has_page() -> bool:
    """Whether a page has queued what is at work."""
    return getattr(_server(), "client_id", None) is not None


def _server() -> Any:
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
