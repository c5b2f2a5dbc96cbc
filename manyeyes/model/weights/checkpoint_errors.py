"""What can be wrong with a saved model, as one sentence each instead of a traceback."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.runtime.json_files import read_json, said

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HARMLESS = (
    "_from_auto", "adapter_kwargs", "cache_dir", "code_revision", "force_download",
    "local_files_only", "proxies", "revision", "token", "trust_remote_code",
)  # fmt: skip
"""What transformers adds, or what is about the Hub: no code of a folder is ever run."""


def check_kind(directory: Path, model_type: str) -> None:
    """Refuse a folder that does not hold a model of ``model_type``.

    Raises:
        UserError: no readable ``config.json``, or one of another kind of model.
    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise UserError(f"There is no model in {directory}: it has no config.json.") from None
    except (OSError, ValueError) as error:
        reason = said(error, "fetch the checkpoint again")
        raise UserError(f"Cannot read {path}: {reason}.") from None
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != model_type:
        raise UserError(
            f"{directory} holds a model of kind {found!r} instead of {model_type!r}: give the "
            "folder of a checkpoint written by pretrain or sft."
        )


@contextmanager
def as_user_errors(directory: Path) -> Iterator[None]:
    """Turn the errors of reading a broken checkpoint into a ``UserError``."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Cannot load the model in {directory}: {first_line}.") from None


def refuse_options(passed: Mapping[str, object]) -> None:
    """Refuse options of ``from_pretrained`` that would not do what they say.

    transformers' ``Auto`` classes pass some along by themselves, which mean nothing to a folder.

    Raises:
        UserError: another one is given.
    """
    wrong = [name for name, value in passed.items() if name not in HARMLESS and value is not None]
    if wrong:
        raise UserError(
            f"A checkpoint of manyeyes is not loaded with {', '.join(sorted(wrong))}: leave "
            "that out; .to(...) moves a model that is loaded."
        )
