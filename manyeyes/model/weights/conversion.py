"""From what a package ships to tensors under published names.

An exporter renames: PyTorch's ONNX export keeps the names of biases and norms, but stores the
weight of a linear layer transposed under a number (``onnx::MatMul_1966``) and folds constants. The
node that uses a tensor still carries the path of its module, which gives the name back.

A pickle (``torch``) is read with ``weights_only``, which builds tensors and containers and nothing
else: one of a package only after its sha256 has been found to be the one in the table, one of
anybody's for ``manyeyes import-weights``, which writes safetensors. Nothing else reads pickles.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from typing import TYPE_CHECKING, assert_never
from zipfile import is_zipfile

import torch

from manyeyes.errors import UserError
from manyeyes.model.weights.onnx_file import OnnxFile, read_onnx
from manyeyes.model.weights.packages import find_package, package_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

BACKBONE = "backbone."
POSITIONS = "embeddings.position_embeddings"
WRAPPERS = ("ema_state", "module", "model", "state_dict")
"""Keys under which training scripts keep the state dict, in the order of preference."""
MOST_WRAPPERS = 10


def package_tensors(reference: str) -> dict[str, Tensor]:
    """Return the tensors of an encoder from a package, under the names it was published with.

    Raises:
        UserError: the package is missing, another, holds a language model, or cannot be read.
    """
    package = find_package(reference)
    if package.form == "gguf":
        raise UserError(
            f"The weights {reference!r} are a language model ({package.network}): name them in "
            "model.llm.weights, not as an encoder."
        )
    path = package_file(reference)
    try:
        match package.form:
            case "onnx":
                return dinov2_from_onnx(read_onnx(path))
            case "torch":
                return read_pickle(path)
            case _:
                assert_never(package.form)
    except (OSError, ValueError, pickle.UnpicklingError, RuntimeError) as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} cannot be read ({problem}): install its package again.") from None


def dinov2_from_onnx(model: OnnxFile) -> dict[str, Tensor]:
    """Give the tensors of an exported DINOv2 (``backbone.*``) their names of Hugging Face's hub.

    The export splits the position table in two: the class token's row is the constant of a
    ``Concat``, the patches' rows are the constant of a ``Reshape`` (before its interpolation).

    Raises:
        ValueError: the graph has no such position table.
    """
    tensors = {
        name.removeprefix(BACKBONE): torch.from_numpy(values.copy())
        for name, values in model.tensors.items()
        if name.startswith(BACKBONE)
    }
    parts: dict[str, Tensor] = {}
    for node in model.nodes:
        module = node.name.removeprefix("/").rpartition("/")[0].replace("/", ".") + "."
        if not module.startswith(BACKBONE):
            continue
        module = module.removeprefix(BACKBONE)
        constants = [model.tensors[name] for name in node.inputs if name in model.tensors]
        if node.operation == "MatMul" and constants:
            # x @ W.T is exported as x @ constant: (in, out) instead of (out, in).
            tensors[f"{module}weight"] = torch.from_numpy(constants[0].T.copy())
        elif module == "embeddings." and node.operation in {"Concat", "Reshape"}:
            for values in constants:
                if values.ndim == 3:
                    parts[node.operation] = torch.from_numpy(values.copy())
    if parts.keys() != {"Concat", "Reshape"}:
        raise ValueError("it has no position table of a DINOv2")
    tensors[POSITIONS] = torch.cat([parts["Concat"], parts["Reshape"]], dim=1)
    return tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a state dict written by ``torch.save``, without running what it may ask for.

    Trainers wrap it: of several dicts under ``WRAPPERS`` the first is taken (EVA-02's averaged
    weights before its last ones). Tensors of today's format stay on disk until they are used.

    Raises:
        pickle.UnpicklingError: it holds anything but tensors and plain containers.
        ValueError: it is not a state dict.
    """
    loaded = _load(path)
    for _ in range(MOST_WRAPPERS):  # a dict may lie in itself
        if not isinstance(loaded, dict):
            break
        inner = next(
            (loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), None
        )
        if inner is None:
            break
        loaded = inner
    named = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(key): value for key, value in named if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError("it is not a state dict")
    return tensors


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles of other protocols
            loaded: object = torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)
            )
    except (EOFError, IndexError, KeyError, struct.error):  # of a file that ends too early
        raise ValueError("it ends in the middle or is damaged") from None
    except RuntimeError as error:
        if is_zipfile(path):
            raise
        reason = "is none of torch's" if "legacy .tar" in str(error) else "is damaged"
        raise ValueError(f"the archive {reason}") from None
    return loaded
