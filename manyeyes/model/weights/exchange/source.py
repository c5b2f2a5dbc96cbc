"""What somebody published: names and shapes first, tensors when they are asked for.

A source is a file, a folder or a hub id; safetensors or pickles, whole or in shards with an index.
Safetensors are preferred where both lie in one folder. Pickles go through ``conversion``, which
builds tensors and containers and nothing else.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from manyeyes.artifact.files import WEIGHTS_INDEX_FILE
from manyeyes.errors import UserError
from manyeyes.model.weights.conversion import read_pickle
from manyeyes.model.weights.loading import ADAPTERS, PICKLES, refuse_adapters, shards_of
from manyeyes.model.weights.soundness import check_numbers, refuse_another_thing
from manyeyes.runtime.json_files import read_json, said
from manyeyes.runtime.plain_files import refuse_odd

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from torch import Tensor

NO_WEIGHTS = ("training_args.bin", *ADAPTERS)
PICKLED_INDEX = "pytorch_model.bin.index.json"
HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.jinja"]
UNREADABLE = (SafetensorError, pickle.UnpicklingError, OSError, ValueError, RuntimeError, EOFError)


@dataclass(frozen=True)
class Source:
    """Published weights."""

    reference: str
    folder: Path
    """Where they lie, with their config and tokenizer if they have any."""
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    """Of every tensor, by its published name."""

    def tensors(self, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the wanted tensors with their names, file by file.

        Raises:
            UserError: a file has become unreadable, or holds numbers that are none.
        """
        for path in self.files:
            try:
                for key, tensor in _tensors(path, wanted):
                    check_numbers(str(path), key, tensor)
                    yield key, tensor
            except UNREADABLE as error:
                raise _damaged(path, error) from None

    def config(self) -> dict[str, Any]:
        """Return what ``config.json`` beside the weights says; nothing, if there is none.

        Raises:
            UserError: it is not JSON.
        """
        path = self.folder / "config.json"
        try:
            found = read_json(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            refuse_another_thing(path)
            raise UserError(f"Cannot read {path}: {said(error, 'copy it again')}.") from None
        return found if isinstance(found, dict) else {}


def open_source(reference: str) -> Source:
    """Find published weights and read the names and shapes of their tensors.

    Raises:
        UserError: there is nothing there, or it is damaged or not weights.
    """
    path = Path(reference)
    if path.exists() and not path.is_dir():
        refuse_adapters(path)
        folder, files = path.parent, [path]
    elif path.is_dir():
        folder, files = path, _files_of(path)
    elif reference.startswith(("/", ".")) or path.suffix in (*PICKLES, ".safetensors"):
        raise UserError(f"There are no weights at {reference}: the path does not exist.")
    else:
        folder = _download(reference)
        files = _files_of(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        refuse_another_thing(file)
        try:
            shapes.update(_shapes(file))
        except UNREADABLE as error:
            raise _damaged(file, error) from None
    return Source(reference, folder, tuple(files), shapes)


def _files_of(folder: Path) -> list[Path]:
    refuse_adapters(folder)
    for index in (folder / WEIGHTS_INDEX_FILE, folder / PICKLED_INDEX):
        if index.is_file():
            return shards_of(index)
    for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt"):
        found = [file for file in sorted(folder.glob(pattern)) if file.name not in NO_WEIGHTS]
        whole = [file for file in found if file.stem in ("model", "pytorch_model")]
        if found:
            return whole or found
    raise UserError(f"There are no weights in {folder}: neither safetensors nor a state dict.")


def _download(repository: str) -> Path:
    """Return the local copy of a hub repository; HF_HUB_OFFLINE is respected."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=HUB_FILES))
        if not list(folder.glob("*.safetensors")):
            patterns = [*HUB_FILES, "*.bin"]
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"Cannot get {repository!r}: it is neither a file, a folder, nor a cached or reachable "
            f"Hugging Face model ({_first_line(error)})."
        ) from None
    return folder


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    refuse_odd(path)
    if path.suffix in PICKLES:
        return {key: tuple(tensor.shape) for key, tensor in read_pickle(path).items()}
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (not a mapping)


def _tensors(path: Path, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix in PICKLES:
        yield from ((key, value) for key, value in read_pickle(path).items() if key in wanted)
        return
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
            if key in wanted:
                yield key, file.get_tensor(key)


def _damaged(path: Path, error: Exception) -> UserError:
    if path.suffix in PICKLES:
        problem = f"is no whole state dict ({_first_line(error)})"
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to read it anyway
            asked = re.search(r"GLOBAL (\S+)", str(error))
            problem = f"holds more than tensors ({asked.group(1) if asked else 'objects'})"
        return UserError(
            f"{path} {problem}: only a state dict of tensors is read, since any other pickle can "
            "run code."
        )
    return UserError(
        f"{path} is not a whole safetensors file ({_first_line(error)}): copy it again."
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
