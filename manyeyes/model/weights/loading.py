"""Weights in and out: safetensors only, complete or refused.

A reference says where weights are: ``zoo:NAME`` (shipped with manyeyes), ``package:NAME`` (a data
file of another Python package, see ``packages``), a local folder or ``.safetensors`` file, a
Hugging Face id, or ``random``. Loading is strict: every tensor of the
module must be in the file with its shape, and every tensor of the file must be one the module
knows or one its family is known to drop. Pickles (``.bin``, ``.pt``, ``.pth``) are refused, since
reading one can run code. Half-precision files load into modules of any precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manyeyes.artifact.files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE
from manyeyes.errors import UserError
from manyeyes.model.weights import zoo
from manyeyes.model.weights.hub import revision_options
from manyeyes.model.weights.packages import PREFIX as PACKAGE_PREFIX
from manyeyes.model.weights.packages import package_file
from manyeyes.model.weights.soundness import check_numbers, refuse_another_thing
from manyeyes.runtime.json_files import JsonError, read_json
from manyeyes.runtime.plain_files import refuse_odd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import Tensor, nn

ZOO_PREFIX = "zoo:"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
"""Files that hold what fine-tuning added to weights that lie elsewhere."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Target = str | tuple[str, ...] | None
"""Where a tensor of a file goes: a name in the module; several names, when it is a stack of equal
parts along its first axis; None, when it is known not to belong to the module."""


@dataclass(frozen=True)
class WeightReport:
    """What a load did."""

    reference: str
    files: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    dropped: tuple[str, ...]
    """Keys of the file that are known not to belong to the module."""


def load_weights(module: nn.Module, reference: str) -> WeightReport:
    """Fill an encoder (its tower) or any module from a reference.

    Args:
        module: an ``Encoder``, whose published names are translated, or any module, whose
            ``state_dict`` names must be those of the file.
        reference: ``zoo:NAME``, ``package:NAME``, folder, ``.safetensors`` file, hub id, or
            ``random`` (does nothing).

    Raises:
        UserError: there are no such weights, or they are broken, incomplete or of another model.
    """
    if reference == "random":
        return WeightReport(reference, (), 0, 0, ())
    from manyeyes.model.encoders.base import Encoder

    target = module.tower if isinstance(module, Encoder) else module
    rename = module.rename if isinstance(module, Encoder) else _unchanged
    if reference.startswith(PACKAGE_PREFIX):
        from manyeyes.model.weights.conversion import package_tensors

        tensors = package_tensors(reference)
        named = ((key, rename(key), tensor) for key, tensor in tensors.items())
        return _fill(target, named, reference, (str(package_file(reference)),))
    return fill(target, find_safetensors(reference), reference, rename)


def load_expert(encoder: nn.Module, name: str, checkpoint: Path) -> WeightReport:
    """Fill an encoder from the part ``encoders.NAME`` of a saved vision-language model.

    Raises:
        UserError: the checkpoint has no weights of that expert, or of another architecture.
    """
    prefix = f"encoders.{name}."

    def rename(key: str) -> str | None:
        return key.removeprefix(prefix) if key.startswith(prefix) else None

    return fill(encoder, find_safetensors(str(checkpoint)), f"{checkpoint} ({prefix}*)", rename)


def save_weights(module: nn.Module, directory: Path, dtype: torch.dtype | None = None) -> Path:
    """Write a module (of an ``Encoder``: its tower) as ``directory/model.safetensors``.

    Floating point tensors are stored as ``dtype`` when it is given. Returns the file's path.
    """
    from manyeyes.model.encoders.base import Encoder

    source = module.tower if isinstance(module, Encoder) else module
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in source.state_dict().items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / WEIGHTS_FILE
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def find_safetensors(reference: str) -> list[Path]:
    """Return the safetensors files behind a reference.

    Raises:
        UserError: there are none, or the reference is a pickle.
    """
    if reference.startswith(ZOO_PREFIX):
        return _in_folder(zoo.resolve(reference))
    path = Path(reference)
    if path.suffix in PICKLES:
        raise UserError(
            f"{reference} is a pickle, and reading one can run code: convert it with "
            "manyeyes import-weights."
        )
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".safetensors" or reference.startswith(("/", ".")):
        if path.is_file():
            refuse_adapters(path)
            return [path]
        raise UserError(f"There are no weights at {reference}: the path does not exist.")
    return _from_hub(reference)


def refuse_adapters(place: Path) -> None:
    """Refuse a file or a folder that has adapters and no weights.

    Raises:
        UserError: it is so.
    """
    names = [path.name for path in place.iterdir()] if place.is_dir() else [place.name]
    adapters = sorted(name for name in names if name in ADAPTERS)
    suffixes = (".safetensors", *PICKLES)
    others = [
        name
        for name in names
        if name.endswith((*suffixes, ".index.json", ".gguf")) and name not in adapters
        if name != "training_args.bin"
    ]
    if adapters and not others:
        raise UserError(
            f"{place} holds a LoRA adapter ({adapters[0]}) and not the weights it belongs to: "
            "merge it into them first (with peft, PeftModel.from_pretrained(model, folder)."
            "merge_and_unload() and save_pretrained), and name the merged folder."
        )


def _in_folder(folder: Path) -> list[Path]:
    refuse_adapters(folder)
    index = folder / WEIGHTS_INDEX_FILE
    if index.exists():
        return shards_of(index)
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder} has only pickled weights ({pickles[0]}), and reading them can run code: "
            "convert them with manyeyes import-weights."
        )
    raise UserError(f"There are no weights in {folder}: it has no {WEIGHTS_FILE}.")


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index of shards names; they lie beside it, and nowhere else.

    Raises:
        UserError: it is no index, it names a file elsewhere, or one that is missing.
    """
    shards = [index.parent / name for name in _shard_names(index)]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{index.parent} is incomplete: {shard.name} of its index is missing.")
    return shards


def _shard_names(index: Path) -> list[str]:
    try:
        names = set(read_json(index)["weight_map"].values())
    except JsonError as error:
        refuse_another_thing(index)
        raise UserError(f"Cannot read {index}: it {error}.") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        refuse_another_thing(index)
        reason = error.strerror if isinstance(error, OSError) else "it has no table weight_map"
        raise UserError(f"{index} is not an index of shards: {reason}.") from None
    shards = sorted(str(name) for name in names)
    for shard in shards:
        if PurePosixPath(shard).name != shard or shard == ".." or "\0" in shard:
            raise UserError(f"{index} names {shard!r}, which lies elsewhere: take it out.")
    return shards


def _from_hub(repository: str) -> list[Path]:
    """Return cached or downloaded files of a hub id; HF_HUB_OFFLINE is respected."""
    from transformers.utils.hub import cached_file

    options: dict[str, Any] = dict(revision_options(repository))
    try:
        index = cached_file(
            repository, WEIGHTS_INDEX_FILE, _raise_exceptions_for_missing_entries=False, **options
        )
        if index is not None:
            names = _shard_names(Path(index))
            return [Path(str(cached_file(repository, name, **options))) for name in names]
        return [Path(str(cached_file(repository, WEIGHTS_FILE, **options)))]
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"Cannot get {WEIGHTS_FILE} of {repository!r}: it is neither a folder nor a cached or "
            f"reachable Hugging Face model ({first_line})."
        ) from None


def fill(
    module: nn.Module, files: Iterable[Path], reference: str, rename: Callable[[str], Target]
) -> WeightReport:
    """Copy tensors into a module, strictly; ``rename`` says where a file's keys go.

    Raises:
        UserError: a file is broken, or the tensors are not exactly the module's.
    """
    paths = list(files)
    named = (item for path in paths for item in _read(path, rename))
    return _fill(module, named, reference, tuple(str(path) for path in paths))


def _fill(
    module: nn.Module,
    named: Iterable[tuple[str, Target, Tensor | None]],
    reference: str,
    files: tuple[str, ...],
) -> WeightReport:
    """Copy (key, where it goes, tensor) into a module, all of them or none."""
    found, dropped = _matched(module, named, reference)
    module.load_state_dict(found, strict=False)
    num_parameters = sum(tensor.numel() for tensor in found.values())
    return WeightReport(reference, files, len(found), num_parameters, tuple(dropped))


def check_headers(
    module: nn.Module, files: Iterable[Path], reference: str, rename: Callable[[str], Target]
) -> None:
    """Compare the headers of safetensors files with a module; no tensor is read.

    Args:
        module: may be on the meta device.
        files: all files of the weights.
        reference: names them in errors.
        rename: says where a file's keys go, as for :func:`fill`.

    Raises:
        UserError: a file is broken, or :func:`fill` would refuse its tensors.
    """
    named = (item for path in files for item in _read(path, rename, header=True))
    _matched(module, named, reference)


def header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a safetensors file; no tensor is read.

    Raises:
        UserError: the file is broken.
    """
    found = _read(path, _unchanged, header=True)
    return {key: tuple(tensor.shape) for key, _, tensor in found if tensor is not None}


def _matched(
    module: nn.Module, named: Iterable[tuple[str, Target, Tensor | None]], reference: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors by their names in the module, and the keys that are known to be dropped.

    Raises:
        UserError: they are not exactly the module's.
    """
    wanted = module.state_dict()
    found: dict[str, Tensor] = {}
    dropped: list[str] = []
    unknown_keys: list[str] = []
    for key, target, tensor in named:
        if target is None:
            dropped.append(key)
            continue
        names = (target,) if isinstance(target, str) else target
        if tensor is None or not wanted.keys() >= set(names):
            unknown_keys.append(key)
        else:
            if not tensor.is_meta:  # of a header alone, which has no numbers
                check_numbers(f"The weights {reference!r}", key, tensor)
            found.update(zip(names, unstack(tensor, len(names)), strict=False))
    _check(wanted, found, unknown_keys, reference)
    return found, dropped


def unstack(tensor: Tensor, num: int) -> tuple[Tensor, ...]:
    """Return the ``num`` equal parts that a tensor is a stack of, along its first axis."""
    return (tensor,) if num == 1 else tensor.chunk(num)


def _unchanged(key: str) -> str:
    return key


def _read(
    path: Path, rename: Callable[[str], Target], *, header: bool = False
) -> Iterable[tuple[str, Target, Tensor | None]]:
    """Yield (key, where it goes, tensor); tensors that are dropped are not read from disk.

    With ``header`` none is: what is yielded has the shape alone.
    """
    import torch

    try:
        refuse_odd(path)
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
                target = rename(key)
                if target is None:
                    yield key, target, None
                elif header:
                    shape = file.get_slice(key).get_shape()
                    yield key, target, torch.empty(shape, device="meta")
                else:
                    yield key, target, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        refuse_another_thing(path)
        known = error.strerror if isinstance(error, OSError) else None
        problem = known or str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{path} is not a whole safetensors file ({problem}): copy or build it again."
        ) from None


def _check(
    wanted: dict[str, Tensor], found: dict[str, Tensor], unknown_keys: list[str], reference: str
) -> None:
    filled = {_memory(wanted[key]) for key in found}
    # A tied tensor has two names and is stored under one.
    missing = [
        key
        for key, tensor in wanted.items()
        if key not in found and (_memory(tensor) not in filled or not tensor.numel())
    ]
    if missing:
        raise UserError(
            f"The weights {reference!r} are of another model: {len(missing)} of {len(wanted)} "
            f"tensors are missing, first {missing[0]!r}."
        )
    if unknown_keys:
        raise UserError(
            f"The weights {reference!r} are of another model: they hold {unknown_keys[0]!r}, "
            "which is not part of this one."
        )
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"The weights {reference!r} are of another model: {key!r} has shape "
                f"{tuple(tensor.shape)} instead of {tuple(wanted[key].shape)}."
            )


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Tell tensors apart by what they lie on; on the meta device all addresses are 0."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
