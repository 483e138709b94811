"""The rows as they come: into a JSON file, into a table, and to the screen."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

from .sections import Section

NOTE = "note"


def cell(value: Any) -> str:
    """A value as people read it in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value == 0 or abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")


class Report:
    """Writes `rows.json` (a list) and `table.md` in a folder, whole after every row."""

    def __init__(self, folder: pathlib.Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, size
        self.rows: list[dict[str, Any]] = []
        self._table = ""
        self._section = ""
        self._begin = time.time()
        self._write()

    def add(self, section: Section, cells: dict[str, Any]) -> None:
        """One more row of a section; what no column is for goes into its note."""
        columns = (*section.columns, NOTE)
        if section.name != self._section:
            self._section = section.name
            title = section.title.format(size=self.size)
            head = f"\n## {title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
            self._say(head)
        others = [f"{k}: {cell(v)}" for k, v in cells.items() if k not in columns]
        shown = {**cells, NOTE: ", ".join([*filter(None, [cell(cells.get(NOTE))]), *others])}
        self._say(f"| {' | '.join(cell(shown.get(name)) for name in columns)} |\n")
        seconds = round(time.time() - self._begin, 1)
        self.rows.append({"section": section.name, "at": seconds, **cells})
        self._write()

    def end(self) -> None:
        self._say(f"\n{time.strftime('%Y-%m-%d')}, {time.time() - self._begin:.0f} s in all.\n")
        self._write()

    def _say(self, text: str) -> None:
        print(text, end="", flush=True)
        self._table += text

    def _write(self) -> None:
        for name, text in (
            ("rows.json", json.dumps(self.rows, indent=1)),
            ("table.md", self._table),
        ):
            scratch = self.folder / f"{name}.new"
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.folder / name)
