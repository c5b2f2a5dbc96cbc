"""From a recipe's section to a model's config, and what cannot be built, said beforehand."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from manyeyes.model.encoders import section_spec
from manyeyes.model.encoders.spec import spec_to_json
from manyeyes.model.router import set_router_weight
from manyeyes.model.vlm_config import VisionLanguageConfig, check_length, check_names

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
    if model.llm.router_loss is not None:
        set_router_weight(text_config, model.llm.router_loss)
    check_length(model, text_config)
    check_names(model)
    return VisionLanguageConfig(
        encoders=[
            {
                "name": section.name,
                "spec": spec_to_json(section_spec(section)),
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
