"""From a recipe's section to a model's config, and from the config to its encoders.

What cannot be built is said beforehand.
"""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from manyeyes.model.encoders import encoder_from_spec, section_spec
from manyeyes.model.encoders.spec import spec_from_json, spec_to_json
from manyeyes.model.fusion import Eyes
from manyeyes.model.router import set_router_weight
from manyeyes.model.vlm_config import VisionLanguageConfig, check_length, check_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedConfig

    from manyeyes.config.recipe import ModelSection
    from manyeyes.model.encoders import Encoder


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


def build_encoders(config: VisionLanguageConfig, seed: int) -> nn.ModuleDict:
    """Build the encoders of a config by their names, in channel order."""
    encoders = nn.ModuleDict()
    normalization = cast("Literal['per_encoder', 'shared']", config.normalization)
    for row in config.encoders or []:
        name, spec = str(row["name"]), spec_from_json(row["spec"])
        grid = row.get("grid") or config.grid
        with seeded(seed, f"encoders.{name}"):
            encoders[name] = encoder_from_spec(spec, grid=grid, normalization=normalization)
    return encoders


def eyes_of(experts: Mapping[str, Encoder], config: VisionLanguageConfig) -> Eyes:
    """Return what a fusion is told of the experts and of the language model."""
    return Eyes(
        names=tuple(experts),
        families=tuple(expert.spec.family for expert in experts.values()),
        widths=tuple(expert.spec.width for expert in experts.values()),
        grids=tuple(expert.grid for expert in experts.values()),
        grid=config.grid,
        language_width=int(config.language.hidden_size),
        language_layers=int(config.language.num_hidden_layers),
        specs=tuple(expert.spec for expert in experts.values()),
    )
