"""From a recipe's section to a model's config, and what cannot be built, said beforehand."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from manyeyes.errors import UserError
from manyeyes.model.encoders import find_spec
from manyeyes.model.encoders.spec import spec_to_json
from manyeyes.model.vlm_config import VisionLanguageConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

    from manyeyes.recipe import ModelSection


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Run a block with random numbers of its own, derived from the seed and a part's name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield


def config_of(model: ModelSection, text_config: PreTrainedConfig) -> VisionLanguageConfig:
    """Return the config of the model a recipe describes.

    Args:
        model: the recipe's section.
        text_config: of its language model.

    Raises:
        UserError: an unknown spec, a name that cannot be a parameter's, or lengths beyond the
            language model's positions.
    """
    _check_length(model, text_config)
    _check_names(model)
    return VisionLanguageConfig(
        encoders=[
            {
                "name": section.name,
                "spec": spec_to_json(find_spec(section.spec)),
                "grid": section.grid or model.grid,
            }
            for section in model.encoders
        ],
        grid=model.grid,
        normalization=model.normalization,
        fusion=model.fusion.model_dump(mode="json"),
        projector=model.projector.kind,
        max_length=model.max_length,
        text_config=text_config,
    )


def _check_length(model: ModelSection, text_config: PreTrainedConfig) -> None:
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and model.max_length > positions:
        raise UserError(
            f"model.max_length is {model.max_length}, but the language model "
            f"{model.llm.weights!r} has {positions} positions: lower max_length."
        )


def _check_names(model: ModelSection) -> None:
    for section in model.encoders:
        if "." in section.name or hasattr(nn.ModuleDict, section.name):
            raise UserError(
                f"An encoder cannot be called {section.name!r}, because parameters are named "
                "after it: use a name without dots, like 'clip'."
            )
