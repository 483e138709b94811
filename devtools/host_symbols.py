"""Which names of ComfyUI the pack uses, and whether a version of it has them.

    python3 -m devtools.host_symbols COMFYUI_TREE ...

Nothing is imported: both sides are read as source. What is asked for with `getattr`, or where an
ImportError is caught, may be missing and is not looked at. Neither is what belongs to objects.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOTS = frozenset(
    "comfy comfy_api comfy_execution comfy_extras app execution folder_paths latent_preview "
    "node_helpers nodes server utils".split()
)
UNKNOWN = "unknown"  # of another package, or made when the module runs


@dataclass(frozen=True)
class Use:
    """A name of ComfyUI in the pack's source, and the call that it is the function of, if any."""

    place: str
    name: tuple[str, ...]
    call: ast.Call | None = None


Definition = tuple[Path, ast.AST]  # with the module it stands in
# What a name means: a module or folder, a definition, UNKNOWN, or None where it is missing.
Meaning = Path | Definition | str | None


@dataclass
class Tree:
    """A source tree of ComfyUI, read as far as it is asked about."""

    folder: Path
    _modules: dict[Path, dict[str, ast.AST]] = field(default_factory=dict)

    def problem(self, use: Use) -> str | None:
        """What is wrong with a use in this version; None where nothing is."""
        found: Meaning = self._module(use.name[:1])
        for place, part in enumerate(use.name[1:], 1):
            if found is None:
                return f"{'.'.join(use.name[:place])} is missing"
            found = self._inside(found, part)
        if found is None:
            return f"{'.'.join(use.name)} is missing"
        if use.call is None or not isinstance(found, tuple):
            return None
        return self._refusal(found, use.call)

    def _module(self, name: tuple[str, ...]) -> Path | None:
        path = self.folder.joinpath(*name)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
        return path if path.is_dir() else None

    def _inside(self, found: Meaning, part: str) -> Meaning:
        """What a name after a dot means."""
        if found == UNKNOWN or (part.startswith("__") and part != "__init__"):
            return UNKNOWN
        if isinstance(found, Path):
            bound = self._resolve(found, part) if found.is_file() else None
            return bound or self._submodule(found, part)
        if isinstance(found, tuple) and isinstance(found[1], ast.ClassDef):
            return self._member(found[0], found[1], part)
        return UNKNOWN

    def _submodule(self, package: Path, name: str) -> Path | None:
        if package.is_file() and package.name != "__init__.py":
            return None
        folder = package if package.is_dir() else package.parent
        return self._module((*folder.relative_to(self.folder).parts, name))

    def names(self, file: Path) -> dict[str, ast.AST]:
        """What a module binds at its top level, wherever it stands in ifs and tries."""
        if file not in self._modules:
            self._modules[file] = {}
            tree = _parse(file)
            for node in _statements(tree.body):
                self._modules[file] |= self._bound(file, node)
        return self._modules[file]

    def _bound(self, file: Path, node: ast.AST) -> dict[str, ast.AST]:
        if isinstance(node, ast.ImportFrom) and any(one.name == "*" for one in node.names):
            origin = self._origin(file, node)
            return dict(self.names(origin)) if origin and origin.is_file() else {}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return {(one.asname or one.name.partition(".")[0]): node for one in node.names}
        return dict.fromkeys(_targets(node), node)

    def _origin(self, file: Path, node: ast.ImportFrom) -> Path | None:
        parts = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            folder = file.parent
            for _ in range(node.level - 1):
                folder = folder.parent
            parts = (*folder.relative_to(self.folder).parts, *parts)
        return self._module(parts)

    def _resolve(self, file: Path, name: str) -> Meaning:
        """What a module's name means, through what it imports from ComfyUI's other files."""
        node = self.names(file).get(name)
        if node is None:
            return None
        if isinstance(node, ast.Import):
            one = next(o for o in node.names if name in (o.asname, o.name.partition(".")[0]))
            parts = one.name.split(".") if one.asname else [name]
            return self._module(tuple(parts)) or UNKNOWN
        if isinstance(node, ast.ImportFrom):
            original = next((o.name for o in node.names if (o.asname or o.name) == name), name)
            origin = self._origin(file, node)
            return (self._inside(origin, original) if origin else None) or UNKNOWN
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            return file, node
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            return self._resolve(file, node.value.id) or UNKNOWN
        return UNKNOWN

    def _member(self, file: Path, owner: ast.ClassDef, name: str) -> Meaning:
        for node in _statements(owner.body):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name == name:
                    return file, node
                if any(name == attribute for attribute in _attributes(node)):
                    return UNKNOWN
            elif name in _targets(node):
                return UNKNOWN
        for base in owner.bases:
            inside = self._inside(self._class(file, base), name)
            if inside is not None:
                return inside
        return None

    def _class(self, file: Path, base: ast.expr) -> Meaning:
        chain = chain_of(base)
        found = self._resolve(file, chain[0]) if chain else None
        for part in chain[1:]:
            found = self._inside(found, part) if found else None
        return found or UNKNOWN

    def _refusal(self, found: Definition, call: ast.Call) -> str | None:
        """Why a function or class does not take a call's arguments; None where it does."""
        file, definition = found
        skipped = 0
        if isinstance(definition, ast.ClassDef) and not definition.decorator_list:
            inside = self._member(file, definition, "__init__")
            definition, skipped = (inside[1], 1) if isinstance(inside, tuple) else (definition, 0)
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        if not isinstance(definition, functions) or definition.decorator_list:
            return None
        return unbindable(definition.args, call, skipped)


def unbindable(arguments: ast.arguments, call: ast.Call, skipped: int = 0) -> str | None:
    """What of a call does not fit these parameters, of which the first `skipped` are given."""
    if any(isinstance(one, ast.Starred) for one in call.args):
        return None
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)][skipped:]
    if len(call.args) > len(positional) and arguments.vararg is None:
        return f"it takes {len(positional)} positional arguments, {len(call.args)} are given"
    names = [one.arg for one in call.keywords]
    known = {*positional, *(one.arg for one in arguments.kwonlyargs)}
    unknown = [name for name in names if name is not None and name not in known]
    if unknown and arguments.kwarg is None:
        return f"it has no {', '.join(unknown)}"
    if None in names:
        return None
    required = positional[len(call.args) : len(positional) - len(arguments.defaults)]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required += [one.arg for one, default in pairs if default is None]
    lost = [name for name in required if name not in names]
    return f"it wants {', '.join(lost)}" if lost else None


def chain_of(node: ast.AST) -> list[str]:
    """["a", "b", "c"] of a.b.c; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
                yield from _statements(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    given = getattr(node, "targets", None) or [getattr(node, "target", None)]
    if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For)):
        return []
    return [one.id for target in given for one in ast.walk(target) if isinstance(one, ast.Name)]


def _attributes(function: ast.AST) -> Iterator[str]:
    """What a method sets on its object."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr


def uses_of(pack: Path) -> Iterator[Use]:
    """Every name of ComfyUI in the pack's own source."""
    for file in [pack / "__init__.py", *sorted((pack / "nodes").rglob("*.py"))]:
        yield from _uses_in(file, file.relative_to(pack).as_posix())


def _uses_in(file: Path, shown: str) -> Iterator[Use]:
    tree = _parse(file)
    tried = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(_catches_import(one) for one in node.handlers)
        for inner in ast.walk(node)
    }
    bound: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(tree):
        for name, here, parts in _imported(node):
            bound[name] = here
            if id(node) not in tried:
                yield Use(f"{shown}:{node.lineno}", parts)
    yield from _chains(tree, shown, bound, tried)


def _imported(node: ast.AST) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(name in the module, what it stands for, what is imported) of ComfyUI's modules."""
    if isinstance(node, ast.Import):
        for one in node.names:
            parts = tuple(one.name.split("."))
            if parts[0] in ROOTS:
                yield one.asname or parts[0], parts if one.asname else parts[:1], parts
    elif isinstance(node, ast.ImportFrom) and not node.level:
        module = tuple((node.module or "").split("."))
        for one in node.names if module[0] in ROOTS else ():
            yield one.asname or one.name, (*module, one.name), (*module, one.name)


def _catches_import(handler: ast.ExceptHandler) -> bool:
    names = {one.id for one in ast.walk(handler.type or handler) if isinstance(one, ast.Name)}
    return bool({"ImportError", "ModuleNotFoundError", "AttributeError"} & names)


def _chains(
    tree: ast.AST, shown: str, bound: dict[str, tuple[str, ...]], tried: set[int]
) -> Iterator[Use]:
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Attribute, ast.Name)) or id(node) in inner | tried:
            continue
        inner |= {id(one) for one in ast.walk(node)} - {id(node)}
        chain = chain_of(node)
        if chain and chain[0] in bound:
            name = (*bound[chain[0]], *chain[1:])
            yield Use(f"{shown}:{node.lineno}", name, called.get(id(node)))


def scan(pack: Path, folder: Path) -> list[str]:
    """What the pack uses and the ComfyUI in `folder` does not have, or takes otherwise."""
    tree = Tree(folder)
    found = []
    for use in uses_of(pack):
        problem = tree.problem(use)
        if problem:
            found.append(f"{use.place} {'.'.join(use.name)}: {problem}")
    return sorted(set(found))


def main(arguments: list[str]) -> int:
    """Scan each tree; 1 if one has problems."""
    pack = Path(__file__).resolve().parents[1]
    failed = 0
    for folder in arguments:
        problems = scan(pack, Path(folder))
        print(f"{folder}: {len(problems)} problems")
        for one in problems:
            print(f"  {one}")
        failed |= bool(problems)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
