"""The README of each component, made from its signature and docstring.

A page written by hand and a signature drift apart. ``python -m
manyeyes.kubeflow.pipelines.document`` writes the pages, and a test compares them with what this
module makes.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMPONENTS = Path(__file__).resolve().parents[1] / "components"


def pages() -> dict[Path, str]:
    """Return every README: its path and its text."""
    from manyeyes.kubeflow.pipelines.training import COMPONENTS as FUNCTIONS

    return {COMPONENTS / name / "README.md": page(name, step) for name, step in FUNCTIONS.items()}


def page(name: str, step: Callable[..., object]) -> str:
    """Return the README of one step function."""
    summary, arguments, returns = _parse(inspect.getdoc(step) or "")
    lines = [
        f"# {name}",
        "",
        summary,
        "",
        "| name | what | type | meaning |",
        "| --- | --- | --- | --- |",
        *_rows(step, arguments),
        "",
        *([f"Returns {returns[0].lower()}{returns[1:]}", ""] if returns else []),
        *_usage(name),
        "",
        "Made by `python -m manyeyes.kubeflow.pipelines.document` from the signature and "
        "docstring in [component.py](component.py).",
        "",
    ]
    return "\n".join(lines)


def _rows(step: Callable[..., object], arguments: Mapping[str, str]) -> list[str]:
    rows = []
    for name, parameter in inspect.signature(step).parameters.items():
        sort, kind = _describe(parameter.annotation)
        rows.append(f"| `{name}` | {sort} | {kind} | {arguments[name]} |")
    return rows


def _describe(annotation: object) -> tuple[str, str]:
    """Return whether an annotation is an input, an output or a parameter, and its type's name."""
    from kfp.dsl.types.type_annotations import InputAnnotation, OutputAnnotation

    marks = getattr(annotation, "__metadata__", ())
    sort = "parameter"
    if InputAnnotation in marks:
        sort = "input artifact"
    elif OutputAnnotation in marks:
        sort = "output artifact"
    return sort, _type_name(get_args(annotation)[0] if marks else annotation)


def _type_name(kind: object) -> str:
    arguments = ", ".join(_type_name(argument) for argument in get_args(kind))
    name = str(getattr(kind, "__name__", kind))
    return f"{name}[{arguments}]" if arguments else name


def _usage(name: str) -> list[str]:
    from manyeyes import steps

    if name not in {step.name for step in steps.STEPS}:
        return ["It has no verb on the command line: the other skins do not need it."]
    needed = steps.step(name)
    flags = "".join(f" --{one.role} {'DIR...' if one.many else 'DIR'}" for one in needed.inputs)
    expert = " --expert NAME" if needed.per_expert else ""
    return [
        f"The same on the command line: `manyeyes {name} RECIPE{expert}{flags} --out DIR`.",
        "",
        "In an image it needs this repository's packages, `kfp`, and `kfp_config.ini` in the "
        "working directory (`pipelines/containerize.py` makes it).",
    ]


def _parse(text: str) -> tuple[str, dict[str, str], str]:
    """Split a Google-style docstring into summary, arguments and what it returns."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        if line in ("Args:", "Returns:"):
            current = line
            sections[current] = []
        else:
            sections[current].append(line)
    arguments: dict[str, str] = {}
    for line in sections.get("Args:", []):
        name, _, words = line.strip().partition(": ")
        if words:
            arguments[name] = words
    summary = " ".join(line.strip() for line in sections[""] if line.strip())
    return (
        summary,
        arguments,
        " ".join(line.strip() for line in sections.get("Returns:", [])).strip(),
    )


def main() -> int:
    """Write every README."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(COMPONENTS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
