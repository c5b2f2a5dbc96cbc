"""Reading strict sections from YAML 1.2, with errors that name file, line, key, value and choices.

ruamel and not PyYAML: PyYAML reads ``2e-5`` as a string and keeps the last of two equal keys
without a word. All errors of a file are reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from manyeyes.config.recipe.base import NAME_PATTERN, NAME_WORDS
from manyeyes.config.recipe.layers import Key, Layer, read_layer, tuples
from manyeyes.config.recipe.yaml_limits import TooMuchError, check_limits
from manyeyes.errors import UserError, shown, suggest
from manyeyes.runtime.filetypes import not_utf8
from manyeyes.runtime.plain_files import read_plain

OF_A_KEY = "[key]"
"""How a location ends in pydantic where the key of a mapping is wrong, not its value."""
SectionT = TypeVar("SectionT", bound=BaseModel)


def read_text(path: Path, noun: str) -> str:
    """Return a file's text.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        data = read_plain(path)
    except FileNotFoundError:
        raise UserError(f"No {noun} at {path}: give the path of a .yaml file.") from None
    except OSError as error:
        raise UserError(
            f"Cannot read the {noun} {path} ({error.strerror}); give the path of a .yaml file."
        ) from None
    other = not_utf8(data)
    if other is not None:
        raise UserError(f"Cannot read the {noun} {path}: it is {other}.")
    return data.decode("utf-8")


def parse(text: str, where: str, model: type[SectionT], noun: str) -> SectionT:
    """Check a text against a section.

    Args:
        text: YAML.
        where: names the text in errors.
        model: the strict, closed section the text must be.
        noun: what users call it.

    Raises:
        UserError: the text is not YAML or breaks the schema; one line per problem.
    """
    return check(read_layer(read_tree(text, where, model, noun), where, "own"), model)


def check(layer: Layer, model: type[SectionT]) -> SectionT:
    """Check values against a section.

    Raises:
        UserError: they break the schema; one line per problem, with the place of the value.
    """
    try:
        return model.model_validate(tuples(layer.values))
    except ValidationError as error:
        details = error.errors()
        lines = [
            _describe(detail, layer, model) for detail in details if not _follows(detail, details)
        ]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


class _Constructor(RoundTripConstructor):
    """Says where a value stands that cannot be built: a month 13, ``!!int abc``."""

    def construct_non_recursive_object(self, node: Node, tag: str | None = None) -> Any:  # noqa: ANN401
        try:
            return super().construct_non_recursive_object(node, tag)
        except (ValueError, OverflowError) as error:
            line = node.start_mark.line + 1
            raise TooMuchError(line, f"a value cannot be read ({error})") from None
        except (KeyError, IndexError):  # of ``!!bool maybe`` and ``!!int ''``
            kind = str(node.tag).rpartition(":")[2]
            line = node.start_mark.line + 1
            raise TooMuchError(line, f"{shown(node.value)} is no {kind}") from None


def load_yaml(text: str) -> Any:  # noqa: ANN401  (YAML is untyped until the schema has seen it)
    """Build what a text says, with the line of every value."""
    yaml = YAML()
    yaml.Constructor = _Constructor
    return yaml.load(text)


def read_tree(text: str, where: str, model: type[BaseModel], noun: str) -> CommentedMap:
    """Read a text that is a mapping.

    Raises:
        UserError: it is not YAML, holds what no file of settings can hold, or is no mapping.
    """
    try:
        check_limits(text)
        tree = load_yaml(text)
    except TooMuchError as error:
        raise UserError(f"{where}:{error.line}: {error}.") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = " ".join(str(error.problem).split())
        raise UserError(f"{where}:{line}: this is not valid YAML: {problem}.") from None
    except YAMLError as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{where}:1: this is not valid YAML: {problem}.") from None
    except (ValueError, OverflowError):  # ``\\U99999999``, read by the scanner
        raise UserError(
            f"{where}:1: this is not valid YAML: a character has no such number."
        ) from None
    if not isinstance(tree, CommentedMap):
        keys = ", ".join(field.alias or name for name, field in model.model_fields.items())
        raise UserError(f"{where}:1: a {noun} is a mapping with the keys {keys}.")
    return tree


def _describe(detail: ErrorDetails, layer: Layer, model: type[BaseModel]) -> str:
    location, section = _resolve(detail["loc"], model)
    return f"{layer.find(location)}: {_sentence(detail, location, section)}"


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Say whether a list is called too short only because one of its values is wrong."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        other["loc"][: len(place)] == place and other is not detail for other in details
    )


def _sentence(detail: ErrorDetails, location: Sequence[Key], section: type[BaseModel]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            known = [field.alias or name for name, field in section.model_fields.items()]
            known = [*getattr(section, "file_keys", ()), *known]
            nearest = suggest(str(location[-1]), known)
            return f"unknown key; allowed are {', '.join(known)}{nearest}"
        case "missing":
            return "this key is required and missing"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "literal_error":
            expected = str(detail["ctx"]["expected"])
            options = [option.strip("' ") for option in expected.replace(" or ", ",").split(",")]
            return f"got {shown(detail['input'])}; allowed are {expected}" + suggest(
                str(detail["input"]), options
            )
        case "union_tag_invalid":
            tag, expected = str(detail["ctx"]["tag"]), str(detail["ctx"]["expected_tags"])
            options = [option.strip("' ") for option in expected.split(",")]
            return f"kind {shown(tag)} is unknown; allowed are {expected}{suggest(tag, options)}"
        case "string_pattern_mismatch" if detail["ctx"]["pattern"] == NAME_PATTERN:
            return f"got {shown(detail['input'])}; allowed are {NAME_WORDS}"
        case "union_tag_not_found":
            return "this section needs the key 'kind'"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{message}, got {shown(detail['input'])}"


def _resolve(
    location: tuple[Key, ...], model: type[BaseModel]
) -> tuple[list[Key], type[BaseModel]]:
    """Drop pydantic's union tags and its word for a key from a location.

    Also return the section that holds the key.
    """
    if location[-1:] == (OF_A_KEY,):
        location = location[:-1]
    clean: list[Key] = []
    holder: type[BaseModel] = model
    current: Any = model
    for part in location:
        options = _models(current)
        tagged = [option for option in options if _kind(option) == part]
        if len(options) > 1 and tagged:
            current = tagged[0]
            continue
        clean.append(part)
        if options:
            holder = options[0]
            current = _field_type(holder, part)
        else:
            arguments = get_args(current)
            current = (
                arguments[-1]
                if get_origin(current) is dict and arguments
                else (arguments[0] if arguments else None)
            )
    return clean, holder


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401  (a type annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [model for option in get_args(annotation) for model in _models(option)]
    return []


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else None


def _field_type(model: type[BaseModel], part: Key) -> Any:  # noqa: ANN401  (a type annotation)
    for name, field in model.model_fields.items():
        if part in (name, field.alias):
            return field.annotation
    return None


def line_of(text: str, location: Sequence[Key]) -> int:
    """Return the line of a key in a text that was read before, or of the nearest key around it."""
    return read_layer(YAML().load(text), "", "own").find(location).line or 1
