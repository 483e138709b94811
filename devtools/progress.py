"""Shows a run's events as lines: one for each node, and a bar for nodes that report steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from devtools.prompt import Prompt, label

BAR_WIDTH = 24
SPARSE_SECONDS = 10.0


class Reporter:
    """Prints ComfyUI's events for `prompt`: a live bar on a terminal, sparse lines elsewhere."""

    def __init__(self, prompt: Prompt, stream: TextIO | None = None) -> None:
        self._prompt = prompt
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._begin = time.monotonic()
        self._bar_node: str | None = None
        self._bar_begin = 0.0
        self._bar_printed = 0.0
        self._bar_done = False

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        """Take one event as it goes over ComfyUI's websocket."""
        if event == "execution_cached" and data.get("nodes"):
            self.line(f"{len(data['nodes'])} nodes unchanged since the last run")
        elif event == "executing" and data.get("node") is not None:
            self.line(label(self._prompt, str(data["node"])))
        elif event == "progress_state":
            for node_id, state in data.get("nodes", {}).items():
                if state.get("state") == "running" and state.get("max", 0) > 1:
                    self._bar(node_id, state["value"], state["max"])

    def line(self, text: str) -> None:
        """Print `text` with the seconds since the start, below an unfinished bar."""
        self.close()
        self._write(f"[{time.monotonic() - self._begin:7.1f} s] {text}\n")

    def close(self) -> None:
        """End a bar that still has its line."""
        if self._bar_node is not None and self._live:
            self._write("\n")
        self._bar_node = None

    def _bar(self, node_id: str, value: float, total: float) -> None:
        now = time.monotonic()
        if node_id != self._bar_node:
            self.close()
            self._bar_node, self._bar_begin = node_id, now
            self._bar_printed, self._bar_done = now, False
        filled = int(BAR_WIDTH * value / total)
        left = (now - self._bar_begin) * (total - value) / value if value else 0.0
        text = f"{'#' * filled}{'.' * (BAR_WIDTH - filled)} {value:g}/{total:g}  {left:.0f} s left"
        if self._live:
            self._write(f"\r            {text:<60}")
            return
        finished = value >= total and not self._bar_done
        if finished or now - self._bar_printed >= SPARSE_SECONDS:
            self._bar_printed, self._bar_done = now, value >= total
            self._write(f"            {text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
