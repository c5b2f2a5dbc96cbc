"""``sft``: fine-tune on conversations, towers included (Eagle, section 2.1)."""

from __future__ import annotations

from manyeyes.artifact.lineage import inherit
from manyeyes.config.recipe.slices import TrainSlice
from manyeyes.errors import UserError
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.pipeline.stages.training import train_and_save


def sft(piece: TrainSlice, context: StageContext) -> Details:
    """Continue from the pretrained mixture with everything the recipe unfreezes.

    The model is this stage's own, which may see more of a picture than the one that was
    pretrained: what must agree is every parameter's name and shape.

    Raises:
        UserError: they do not agree, or the checkpoint cannot be read.
    """
    from manyeyes.model.vlm import VisionLanguageModel

    checkpoint = context.inputs["checkpoint"]
    try:
        vlm = VisionLanguageModel.from_pretrained(checkpoint, training=piece.model)
    except UserError as error:
        raise UserError(f"Stage sft cannot continue with its model. {error}") from None
    inherit({"checkpoint": checkpoint}, context.out)
    return train_and_save(vlm, piece, context, is_last=True)
