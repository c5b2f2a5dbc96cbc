"""What ``prealign``, ``pretrain`` and ``sft`` share: read the data, train, save the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.artifact.files import RECIPE_FILE
from manyeyes.artifact.lineage import inherit
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.config.recipe import ModelSection, TrainSection
from manyeyes.config.recipe.base import Section
from manyeyes.config.recipe.slices import TrainSlice
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import quarantined_ids
from manyeyes.data.loading.conversation import Codec, end_ids
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.runtime import ranks

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel


class CheckpointRecipe(Section):
    """The part of the recipe that made a checkpoint, kept inside it."""

    seed: int
    model: ModelSection
    section: TrainSection


def train_and_save(
    vlm: VisionLanguageModel, piece: TrainSlice, context: StageContext, *, is_last: bool = False
) -> Details:
    """Train ``vlm`` as the slice says and write the checkpoint into the context's ``out``.

    The last state stays there: without a manifest the checkpoint is not finished.
    ``is_last`` leaves out what only training needs.
    """
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import check_tokenizer, load_tokenizer, stop_at
    from manyeyes.training.loop import train

    model, out = piece.model, context.out
    given = {role: context.inputs[role] for role in ("dataset", "validation")}
    inherit(given, out)
    dataset = Dataset.open(given["dataset"])
    tokenizer = load_tokenizer(model.llm.weights)
    check_tokenizer(tokenizer, vlm.llm.config.vocab_size, model.llm.weights)
    stop_at(vlm.llm, end_ids(tokenizer, model.llm.template))
    result = train(
        vlm,
        dataset,
        Codec(tokenizer, model.llm.template, model.max_length, vlm.picture_tokens),
        piece.section,
        seed=piece.seed,
        out=out,
        progress=context.progress,
        excluded=quarantined_ids(given["validation"]),
    )
    if ranks.rank():
        return result.details()  # process 0 has the whole weights and writes them
    if is_last:
        vlm.alignment = None
    save_model(vlm, tokenizer, result.processor, out)
    kept = CheckpointRecipe(seed=piece.seed, model=model, section=piece.section)
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
