"""Reading and writing a recipe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from manyeyes.config.recipe import strict_yaml
from manyeyes.config.recipe.sections import Recipe


def load_recipe(path: Path) -> Recipe:
    """Read and check one recipe.

    Raises:
        UserError: the file cannot be read, is not YAML, or breaks the schema; one line per problem.
    """
    return parse_recipe(strict_yaml.read_text(path, "recipe"), str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Check a recipe's text; ``where`` names it in errors."""
    return strict_yaml.parse(text, where, Recipe, "recipe")


def place_in(path: Path, key: Sequence[str | int]) -> str:
    """Return where a key stands in a recipe's file: ``FILE:LINE: KEY``."""
    line = strict_yaml.line_of(strict_yaml.read_text(path, "recipe"), key)
    return f"{path}:{line}: {'.'.join(str(part) for part in key)}"


def recipe_yaml(recipe: Recipe) -> str:
    """Return the recipe as it was understood, in YAML that loads back to the same recipe."""
    buffer = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(recipe.model_dump(mode="json", by_alias=True, exclude_none=True), buffer)
    return buffer.getvalue()
