"""Which source text can be reached from a function, and a digest of it.

The unit is a definition at the top of a module: a function, a class, a table. From one definition
its names lead to others, through imports at the top of a module and inside functions. Names that
only annotations use lead nowhere, nor do imports for the type checker. What is not a definition (a
loop at the top of a module, say) belongs to every definition of its module. Where a module itself
is handed on, all of it counts.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from manyeyes.pipeline.source_text import SourceText

ROW = "@"
"""``module:TABLE@key`` names one row of a table, ``module:function@Case`` one arm of a match."""


@dataclass
class Definition:
    """Statements that define one name, and the names they use."""

    texts: list[str] = field(default_factory=list)
    used: set[tuple[str, ...]] = field(default_factory=set)
    """Dotted names, resolved in the module."""
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """What imports inside it bind: name to module and name there, None for the module itself."""


class Module:
    """One parsed file of the package."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.is_package = path.name == "__init__.py"
        text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(text)
        self._cut = SourceText(text, self.tree)
        self.definitions: dict[str, Definition] = {}
        self.always = Definition()
        self.imported: dict[str, tuple[str, str | None]] = {}
        self.lazy: dict[str, tuple[str, str | None]] = {}
        """What a module's ``__getattr__`` gives, as it tells the type checker."""
        for statement in self.tree.body:
            self._add(statement)

    def _add(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import() | ast.ImportFrom():
                self.imported.update(self.bound(statement))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._define([statement.name], statement)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                self._define(sorted(_stored(statement)), statement)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for other in statement.orelse:
                    self._add(other)
                for given in _imports(ast.Module(body=statement.body, type_ignores=[])):
                    self.lazy.update(self.bound(given))
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case _:
                self._extend(self.always, statement)
                for name in _stored(statement):
                    self.definitions[name] = self.always

    def _define(self, names: list[str], statement: ast.stmt) -> None:
        if names == ["__all__"]:
            return
        if not names:  # it changes something that is defined elsewhere
            self._extend(self.always, statement)
        for name in names:
            self._extend(self.definitions.setdefault(name, Definition()), statement)

    def _extend(self, definition: Definition, node: ast.AST) -> None:
        definition.texts.append(self.text_of(node))
        for name in _Names(node):
            definition.used.add(name)
        for inner in _imports(node):
            definition.imported.update(self.bound(inner))

    def part(self, name: str, key: str) -> Definition:
        """Return one row of a table, or one arm of a match statement.

        Raises:
            KeyError: there is none.
        """
        definition = Definition()
        for statement in self.tree.body:
            if name in _stored(statement):
                for node in _rows(statement, key):
                    self._extend(definition, node)
        if not definition.texts:
            raise KeyError(f"{self.name}:{name}{ROW}{key}")
        definition.imported.update(
            self.definitions[name].imported if name in self.definitions else {}
        )
        return definition

    def text_of(self, node: ast.AST) -> str:
        """Return a node's source, without comments, docstrings and blank lines."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(one.lineno for one in decorators)])  # type: ignore[attr-defined]
        return self._cut.text(first, node.end_lineno or first)  # type: ignore[attr-defined]

    def bound(self, node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
        """Return what an import binds."""
        if isinstance(node, ast.Import):
            return {
                one.asname or one.name.split(".")[0]: (
                    one.name if one.asname else one.name.split(".")[0],
                    None,
                )
                for one in node.names
            }
        module = node.module or ""
        if node.level:
            parts = self.name.split(".")
            keep = len(parts) - node.level + self.is_package
            module = ".".join([*parts[:keep], *([module] if module else [])])
        return {one.asname or one.name: (module, one.name) for one in node.names}


def _rows(statement: ast.stmt, key: str) -> Iterator[ast.AST]:
    """Yield the value of a dictionary's key, or the arm of a match for a class."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key:
                    yield value
            return
        if isinstance(node, ast.Match):
            for case in node.cases:
                if isinstance(case.pattern, ast.MatchClass) and _name(case.pattern.cls) == key:
                    yield from case.body


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports among a node's statements, at any depth."""
    for child in getattr(node, "body", []), getattr(node, "orelse", []), *_other_blocks(node):
        for statement in child if isinstance(child, list) else []:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                yield statement
            else:
                yield from _imports(statement)


def _other_blocks(node: ast.AST) -> Iterator[list[ast.AST]]:
    yield getattr(node, "finalbody", [])
    yield getattr(node, "handlers", [])
    yield getattr(node, "cases", [])


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _stored(node: ast.AST) -> set[str]:
    """Return the names that a statement binds, without those inside functions and classes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, ast.AugAssign | ast.AnnAssign) and isinstance(node.target, ast.Name):
        names.add(node.target.id)
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {one.asname or one.name.split(".")[0] for one in node.names}
    if isinstance(node, ast.expr) and not isinstance(
        node, ast.Tuple | ast.List | ast.Starred | ast.NamedExpr
    ):
        return names
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp):
            names |= _stored(child)
    return names


class _Names:
    """The dotted names that a node uses and does not bind itself."""

    def __init__(self, node: ast.AST) -> None:
        self.found: set[tuple[str, ...]] = set()
        self._visit(node, frozenset())

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.found)

    def _visit(self, node: ast.AST, local: frozenset[str]) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._visit_all([*node.decorator_list, *_defaults(node.args)], local)
                self._visit_all(node.body, local | _locals(node))
            case ast.Lambda():
                self._visit_all(_defaults(node.args), local)
                self._visit(node.body, local | _arguments(node.args))
            case ast.Attribute():
                chain = _chain(node)
                if chain and chain[0] not in local:
                    self.found.add(chain)
                elif not chain:
                    self._visit(node.value, local)
            case ast.Name(id=name, ctx=ast.Load()):
                if name not in local:
                    self.found.add((name,))
            case _:
                self._visit_all(ast.iter_child_nodes(node), local)

    def _visit_all(self, nodes: Iterable[ast.AST], local: frozenset[str]) -> None:
        for node in nodes:
            self._visit(node, local)


def _chain(node: ast.expr) -> tuple[str, ...]:
    """Return ``a.b.c`` as its names; empty where it does not begin with a name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else ()


def _arguments(given: ast.arguments) -> set[str]:
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {one.arg for one in every if one is not None}


def _defaults(given: ast.arguments) -> list[ast.expr]:
    return [one for one in [*given.defaults, *given.kw_defaults] if one is not None]


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the names that a function binds, but those that it imports."""
    names = _arguments(function.args)
    for statement in function.body:
        names |= _stored(statement)
    for node in _imports(function):
        names -= {one.asname or one.name.split(".")[0] for one in node.names}
    return names


class Package:
    """The modules below a folder, parsed when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """Return a module of the package; None where the name is no module of it."""
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def _parse(self, name: str) -> Module | None:
        first, *rest = name.split(".")
        if first != self.name:
            return None
        place = self.folder.joinpath(*rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return Module(name, path)
        return None

    def digest(
        self, roots: Iterable[str], *, stop: Collection[str] = (), outside: Collection[str] = ()
    ) -> str:
        """Return a digest of everything that can be reached.

        Args:
            roots: ``module:name`` or ``module:table@row``.
            stop: definitions that are neither counted nor followed.
            outside: modules (with what is below them) that are not followed.

        Raises:
            KeyError: there is no such root.
        """
        reached = _Reached(self, frozenset(stop), tuple(outside))
        for root in roots:
            reached.add_root(root)
        return reached.digest


class _Reached:
    """What can be reached from some definitions."""

    def __init__(self, package: Package, stop: frozenset[str], outside: tuple[str, ...]) -> None:
        self._package = package
        self._stop = stop
        self._outside = outside
        self._texts: dict[str, list[str]] = {}

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256()
        for key, texts in sorted(self._texts.items()):
            found.update(f"{key}\0{chr(0).join(texts)}\0".encode())
        return found.hexdigest()[:16]

    def add_root(self, root: str) -> None:
        module_name, name = root.split(":")
        module = self._package.module(module_name)
        if module is None:
            raise KeyError(root)
        if ROW in name:
            table, key = name.split(ROW)
            self._take(root, module, module.part(table, key))
            return
        if name not in module.definitions:
            raise KeyError(root)
        self._take(root, module, module.definitions[name])

    def _take(self, key: str, module: Module, definition: Definition) -> None:
        if key in self._texts:
            return
        self._texts[key] = definition.texts
        always = f"{module.name}:"
        if module.always.texts and always not in self._texts:
            self._take(always, module, module.always)
        for chain in definition.used:
            self._follow(module, definition, chain)

    def _follow(self, module: Module, definition: Definition, chain: tuple[str, ...]) -> None:
        first, rest = chain[0], chain[1:]
        bound = definition.imported.get(first) or module.imported.get(first)
        if first in definition.imported or first not in module.definitions:
            if bound is not None:
                self._reach(*bound, rest)
            return
        self._reach(module.name, first, rest)

    def _reach(self, module_name: str, name: str | None, rest: tuple[str, ...]) -> None:
        """Reach ``name`` of a module, or the module, and from a module on the names behind it."""
        if any(module_name == one or module_name.startswith(f"{one}.") for one in self._outside):
            return
        module = self._package.module(module_name)
        if module is None:
            return
        if name is None:
            if rest:
                self._reach(module_name, rest[0], rest[1:])
            else:
                self._take_all(module)
            return
        key = f"{module_name}:{name}"
        if key in self._stop:
            return
        if name in module.definitions:
            self._take(key, module, module.definitions[name])
        elif name in module.imported:
            self._reach(*module.imported[name], rest)
        elif "__getattr__" in module.definitions and name in module.lazy:
            self._reach(*module.lazy[name], rest)
        elif self._package.module(f"{module_name}.{name}") is not None:
            self._reach(f"{module_name}.{name}", None, rest)

    def _take_all(self, module: Module) -> None:
        for name, definition in module.definitions.items():
            key = f"{module.name}:{name}"
            if key not in self._stop:
                self._take(key, module, definition)
