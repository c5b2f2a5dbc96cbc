"""Compiling the pipeline of a recipe to KFP IR YAML: the same recipe gives the same bytes.

Nothing is written that would not run: the result is held against KFP's schema, its references and
the shapes that kfp.local runs wrongly, for both targets, since both run one graph.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact import atomic_write_text
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.lint import Node


def compile_pipeline(recipe: Recipe, image: str | None, out: Path) -> None:
    """Write the IR YAML of a recipe's pipeline.

    Args:
        recipe: the checked recipe.
        image: for a cluster, the trainer image pinned by digest; None compiles what ``run`` runs.
        out: the ``.yaml`` file to write, atomically.

    Raises:
        UserError: the image is not pinned, the recipe is too long for KFP, or ``out`` cannot be
            written.
    """
    text = pipeline_yaml(recipe, image)
    if out.is_dir() or not out.name.endswith((".yaml", ".yml")):
        raise UserError(f"Cannot compile to {out}: give the path of a .yaml file with -o.")
    try:
        atomic_write_text(out, text)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror}; choose another -o.") from None


def pipeline_yaml(recipe: Recipe, image: str | None) -> str:
    """Return the checked IR YAML of a recipe's pipeline."""
    from kfp import compiler

    from pipelines import lint
    from pipelines.training import LOCAL_IMAGE, build

    if image is None:
        pipeline = build(recipe, "local", LOCAL_IMAGE)
    else:
        pipeline = build(recipe, "cluster", image)
    with tempfile.TemporaryDirectory(prefix="manyeyes-") as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        text = path.read_text(encoding="utf-8")
    found = lint.problems(read_documents(text), local=image is None)
    if found:  # a bug in the definition of the pipeline, which the tests would have shown
        raise ManyeyesError("\n".join(found))
    return text


def read_documents(text: str) -> list[Node]:
    """Return the YAML documents of a compiled pipeline."""
    from ruamel.yaml import YAML

    return list(YAML(typ="safe", pure=True).load_all(text))
