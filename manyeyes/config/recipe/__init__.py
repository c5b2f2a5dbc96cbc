"""The recipe: a strict YAML file per system, from which the stages get their slices.

In reading order: ``sections`` (with ``fusions``, ``lora`` and ``optimization``) is the schema and
its defaults; ``strict_yaml`` reads a file; ``layers`` lays files over each other; ``resolve`` makes
one recipe of them; ``slices`` cuts it for the stages; ``schema`` writes it down for editors.
Imports no torch.
"""

from manyeyes.config.recipe.base import Section
from manyeyes.config.recipe.fusions import (
    ChannelConcat,
    DeformableAttention,
    FusionSection,
    MixtureOfResolution,
    PatchEmbedding,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.config.recipe.load import (
    load_recipe,
    parse_recipe,
    place_in,
    recipe_yaml,
    resolved_recipe,
    sourced_yaml,
    sources,
    with_overrides,
)
from manyeyes.config.recipe.lora import Lora
from manyeyes.config.recipe.optimization import (
    Batch,
    Constant,
    Cosine,
    DeepSpeed,
    FixedRates,
    LearningRate,
    SingleProcess,
    SquareRootRates,
    TokenBudget,
)
from manyeyes.config.recipe.resolve import Resolved
from manyeyes.config.recipe.sections import (
    AlignmentSection,
    EncoderSection,
    EvalSection,
    GateSection,
    ImportedData,
    LanguageModelSection,
    MlpProjector,
    ModelSection,
    PrealignSection,
    Recipe,
    RegisterSection,
    StarterData,
    TrainSection,
    ValidateSection,
)

__all__ = [
    "AlignmentSection",
    "Batch",
    "ChannelConcat",
    "Constant",
    "Cosine",
    "DeepSpeed",
    "DeformableAttention",
    "EncoderSection",
    "EvalSection",
    "FixedRates",
    "FusionSection",
    "GateSection",
    "ImportedData",
    "LanguageModelSection",
    "LearningRate",
    "Lora",
    "MixtureOfResolution",
    "MlpProjector",
    "ModelSection",
    "PatchEmbedding",
    "PatchInfoMining",
    "PrealignSection",
    "Recipe",
    "RegisterSection",
    "Resolved",
    "Section",
    "SequenceAppend",
    "SingleProcess",
    "SpatialVisionAggregator",
    "SquareRootRates",
    "StarterData",
    "TokenBudget",
    "TrainSection",
    "ValidateSection",
    "load_recipe",
    "parse_recipe",
    "place_in",
    "recipe_yaml",
    "resolved_recipe",
    "sourced_yaml",
    "sources",
    "with_overrides",
]
