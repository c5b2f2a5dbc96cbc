"""Writing imported tensors: safetensors in parts, an index, and the folder in one move.

Tensors arrive one by one and are kept at most ``PART_BYTES`` long, so that a model of any size
passes through little memory. They keep the type they were published in.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from manyeyes.artifact.destination import beside, claim_folder, put
from manyeyes.artifact.files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE
from manyeyes.artifact.manifest import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

PART_BYTES = 2 << 30


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a work folder that becomes ``out`` if all goes well, and disappears if not.

    Raises:
        UserError: ``out`` is not free.
    """
    claim_folder(out, replace=False)
    with beside(out) as work:
        yield work
        put(work, out, replace=False)


class TensorWriter:
    """Collects tensors by module (the first words of their names) and writes them in parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._bytes: dict[str, int] = {}
        self._parts: dict[str, int] = {}
        self._weight_map: dict[str, str] = {}
        self._total = 0

    def add(self, module: str, name: str, tensor: Tensor) -> None:
        """Take one tensor; a copy, since published tensors may share memory."""
        group = self._waiting.setdefault(module, {})
        group[name] = tensor.detach().clone().contiguous()
        size = tensor.numel() * tensor.element_size()
        self._total += size
        self._bytes[module] = self._bytes.get(module, 0) + size
        if self._bytes[module] >= PART_BYTES:
            self._write(module)

    def finish(self) -> None:
        """Write what is left, and the index; one file for one small module gets no index."""
        for module in list(self._waiting):
            self._write(module)
        files = sorted(set(self._weight_map.values()))
        if len(files) == 1:
            (self.folder / files[0]).rename(self.folder / WEIGHTS_FILE)
            return
        weight_map = dict(sorted(self._weight_map.items()))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        atomic_write_text(self.folder / WEIGHTS_INDEX_FILE, json.dumps(index, indent=2) + "\n")

    def _write(self, module: str) -> None:
        tensors = self._waiting.pop(module)
        number = self._parts[module] = self._parts.get(module, 0) + 1
        self._bytes[module] = 0
        name = f"{module}.safetensors" if number == 1 else f"{module}-{number}.safetensors"
        save_file(tensors, self.folder / name, metadata={"format": "pt"})
        self._weight_map.update(dict.fromkeys(tensors, name))
