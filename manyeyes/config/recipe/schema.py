"""``python -m manyeyes.config.recipe.schema`` writes ``recipes/schema.json``, for editors.

It is made of the sections themselves: keys, kinds, bounds and defaults, with the docstring of each
key as its description. An editor that knows YAML language servers completes and underlines by it::

    # yaml-language-server: $schema=schema.json

It promises less than ``manyeyes check``: names of tables and rules between keys are not in it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manyeyes.config.recipe.base import Section
from manyeyes.config.recipe.derived import IN_FILES
from manyeyes.config.recipe.resolve import SHIPPED
from manyeyes.config.recipe.sections import Recipe

FILE = SHIPPED / "schema.json"
PART = "PartOf"
"""Begins the name of a definition of which nothing is required: the rest stands elsewhere."""


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe's file.

    A file that extends another may say any part; one that does not has to say all of a recipe.
    """
    made = Recipe.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = made.pop("$defs")
    definitions["Recipe"] = made
    for name, keys in IN_FILES.items():
        required = definitions[name].get("required", [])
        definitions[name]["required"] = [key for key in required if key not in keys]
    for section in _sections(Section):
        if section.__name__ in definitions:
            _describe(definitions[section.__name__]["properties"], section)
    parts = {f"{PART}{name}": _part(one) for name, one in definitions.items()}
    experts = definitions["PrealignSection"]["properties"]
    experts["all"] = {
        "$ref": f"#/definitions/{PART}TrainSection",
        "description": "What all encoders share.",
    }
    one = {"$ref": f"#/definitions/{PART}TrainSection"}
    experts["experts"] = {**experts["experts"], "additionalProperties": one}
    parts[f"{PART}PrealignSection"]["properties"] = experts
    parts[f"{PART}Recipe"]["required"] = ["extends", "name"]
    parts[f"{PART}Recipe"]["properties"]["extends"] = {
        "type": "string",
        "description": "The recipe that has all that this one does not say: a file beside it, or "
        "one of recipes/.",
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "manyeyes recipe",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/definitions/{PART}Recipe"},
        "else": {"$ref": "#/definitions/Recipe"},
        "definitions": {**definitions, **parts},
    }


def schema_text() -> str:
    """Return the file as it is committed."""
    return json.dumps(recipe_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _part(definition: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return a definition of which nothing is required, nor of what it refers to.

    What is one of several sections may then be any of them: its ``kind`` can stand elsewhere.
    """
    if isinstance(definition, list):
        return [_part(one) for one in definition]
    if not isinstance(definition, dict):
        return definition
    made = {
        "anyOf" if key == "oneOf" else key: _part(value)
        for key, value in definition.items()
        if key not in ("required", "discriminator")
    }
    if isinstance(definition.get("$ref"), str):
        made["$ref"] = definition["$ref"].replace("#/definitions/", f"#/definitions/{PART}")
    return made


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    for one in section.__subclasses__():
        yield one
        yield from _sections(one)


def _docstrings(section: type[Section]) -> dict[str, str]:
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    found, key = {}, ""
    for node in made.body if isinstance(made, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = section.model_fields.get(node.target.id)
            key = (field.alias or node.target.id) if field else ""
        elif key and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[key] = " ".join(str(node.value.value).split())
            key = ""
        else:
            key = ""
    return found


def _describe(properties: dict[str, Any], section: type[Section]) -> None:
    """Let what the code says of a key stand in the schema."""
    for key, text in _docstrings(section).items():
        if key in properties:
            properties[key]["description"] = text


def main() -> int:
    """Write the file, here or where the first argument says."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    path.write_text(schema_text(), encoding="utf-8")
    sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
