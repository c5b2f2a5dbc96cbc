"""Source text without comments, docstrings and blank lines.

They are cut out by their position, so that a text is the same for every version of Python.
"""

from __future__ import annotations

import ast
import io
import re

STRING_OR_COMMENT = re.compile(
    r"#[^\n]*"
    r'|"""(?:\\.|[^\\])*?"""'
    r"|'''(?:\\.|[^\\])*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'",
    re.DOTALL,
)


class SourceText:
    """A file's lines without comments, docstrings and blank lines."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        # At line feeds alone, as Python counts lines; its columns count bytes.
        self._lines = [line.encode() for line in io.StringIO(text)]
        self._inside: set[int] = set()  # lines that begin within a string
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self._find_comments(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and _is_text(node.value):
                self._remove(node)

    def _find_comments(self, text: str) -> None:
        number, seen = 1, 0
        for found in STRING_OR_COMMENT.finditer(text):
            start, end = found.span()
            number += text.count("\n", seen, start)
            seen = start
            if found.group().startswith("#"):
                line = text.rfind("\n", 0, start) + 1
                before, length = len(text[line:start].encode()), len(found.group().encode())
                self._spans.setdefault(number, []).append((before, before + length))
            else:
                lines = text.count("\n", start, end)
                self._inside.update(range(number + 1, number + lines + 1))

    def _remove(self, node: ast.Expr) -> None:
        last = node.end_lineno or node.lineno
        for number in range(node.lineno, last + 1):
            start = node.col_offset if number == node.lineno else 0
            end = (node.end_col_offset or 0) if number == last else len(self._lines[number - 1])
            self._spans.setdefault(number, []).append((start, end))
            self._inside.discard(number)

    def text(self, first: int, last: int) -> str:
        """Return the lines from ``first`` to ``last``, counted from 1, without them."""
        kept = []
        for number in range(first, last + 1):
            line = self._lines[number - 1]
            for start, end in sorted(self._spans.get(number, []), reverse=True):
                line = line[:start] + line[end:]
            whole = number not in self._inside or bool(self._spans.get(number))
            if whole and not line.strip():
                continue
            if number + 1 not in self._inside:
                line = line.rstrip() + b"\n"
            kept.append(line)
        return b"".join(kept).decode()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
