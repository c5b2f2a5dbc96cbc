"""No code comes with weights: what a folder of a model asks to run is not run.

Transformers runs Python that lies beside weights (``auto_map`` in ``config.json`` and
``tokenizer_config.json``) once somebody types ``y``, loads attention kernels that a config names
from the Hub, and follows ``adapter_config.json`` to other weights. Here nobody is asked.
``auto_map`` beside a kind of model that transformers knows is ignored, and that is said; beside any
other, and where a config names a kernel or an adapter, the model is refused. Every loader of
transformers is called with ``trust_remote_code=False`` besides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manyeyes.errors import UserError
from manyeyes.model.weights.loading import refuse_adapters
from manyeyes.runtime.json_files import read_json, said
from manyeyes.runtime.locks import temporary
from manyeyes.runtime.plain_files import refuse_odd_files

logger = logging.getLogger(__name__)
AUTO_MAP = "auto_map"
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
OURS = "manyeyes_vlm"
"""Kind of the models that are saved here; transformers has no table row for it."""
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_SETTINGS = (
    CONFIG,
    TOKENIZER_CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "model.safetensors.index.json",
)
"""Larger ones, or read by transformers alone: looked at where it fails."""
_said: set[str] = set()


def refuse_foreign_code(place: str, reference: str, kind: str | None = None) -> None:
    """Look through a folder before transformers reads it.

    A repository of the Hub is not looked through: it has no pipes, and transformers, which may not
    run code, refuses it by itself.

    Args:
        place: folder or hub id.
        reference: how the user named it.
        kind: kind of model, where the caller knows it and the folder's own does not count.

    Raises:
        UserError: it has something that is no file, or cannot be used without code of its own.
    """
    folder = Path(place)
    if not folder.is_dir():
        return
    try:
        refuse_odd_files(folder)
    except OSError as error:
        raise UserError(
            f"Cannot read {error.filename or folder}: {error.strerror}; take it out of the folder."
        ) from None
    if (folder / ADAPTER_CONFIG).is_file():
        refuse_adapters(folder)
        raise UserError(
            f"{folder} has {ADAPTER_CONFIG}, which leads to other weights than those beside it: "
            "merge the adapter into them (with peft, merge_and_unload() and save_pretrained), or "
            "take the file out."
        )
    found = {name: read_settings(folder / name) for name in _SETTINGS}
    _check(found[CONFIG], found[TOKENIZER_CONFIG], reference, kind)


def refuse_odd_settings(place: str) -> None:
    """Name the file of a folder whose JSON is why transformers could not read the folder.

    Raises:
        UserError: one of the files that transformers reads cannot be read.
    """
    for name in (*_SETTINGS, *_TOKENIZER_FILES) if Path(place).is_dir() else ():
        read_settings(Path(place, name))


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what would have code run elsewhere."""
    return {key: value for key, value in config.items() if key not in (AUTO_MAP, *_KERNELS)}


@contextmanager
def without_foreign_code(place: str) -> Iterator[str]:
    """Give a folder as it is, or, where its tokenizer asks for code of its own, one that does not.

    Transformers ignores the code that a config asks for where it knows the kind of model, but not
    the code that a tokenizer asks for.
    """
    folder = Path(place)
    config = read_settings(folder / TOKENIZER_CONFIG) if folder.is_dir() else {}
    if AUTO_MAP not in config:
        yield place
        return
    with temporary() as clean:
        for path in folder.absolute().iterdir():
            if path.name != TOKENIZER_CONFIG:
                (clean / path.name).symlink_to(path)
        text = json.dumps(without_code(config))
        (clean / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
        yield str(clean)


def _check(
    config: dict[str, Any], tokenizer: dict[str, Any], reference: str, kind: str | None
) -> None:
    wanted = _classes(config) + _classes(tokenizer)
    kind = kind or str(config.get("model_type", ""))
    if wanted and not _known(kind):
        raise UserError(
            f"{reference!r} needs code of its own ({AUTO_MAP}: {wanted[0]}), because transformers "
            f"knows no model of kind {kind!r}. Code that comes with weights is never run: use a "
            "model of a kind that transformers knows."
        )
    for part in (config, config.get("text_config")):
        for key in _KERNELS:
            value = part.get(key) if isinstance(part, dict) else None
            if isinstance(value, str) and "/" in value:
                raise UserError(
                    f"{reference!r} asks for compiled code from the Hub ({key}: {value}), which is "
                    f"never loaded: take {key} out of its {CONFIG}."
                )
    if wanted and reference not in _said:
        _said.add(reference)
        logger.warning(
            "%s names code of its own (%s: %s), which is not run: transformers' own %s is used.",
            reference,
            AUTO_MAP,
            wanted[0],
            kind,
        )


def _classes(config: dict[str, Any]) -> list[str]:
    """Return the classes that an ``auto_map`` names: ``evil.Model``."""
    named = config.get(AUTO_MAP)
    if not named:
        return []
    values = list(named.values()) if isinstance(named, dict) else [named]
    found: list[str] = []
    for value in values:
        found += map(str, filter(None, value if isinstance(value, list) else [value]))
    return found or [AUTO_MAP]


def _known(kind: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind == OURS or kind in CONFIG_MAPPING


def read_settings(path: Path) -> dict[str, Any]:
    """Read a config; one that is missing says nothing.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {said(error, 'copy the model again')}.") from None
    if not isinstance(found, dict):
        raise UserError(f"Cannot read {path}: it holds no JSON object; copy the model again.")
    return found
