"""Projector and fusion alone: the authors' ``mm_projector.bin``, both ways.

Out: tensors under the authors' names, as a pickle of plain tensors (what their loaders read with
``torch.load``) or as safetensors. In: a folder that ``model.projector.weights`` of a recipe names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from manyeyes.artifact.destination import beside, claim_file
from manyeyes.errors import UserError
from manyeyes.model.weights.exchange.folder import TensorWriter
from manyeyes.model.weights.exchange.names import SYSTEMS, find_system, translate
from manyeyes.model.weights.exchange.source import open_source
from manyeyes.model.weights.loading import check_headers, fill, find_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.model.weights.exchange.report import ImportReport
    from manyeyes.model.weights.exchange.source import Source

SUFFIXES = (".bin", ".safetensors")


def system_of(model: VisionLanguageModel) -> str:
    """Return whose names a model's fusion is written with.

    Raises:
        UserError: the fusion is nobody's that published code.
    """
    kind = str((model.config.fusion or {})["kind"])
    if kind == "channel_concat" and len(model.experts) == 1:
        return "llava"
    for name, system in SYSTEMS.items():
        if kind in system.fusions:
            return name
    raise UserError(
        f"Nobody published weights of the fusion {kind}, so there are no names to write it with."
    )


def published_names(model: VisionLanguageModel, system: str) -> dict[str, str]:
    """Return the authors' name of each parameter of projector and fusion.

    Raises:
        UserError: the system has no name for one of the model's parameters.
    """
    rows = find_system(system).joint
    names = list(model.experts)
    towers = [f"encoders.{names[int(row.tower)]}.tower." for row in rows if row.tower]
    found: dict[str, str] = {}
    for key in model.state_dict():
        if not key.startswith(("projector.", "fusion.", *towers)):
            continue
        for row in rows:
            theirs = translate(key, f"{towers[0]}{row.ours}" if row.tower else row.ours, row.theirs)
            if theirs is not None:
                found[key] = theirs[0]
                break
        else:
            raise UserError(f"The names of {system} have none for {key!r}: give another --as.")
    return found


def claim_projector(out: Path) -> Path:
    """Refuse a file that a projector cannot be written to; return the real one behind links.

    Raises:
        UserError: the suffix is neither ``.bin`` nor ``.safetensors``, or it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} ends in neither .bin nor .safetensors: name the file so.")
    return claim_file(out)


def export_projector(model: VisionLanguageModel, system: str, out: Path) -> dict[str, Tensor]:
    """Write projector and fusion with the authors' names; the suffix says how.

    Raises:
        UserError: the suffix is neither ``.bin`` nor ``.safetensors``, the file exists, or the
            system has no names for the model.
    """
    real = claim_projector(out)
    state = model.state_dict()
    tensors = {
        theirs: state[ours].detach().cpu().clone().contiguous()
        for ours, theirs in published_names(model, system).items()
    }
    with beside(real) as folder:
        work = folder / real.name
        if out.suffix == ".safetensors":
            save_file(tensors, work, metadata={"format": "pt"})
        else:
            torch.save(tensors, work)
        work.replace(real)
    return tensors


def write_joint(source: Source, report: ImportReport, work: Path) -> None:
    """Write the tensors that a report found use for, under our names."""
    writer = TensorWriter(work)
    for key, tensor in source.tensors(report.used):
        (name,) = report.used[key]
        writer.add("projector", name, tensor)
    writer.finish()


def load_joint(model: VisionLanguageModel, reference: str) -> None:
    """Fill projector and fusion from a folder that ``write_joint`` made.

    Raises:
        UserError: there are no such weights, or they are of another model.
    """
    fill(_joint(model, reference), find_safetensors(reference), reference, lambda key: key)


def check_joint(model: VisionLanguageModel, reference: str) -> None:
    """Say whether ``load_joint`` would, from the headers; the model may be on the meta device.

    Raises:
        UserError: there are no such weights, or they are of another model.
    """
    check_headers(_joint(model, reference), find_safetensors(reference), reference, str)


def _joint(model: VisionLanguageModel, reference: str) -> nn.Module:
    """Return the parts of a model that a folder of ``write_joint`` holds."""
    shapes = open_source(reference).shapes
    held = {key.split(".")[1] for key in shapes if key.startswith("encoders.")}
    towers = {name: part for name, part in model.encoders.items() if name in held}
    parts = {
        "projector": model.projector,
        "fusion": _without_fresh(model, shapes),
        "encoders": nn.ModuleDict(towers),
    }
    return nn.ModuleDict(parts)


def _without_fresh(model: VisionLanguageModel, held: Iterable[str]) -> nn.Module:
    """Return the fusion but for the parts that a first stage has not, where none is held."""
    kind = str((model.config.fusion or {})["kind"])
    fresh = [part for row in SYSTEMS.values() if kind in row.fusions for part in row.fresh]
    keys = list(held)
    absent = {
        part.removeprefix("fusion.")
        for part in fresh
        if not any(key.startswith(f"{part}.") for key in keys)
    }
    if not absent:
        return model.fusion
    return nn.ModuleDict({n: m for n, m in model.fusion.named_children() if n not in absent})
