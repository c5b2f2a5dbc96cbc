"""``sft``: fine-tune on conversations, towers included (Eagle, section 2.1)."""

from __future__ import annotations

from pathlib import Path

from manyeyes.config.recipe import ModelSection, TrainSection
from manyeyes.errors import UserError
from manyeyes.pipeline.stages import Details
from manyeyes.pipeline.stages.history import inherit
from manyeyes.pipeline.stages.training import TrainingInputs, train_and_save
from manyeyes.runtime.progress import Progress


def sft(
    seed: int,
    model: ModelSection,
    section: TrainSection,
    *,
    checkpoint: Path,
    data: TrainingInputs,
    out: Path,
    progress: Progress,
) -> Details:
    """Continue from the pretrained mixture with everything the recipe unfreezes.

    The model is this stage's own, which may see more of a picture than the one that was
    pretrained: what must agree is every parameter's name and shape.

    Raises:
        UserError: they do not agree, or the checkpoint cannot be read.
    """
    from manyeyes.model.vlm import VisionLanguageModel

    try:
        vlm = VisionLanguageModel.from_pretrained(checkpoint, training=model)
    except UserError as error:
        raise UserError(f"Stage sft cannot continue with its model. {error}") from None
    inherit({"checkpoint": checkpoint}, out)
    return train_and_save(
        vlm, model, section, seed=seed, data=data, out=out, progress=progress, is_last=True
    )
