"""Reading and writing a recipe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from manyeyes.config.recipe import strict_yaml
from manyeyes.config.recipe.layers import Key, Location, Place
from manyeyes.config.recipe.resolve import Resolved, resolve
from manyeyes.config.recipe.sections import Recipe


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check one recipe.

    Args:
        path: its own file; what it ``extends`` lies beside it or in ``recipes/``.
        overrides: ``KEY=VALUE``, as ``--set`` takes them.

    Raises:
        UserError: the file cannot be read, is not YAML, or breaks the schema; one line per problem.
    """
    return resolved_recipe(path, overrides).recipe


def resolved_recipe(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read and check one recipe, and keep where each value comes from.

    Raises:
        UserError: as :func:`load_recipe`.
    """
    return resolve(strict_yaml.read_text(path, "recipe"), str(path), overrides)


def parse_recipe(text: str, where: str) -> Recipe:
    """Check a recipe's text; ``where`` names it in errors."""
    return resolve(text, where).recipe


def with_overrides(recipe: Path | str, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with some values replaced.

    Args:
        recipe: the path of its file, or its text.
        overrides: ``KEY=VALUE``: the key dotted (``sft.steps``, ``model.encoders.0.weights``), the
            value as it would stand in the file (``10``, ``1e-3``, ``[a, b]``, ``{a: 1.0}``,
            ``null`` for none).

    Raises:
        UserError: as :func:`load_recipe`; a key is unknown, or a value is wrong.
    """
    if isinstance(recipe, Path):
        return load_recipe(recipe, overrides)
    return resolve(recipe, "recipe", overrides).recipe


def place_in(path: Path, key: Sequence[Key], overrides: Sequence[str] = ()) -> str:
    """Return where a key of a recipe was written: ``FILE:LINE: KEY``."""
    return str(resolved_recipe(path, overrides).place(key))


def recipe_yaml(recipe: Recipe, overrides: Sequence[str] = ()) -> str:
    """Return the recipe as it was understood, in YAML that loads back to the same recipe.

    Args:
        recipe: the recipe.
        overrides: what was set on the command line, which the text remembers.
    """
    return "".join(f"# --set {one}\n" for one in overrides) + _yaml(_tree(recipe))


def sourced_yaml(resolved: Resolved) -> str:
    """Return the recipe as it was understood, each value with where it comes from."""
    tree = _tree(resolved.recipe)
    _note_sources(tree, (), resolved)
    return _yaml(tree)


def sources(resolved: Resolved) -> dict[str, str]:
    """Return where each value comes from, by its dotted key."""
    return {
        ".".join(str(part) for part in at): _source(resolved, at)
        for at in _leaves(_tree(resolved.recipe), ())
    }


def _tree(recipe: Recipe) -> object:
    return _commented(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))


def _commented(node: object) -> object:
    if isinstance(node, dict):
        return CommentedMap({key: _commented(value) for key, value in node.items()})
    return CommentedSeq(map(_commented, node)) if isinstance(node, list) else node


def _leaves(node: object, at: Location) -> list[Location]:
    inner = _items(node)
    return [leaf for key, value in inner for leaf in _leaves(value, (*at, key))] or [at]


def _items(node: object) -> list[tuple[Key, object]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _note_sources(node: object, at: Location, resolved: Resolved) -> None:
    for key, value in _items(node):
        if _items(value):
            _note_sources(value, (*at, key), resolved)
        elif isinstance(node, CommentedMap | CommentedSeq):
            node.yaml_add_eol_comment(_source(resolved, (*at, key)), key)


def _source(resolved: Resolved, at: Location) -> str:
    found = resolved.source(at)
    if not isinstance(found, Place):
        return found
    return found.file if found.line is None else f"{found.file}:{found.line}"


def _yaml(tree: object) -> str:
    buffer = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(tree, buffer)
    return buffer.getvalue()
