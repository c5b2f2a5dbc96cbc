"""The source files of a checkout, parsed: modules, what they import, classes and functions."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CODE = ("manyeyes", "components", "pipelines")
"""Folders with the product's code, as far as a checkout has them."""
LINKS = {"manyeyes.kubeflow.components": "components", "manyeyes.kubeflow.pipelines": "pipelines"}
"""Names under which folders at the top are imported."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        """The file's text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes at the top of the module, without those with an underscore."""
        return [
            node.name
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]

    @property
    def num_functions(self) -> int:
        """Functions and methods, at any depth."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return sum(isinstance(node, kinds) for node in ast.walk(self.tree))

    @property
    def num_code_lines(self) -> int:
        """Lines with code: no blank lines, comments or docstrings."""
        lines: set[int] = set()
        skipped = {
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
        }
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in skipped and token.type != tokenize.ENDMARKER:
                lines.update(range(token.start[0], token.end[0] + 1))
        return len(lines - self._docstring_lines)

    @cached_property
    def _docstring_lines(self) -> set[int]:
        found: set[int] = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return found


class Source:
    """The product's modules in a checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {module.name: module for module in self._find()}

    def _find(self) -> Iterator[Module]:
        for folder in CODE:
            for path in sorted((self.root / folder).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                if any((self.root / Path(*parts[:i])).is_symlink() for i in range(1, len(parts))):
                    continue  # a folder of the top, counted there
                yield Module(".".join(parts).removesuffix(".__init__"), path)

    def imports(self, module: Module) -> set[str]:
        """Return the modules of the product that a module imports, at any depth."""
        found: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found.update(one.name for one in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for one in node.names:
                    whole = f"{node.module}.{one.name}"
                    found.add(whole if self._own(whole) in self.modules else node.module)
        return {self._own(name) for name in found} & self.modules.keys() - {module.name}

    @staticmethod
    def _own(name: str) -> str:
        """Return the name by which a module is counted: folders at the top by their own."""
        for link, folder in LINKS.items():
            if name == link or name.startswith(f"{link}."):
                return folder + name.removeprefix(link)
        return name
