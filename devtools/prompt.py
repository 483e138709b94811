"""API-format prompts: read, change by `--set`, and say readably what ComfyUI finds wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Prompt = dict[str, dict[str, Any]]


class BadPrompt(Exception):
    """The file or a `--set` is not usable; its text says what would be."""


class InvalidPrompt(Exception):
    """ComfyUI refused the prompt: its `error` and, by node id, its `node_errors`."""

    def __init__(self, error: Any, node_errors: Mapping[str, Any]) -> None:
        self.error = error
        self.node_errors = node_errors
        super().__init__("\n".join(_error_lines(error, node_errors)))


def load(path: Path) -> Prompt:
    """Read the API-format prompt in `path`; BadPrompt says why another file is refused."""
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadPrompt(f"cannot read {path}: {error}") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise BadPrompt(_ui_format_message(path))
    if not isinstance(prompt, dict) or not prompt or not all(map(_is_node, prompt.values())):
        raise BadPrompt(
            f"{path} is not an API-format prompt: an object of nodes by id, each with class_type "
            "and inputs"
        )
    return prompt


def _is_node(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_type"), str)
        and isinstance(value.get("inputs"), dict)
    )


def _ui_format_message(path: Path) -> str:
    twin = path.parent / "api" / path.name
    if twin.is_file():
        remedy = f"its API form lies in {twin}"
    else:
        remedy = "in ComfyUI save its API form with Workflow > Export (API)"
    return f"{path} is in the page's (UI) format, which only the page can run; {remedy}"


class Added(NamedTuple):
    """An input that `--set` gave to a node and the prompt had not: exports omit optional ones."""

    assignment: str
    node_id: str
    name: str


def assign(prompt: Prompt, assignments: Sequence[str]) -> list[Added]:
    """Carry out `node.input=value` assignments on `prompt`; `check_added` has to see the result.

    A node goes by its id, its title (`_meta.title`) or, when it occurs once, its class. A value
    that parses as JSON is taken as that, anything else as text. BadPrompt lists what is legal.
    """
    added = []
    for assignment in assignments:
        left, equals, text = assignment.partition("=")
        if not equals or "." not in left:
            raise BadPrompt(f"--set {assignment}: the form is node.input=value")
        node_id, name = _resolve(prompt, left)
        inputs = prompt[node_id]["inputs"]
        if name not in inputs:
            added.append(Added(assignment, node_id, name))
        inputs[name] = _value(text)
    return added


def check_added(
    prompt: Prompt, added: Sequence[Added], inputs_of: Callable[[str], Sequence[str] | None]
) -> None:
    """Raise BadPrompt for an added input that its node does not have: the host ignores such.

    `inputs_of(class)` is what the host says that a class of nodes takes, None if it lacks it.
    """
    for assignment, node_id, name in added:
        kind = prompt[node_id]["class_type"]
        declared = inputs_of(kind)
        # The parts of an input that grows have its name and a dot before theirs.
        if declared is not None and not {name, name.partition(".")[0]} & set(declared):
            raise BadPrompt(
                f"--set {assignment}: node {node_id} ({kind}) has no input {name!r}; it has "
                f"{', '.join(declared) or 'none'}"
            )


def declared_inputs(declaration: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names in what ComfyUI's INPUT_TYPES returns, also over HTTP."""
    return [name for group in ("required", "optional") for name in declaration.get(group, ())]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _resolve(prompt: Prompt, left: str) -> tuple[str, str]:
    """Split `left` into node id and input at the first dot before which a node is named.

    Titles may hold dots, and so may input names.
    """
    parts = left.split(".")
    for count in range(1, len(parts)):
        named = ".".join(parts[:count])
        matches = _matches(prompt, named)
        if len(matches) > 1:
            raise BadPrompt(f"--set {left}: {named!r} is several nodes, use an id: {matches}")
        if matches:
            return matches[0], ".".join(parts[count:])
    nodes = "\n".join(f"  {label(prompt, node_id)}" for node_id in prompt)
    raise BadPrompt(f"--set {left}: no such node; there are\n{nodes}")


def _matches(prompt: Prompt, named: str) -> list[str]:
    if named in prompt:
        return [named]
    return [i for i, node in prompt.items() if named in (node["class_type"], title(node))]


def title(node: Mapping[str, Any]) -> str | None:
    """The title a person gave the node, where the export kept it."""
    return node.get("_meta", {}).get("title")


def label(prompt: Prompt, node_id: str) -> str:
    """`5 SkyReelsV2Sampler "my title"`; nodes a host expanded at run time have only their id."""
    node = prompt.get(node_id)
    if node is None:
        return node_id
    named = title(node)
    suffix = f' "{named}"' if named and named != node["class_type"] else ""
    return f"{node_id} {node['class_type']}{suffix}"


def _error_lines(error: Any, node_errors: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(error, Mapping):
        message = error.get("message", "refused")
        details = str(error.get("details") or "")
        # With node errors the details are only their concatenation.
        shown = f" ({details})" if details and not node_errors else ""
        yield f"invalid prompt: {message}{shown}"
    else:
        yield f"invalid prompt: {error}"
    for node_id, entry in node_errors.items():
        for one in entry.get("errors", ()):
            extra = one.get("extra_info") or {}
            name = extra.get("input_name")
            where = f"  node {node_id} ({entry.get('class_type', '?')})"
            where += f", input {name}" if name else ""
            details = f" ({one['details']})" if one.get("details") else ""
            yield f"{where}: {one.get('message', '?')}{details}"
