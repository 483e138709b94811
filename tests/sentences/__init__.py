"""Sentences for people: those that the source can say, and what js/lib/words.js makes of them."""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping

HOLE = "\u00a7"  # stands for a value
ERRORS = {
    "ValueError", "RuntimeError", "EndpointError", "NoAnswerError", "EngineFailedError", "Nonsense",
    "refuse", "warn", "show",
}  # fmt: skip
PARTS = {"_refusal", "_unreadable"}  # they put a sentence around their last argument
NEAREST = "; nearest: "
MOST = 12  # ways that a sentence with alternatives in it may go
DEPTH = 6

Scope = Mapping[str, list[ast.expr]]
Sentences = list[tuple[list[str], list[bool], str]]


def find_sentences(source: str) -> Iterator[str]:
    """What a module's errors and warnings say, each way they may go, with HOLE for each value."""
    tree = ast.parse(source)
    yield from _visit(tree, _assigned(tree.body))


def _visit(node: ast.AST, scope: Scope) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef):
            inner = {**scope, **_assigned(ast.walk(child))}
        elif isinstance(child, ast.Call) and child.args:
            yield from _said(child, scope)
        yield from _visit(child, inner)


def _said(call: ast.Call, scope: Scope) -> Iterator[str]:
    name = ast.unparse(call.func).split(".")[-1]
    if name == "refusal":  # (name, value, rule): of the first two only what is words
        for part in call.args[:2]:
            yield from (text for text in _texts(part, scope) if " " in text)
        yield from (text for rule in call.args[2:3] for text in _texts(rule, scope))
    elif name in ERRORS:
        yield from _texts(call.args[0], scope)
    elif name in PARTS:
        yield from (text for part in call.args for text in _texts(part, scope))


def _assigned(nodes) -> dict[str, list[ast.expr]]:
    """What names may stand for, by the assignments among these nodes."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(value)
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, part in zip(target.elts, value.elts, strict=False):
                    if isinstance(one, ast.Name):
                        found.setdefault(one.id, []).append(part)
    return found


def _texts(node: ast.expr, scope: Scope, depth: int = 0) -> list[str]:
    """All texts that an expression may be."""
    if depth > DEPTH:
        return [HOLE]
    match node:
        case ast.Constant():
            return [str(node.value)]
        case ast.JoinedStr():
            return _joined(node.values, scope, depth)
        case ast.BinOp(op=ast.Add()):
            return _joined([node.left, node.right], scope, depth)
        case ast.FormattedValue(conversion=-1, format_spec=None):
            return _texts(node.value, scope, depth + 1)
        case ast.IfExp():
            ways = [node.body, node.orelse]
        case ast.BoolOp():
            ways = node.values
        case ast.Name() if node.id in scope:
            ways = scope[node.id]
            scope = {name: values for name, values in scope.items() if name != node.id}
        case _:
            return [HOLE]
    return [text for way in ways for text in _texts(way, scope, depth + 1)]


def _joined(parts: list[ast.expr], scope: Scope, depth: int) -> list[str]:
    ways = itertools.product(*(_texts(part, scope, depth + 1) for part in parts))
    return ["".join(one) for one in itertools.islice(ways, MOST)]


def read_sentences(messages: Mapping[str, str]) -> Sentences:
    """A language's table as `tell` wants it."""
    holes = re.compile(r"\{(#?)\w+\}")
    found = [
        (re.split(r"\{#?\w+\}", text), [mark == "#" for mark in holes.findall(text)], translated)
        for text, translated in messages.items()
    ]

    def rank(one: tuple[list[str], list[bool], str]) -> tuple[bool, int]:
        return NEAREST not in HOLE.join(one[0]), -sum(map(len, one[0]))

    return sorted(found, key=rank)


def tell(sentences: Sentences, line: str) -> str:
    """A line in another language, as the page shows it."""
    for fixed, numbers, translated in sentences:
        values = _match(fixed, line)
        if values is None or not all(
            re.fullmatch(rf"[-+\d.,:%{HOLE}]+", value)
            for value, number in zip(values, numbers, strict=True)
            if number
        ):
            continue

        def fill(hole: re.Match[str], values: list[str] = values) -> str:
            value = values[int(hole[2]) - 1]
            if hole[1] == "l":
                return "\u3001".join(tell(sentences, one) for one in value.split(", "))
            return tell(sentences, value) if hole[1] else value

        return re.sub(r"\{([tl]?)(\d+)\}", fill, translated)
    return line


def _match(fixed: list[str], text: str) -> list[str] | None:
    if not text.startswith(fixed[0]):
        return None
    values, at = [], len(fixed[0])
    for place, part in enumerate(fixed[1:], 1):
        last = place == len(fixed) - 1
        found = len(text) - len(part) if last else text.find(part, at)
        if found < at or not text.startswith(part, found):
            return None
        values.append(text[at:found])
        at = found + len(part)
    return values if at == len(text) else None
