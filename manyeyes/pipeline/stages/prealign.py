"""``prealign``: one expert learns to speak to the frozen language model (Eagle, section 2.4).

The expert gets a projector of its own, which later stages drop: what counts is that the expert's
features have moved to where a language model can use them. (EVE's pretraining inherits the whole
model instead.)
"""

from __future__ import annotations

from manyeyes.config.recipe.slices import TrainSlice
from manyeyes.errors import unknown
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.pipeline.stages.training import train_and_save


def prealign(piece: TrainSlice, context: StageContext) -> Details:
    """Train one expert and a projector of its own against the frozen language model.

    Raises:
        UserError: the model has no such expert.
    """
    from manyeyes.model.vlm import VisionLanguageModel

    known = {encoder.name: encoder for encoder in piece.model.encoders}
    expert = piece.expert or ""
    if expert not in known:
        raise unknown("expert", expert, known)
    alone = piece.model_copy(update={"model": piece.model.alone(expert)})
    vlm = VisionLanguageModel.from_recipe(alone.model, seed=piece.seed)
    return train_and_save(vlm, alone, context)
