"""What ``prealign``, ``pretrain`` and ``sft`` share: read the data, train, save the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.config.recipe import ModelSection, TrainSection
from manyeyes.config.recipe.base import Section
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import quarantined_ids
from manyeyes.data.loading.conversation import Codec, end_ids
from manyeyes.pipeline.stages import Details
from manyeyes.pipeline.stages.history import inherit
from manyeyes.runtime import ranks
from manyeyes.runtime.progress import Progress

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class TrainingInputs:
    """The data of a training stage."""

    dataset: Path
    validation: Path
    """Report of ``validate``: the samples it quarantined are not trained on."""


class CheckpointRecipe(Section):
    """The part of the recipe that made a checkpoint, kept inside it."""

    seed: int
    model: ModelSection
    section: TrainSection


def train_and_save(
    vlm: VisionLanguageModel,
    model: ModelSection,
    section: TrainSection,
    *,
    seed: int,
    data: TrainingInputs,
    out: Path,
    progress: Progress,
    is_last: bool = False,
) -> Details:
    """Train ``vlm`` as the section says and write the checkpoint into ``out``.

    The last state stays there: without a manifest the checkpoint is not finished.
    ``is_last`` leaves out what only training needs.
    """
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import check_tokenizer, load_tokenizer, stop_at
    from manyeyes.train.loop import train

    inherit({"dataset": data.dataset, "validation": data.validation}, out)
    dataset = Dataset.open(data.dataset)
    tokenizer = load_tokenizer(model.llm.weights)
    check_tokenizer(tokenizer, vlm.llm.config.vocab_size, model.llm.weights)
    stop_at(vlm.llm, end_ids(tokenizer, model.llm.template))
    result = train(
        vlm,
        dataset,
        Codec(tokenizer, model.llm.template, model.max_length, vlm.picture_tokens),
        section,
        seed=seed,
        out=out,
        progress=progress,
        excluded=quarantined_ids(data.validation),
    )
    if ranks.rank():
        return result.details()  # process 0 has the whole weights and writes them
    if is_last:
        vlm.alignment = None
    save_model(vlm, tokenizer, result.processor, out)
    kept = CheckpointRecipe(seed=seed, model=model, section=section)
    atomic_write_text(out / RECIPE_FILE, kept.model_dump_json(indent=2) + "\n")
    return {**result.details(), **_origins(model)}


def _origins(model: ModelSection) -> Details:
    """Say where weights from other packages came from: version, sha256, licence."""
    from manyeyes.model.weights.packages import PREFIX, origin

    references = [encoder.weights for encoder in model.encoders] + [model.llm.weights]
    if model.alignment is not None:
        references.append(model.alignment.teacher.weights)
    found: Details = {
        reference: {**origin(reference)} for reference in references if reference.startswith(PREFIX)
    }
    return {"weights": found} if found else {}
