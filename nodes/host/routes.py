"""What the page asks of the pack while a graph is edited: one route for each question."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger("skyreels_v2")
PREFIX = "/skyreels_v2/"
MAX_BODY = 4 * 2**20  # bytes: the longest storyboard, in any alphabet
Answer = Callable[[Any], dict[str, Any]]


class Nonsense(ValueError):
    """A question that the pack's own pages do not ask."""


def serve(name: str, answer: Answer) -> None:
    """Let the host's server answer POST /skyreels_v2/<name>; nothing where there is no server.

    answer: from the question's JSON to the answer's, in a thread of its own; raises Nonsense.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    path = PREFIX + name
    if any(getattr(route, "path", None) == path for route in server.routes):
        return  # another copy of the pack was here first; a second route ends the server
    from aiohttp import web

    async def respond(request: Any) -> Any:
        status, content = await _respond(request, answer)
        return web.json_response(content, status=status)

    server.routes.post(path)(respond)


async def _respond(request: Any, answer: Answer) -> tuple[int, dict[str, Any]]:
    body = await request.content.read(MAX_BODY + 1)
    while len(body) <= MAX_BODY and not request.content.at_eof():
        body += await request.content.read(MAX_BODY + 1 - len(body))
    if len(body) > MAX_BODY:
        return 413, {"error": f"the question is longer than {MAX_BODY} bytes"}
    try:
        question = json.loads(body)
    except (ValueError, RecursionError) as error:
        return 400, {"error": f"the question is not JSON: {error}"}
    try:
        # The server's own loop goes on meanwhile.
        return 200, await asyncio.to_thread(answer, question)
    except Nonsense as error:
        return 400, {"error": str(error)}
    except Exception as error:
        LOG.exception("the page's question could not be answered")
        return 500, {"error": f"{type(error).__name__}: {error}"}
