"""From files to one recipe: what it extends, what is overridden, what all encoders share.

A value of the recipe's own file holds before one of the file that it ``extends``, and one of
``--set`` before both. What a file says of ``prealign.all`` it says of every encoder, and what it
says under ``prealign.experts`` of one. What nobody says has the schema's default. Slices, and so
all keys, are cut from the result: whoever writes the same recipe in other words gets the same
results out of the store.

One level of ``extends`` and no more: two files tell all of a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal

from ruamel.yaml.error import YAMLError

from manyeyes.config.recipe import strict_yaml
from manyeyes.config.recipe.derived import derive
from manyeyes.config.recipe.layers import (
    Key,
    Layer,
    Location,
    Place,
    lay_over,
    put,
    read_layer,
    written,
)
from manyeyes.config.recipe.sections import Recipe
from manyeyes.config.recipe.yaml_limits import TooMuchError, check_limits
from manyeyes.errors import UserError, shown, suggest

SHIPPED = Path(__file__).parents[3] / "recipes"
_ALL: Location = ("prealign", "all")
_EACH: Location = ("prealign", "experts")


@dataclass(frozen=True)
class Resolved:
    """A recipe as it was understood, and where each of its values comes from."""

    recipe: Recipe
    layer: Layer

    def place(self, key: Sequence[Key]) -> Place:
        """Return where a key was written, or the nearest around it."""
        return self.layer.find(key)

    def source(self, key: Sequence[Key]) -> Place | Literal["default"]:
        """Return where a value was written; ``default`` for what nobody wrote."""
        at = tuple(key)
        return self.layer.find(at) if at in self.layer.places else "default"


def resolve(text: str, where: str, overrides: Sequence[str] = ()) -> Resolved:
    """Put a recipe together and check it.

    Args:
        text: of its own file.
        where: names the text in errors; beside it lies what it extends.
        overrides: ``KEY=VALUE``, as ``--set`` takes them.

    Raises:
        UserError: a file is no YAML, breaks the schema or cannot be found; a line per problem.
    """
    files = _files(text, where)
    plain = reduce(_overridden, overrides, reduce(lay_over, files))
    names = _encoders(plain.values)
    layer = reduce(lay_over, (_each_encoder(file, names) for file in files))
    for override in overrides:
        layer = _overridden(layer, override, names)
    checked = strict_yaml.check(replace(layer, values=derive(layer.values)), Recipe)
    return Resolved(checked, layer)


def _files(text: str, where: str) -> list[Layer]:
    """Return the layer of a recipe's own file, behind that of the file it extends."""
    layer = read_layer(strict_yaml.read_tree(text, where, Recipe, "recipe"), where, "own")
    if "extends" not in layer.values:
        return [layer]
    place = layer.find(("extends",))
    base = _base(layer.values["extends"], place)
    if "name" not in layer.values:
        raise UserError(f"{place}: a recipe that extends another needs a name of its own.")
    values = {key: value for key, value in layer.values.items() if key != "extends"}
    return [base, replace(layer, values=values)]


def _base(name: object, place: Place) -> Layer:
    """Read the file that ``extends`` names.

    Raises:
        UserError: there is no such file, or it extends another one itself.
    """
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place}: got {shown(name)}; give the name of a recipe, like eagle-x5.")
    path = _find(name, place)
    if path.resolve() == Path(place.file).resolve():
        raise UserError(f"{place}: a recipe cannot extend itself.")
    tree = strict_yaml.read_tree(strict_yaml.read_text(path, "recipe"), str(path), Recipe, "recipe")
    layer = read_layer(tree, str(path), "base")
    if "extends" in layer.values:
        raise UserError(
            f"{place}: {path} extends {shown(layer.values['extends'])} itself; a recipe can only "
            "extend one that stands alone."
        )
    return layer


def _find(name: str, place: Place) -> Path:
    """Return the file of a recipe: beside the one that names it, or in ``recipes/``."""
    beside = Path(place.file).parent
    folders = [beside, Path("recipes"), SHIPPED]
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"{place}: there is no {file} in {beside} or in recipes/{suggest(name, known) or '.'}"
    )


def _each_encoder(layer: Layer, names: Sequence[str]) -> Layer:
    """Write a file's ``prealign.all`` out for every encoder, under what it says of each."""
    prealign = layer.values.get("prealign")
    if not isinstance(prealign, dict) or "all" not in prealign:
        return layer
    others = {key: value for key, value in prealign.items() if key != "all"}
    given = others.get("experts")
    every = list(dict.fromkeys([*names, *(given if isinstance(given, dict) else ())]))
    places = {
        (*_EACH, name, *at[2:]): place
        for at, place in layer.places.items()
        if at[:2] == _ALL
        for name in every
    }
    lower = Layer(
        {"prealign": {"experts": dict.fromkeys(every, prealign["all"])}},
        {(): layer.find(()), **places},
    )
    rest = {at: place for at, place in layer.places.items() if at[:2] != _ALL}
    return lay_over(lower, Layer({**layer.values, "prealign": others}, rest))


def _encoders(values: dict[Key, object]) -> list[str]:
    """Return the names of the encoders, of a recipe that nobody has checked."""
    model = values.get("model")
    encoders = model.get("encoders") if isinstance(model, dict) else None
    return [
        one["name"]
        for one in (encoders if isinstance(encoders, list) else ())
        if isinstance(one, dict) and isinstance(one.get("name"), str)
    ]


def _overridden(layer: Layer, override: str, names: Sequence[str] = ()) -> Layer:
    """Write one value of ``--set`` into a recipe.

    Raises:
        UserError: it is not ``KEY=VALUE``, no YAML, or its key leads nowhere.
    """
    key, separator, text = (part.strip() for part in override.partition("="))
    said = f"--set {override}"
    if not separator or not key:
        raise UserError(f"{said}: write KEY=VALUE, like sft.steps=10.")
    value = _value(text, said)
    shared = f"{written(_ALL)}."
    if names and key.startswith(shared):
        rest = key.removeprefix(shared)
        for name in names:
            location = _location(layer.values, [*_EACH, name], rest, said)
            layer = put(
                layer, location, value, lambda at: Place(said, None, (*_ALL, *at[3:]), "set")
            )
        return layer
    location = _location(layer.values, [], key, said)
    return put(layer, location, value, lambda at: Place(said, None, at, "set"))


def _value(text: str, said: str) -> object:
    """Read a value as the recipe's file would: a scalar, ``[a, b]`` or ``{a: 1}``."""
    try:
        check_limits(text)
        return read_layer(strict_yaml.load_yaml(text), said, "set").values
    except TooMuchError as error:
        raise UserError(f"{said}: {error}.") from None
    except (YAMLError, ValueError, OverflowError):
        words = "the value is not valid YAML; quote a text, like '\"a: b\"'."
        raise UserError(f"{said}: {words}") from None


def _location(values: object, begin: Sequence[Key], key: str, said: str) -> Location:
    """Follow a dotted key into a recipe; names with dots in them are found where they exist."""
    found, node, parts = list(begin), values, key.split(".")
    for one in begin:
        node = node.get(one) if isinstance(node, dict) else None
    while parts:
        if isinstance(node, list):
            if not parts[0].isdigit() or int(parts[0]) >= len(node):
                raise UserError(
                    f"{said}: {written(found)} is a list of {len(node)}; write a number from 0 to "
                    f"{len(node) - 1}, not {parts[0]!r}."
                )
            index, parts = int(parts[0]), parts[1:]
            part: Key = index
            node = node[index]
        elif node is None or isinstance(node, dict):
            section = node or {}
            ends = (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in section)
            length = next(ends, 1)
            part = ".".join(parts[:length])
            node, parts = section.get(part), parts[length:]
        else:
            raise UserError(f"{said}: {written(found)} is {shown(node)} and has no keys.")
        found.append(part)
    return tuple(found)
