"""From a row of the table to a module: the family's own class, found by its name in the table."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.model.encoders.registry import find_family, find_spec
from manyeyes.model.encoders.spec import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from manyeyes.config.recipe import EncoderSection
    from manyeyes.model.encoders.base import Encoder, Normalization
    from manyeyes.model.encoders.spec import EncoderSpec


def build_encoder(
    section: EncoderSection, *, grid: int, normalization: Normalization = "per_encoder"
) -> Encoder:
    """Build the encoder a recipe names, with random weights.

    Args:
        section: the expert; ``weights`` are loaded by ``load_weights``.
        grid: side of the common feature grid.
        normalization: ``shared`` feeds CLIP-normalised pixels, as Eagle's released code does.

    Raises:
        UserError: the table has no such spec, or the spec cannot run as ``released`` says.
    """
    return encoder_from_spec(section_spec(section), grid=grid, normalization=normalization)


def encoder_from_spec(spec: EncoderSpec, *, grid: int, normalization: Normalization) -> Encoder:
    """Build an encoder from a spec, with random weights.

    Raises:
        UserError: the spec is of a family that the table does not have.
    """
    family = find_family(spec.family)
    file = importlib.import_module(f"{__package__}.{spec.family}")
    build: Callable[..., Encoder] = getattr(file, family.encoder)
    architecture = settle(spec.architecture)
    return build(replace(spec, architecture=architecture), architecture, grid, normalization)


def section_spec(section: EncoderSection) -> EncoderSpec:
    """Return the row that an expert's section names, at the side it was released with.

    Published weights may have been trained at another side than their authors say: Eagle's CLIP is
    called 448 and runs at 336, its 24 x 24 features resized to the common 32 x 32. ``released``
    builds that: the input has this side, and the native grid follows from the patch.

    Raises:
        UserError: the table has no such row, or ``released`` does not fit its patches.
    """
    spec = find_spec(section.spec)
    if section.released is None:
        return spec
    patch = getattr(settle(spec.architecture), "patch", None)
    cells = spec.image_size // spec.native_grid
    if spec.position != "learned" or patch != cells:
        raise UserError(
            f"model.encoders: {section.name} sets released, but {section.spec} runs at "
            f"{spec.image_size} pixels only: leave released out."
        )
    if section.released % patch:
        near = max(section.released // patch, 1) * patch
        raise UserError(
            f"model.encoders: released of {section.name} is {section.released}, which is not a "
            f"multiple of its patch of {patch} pixels: {near} or {near + patch} would be."
        )
    side = section.released
    return replace(spec, image_size=side, native_grid=side // patch)
