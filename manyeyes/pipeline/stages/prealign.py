"""``prealign``: one expert learns to speak to the frozen language model (Eagle, section 2.4).

The expert gets a projector of its own, which later stages drop: what counts is that the expert's
features have moved to where a language model can use them. (EVE's pretraining inherits the whole
model instead.)
"""

from __future__ import annotations

from pathlib import Path

from manyeyes.config.recipe import ModelSection, TrainSection
from manyeyes.errors import unknown
from manyeyes.pipeline.stages import Details
from manyeyes.pipeline.stages.training import TrainingInputs, train_and_save
from manyeyes.runtime.progress import Progress


def prealign(
    seed: int,
    model: ModelSection,
    section: TrainSection,
    *,
    expert: str,
    data: TrainingInputs,
    out: Path,
    progress: Progress,
) -> Details:
    """Train one expert and a projector of its own against the frozen language model."""
    from manyeyes.model.vlm import VisionLanguageModel

    known = {encoder.name: encoder for encoder in model.encoders}
    if expert not in known:
        raise unknown("expert", expert, known)
    alone = model.alone(expert)
    vlm = VisionLanguageModel.from_recipe(alone, seed=seed)
    return train_and_save(vlm, alone, section, seed=seed, data=data, out=out, progress=progress)
