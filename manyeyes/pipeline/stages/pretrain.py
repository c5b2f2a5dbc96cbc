"""``pretrain``: the pre-aligned experts side by side, with a new projector (Eagle, section 2.4).

Or, where the recipe says ``inherit: whole``, the one pre-aligned model as it is, with its projector
and alignment (EVE, whose expert is nothing without them).
"""

from __future__ import annotations

from manyeyes.artifact.lineage import inherit
from manyeyes.config.recipe.slices import TrainSlice
from manyeyes.errors import UserError
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.pipeline.stages.training import train_and_save


def pretrain(piece: TrainSlice, context: StageContext) -> Details:
    """Join the experts by name, drop their projectors, and train a new joint projector.

    Without pre-aligned experts the towers start from the weights that the recipe names; projector
    and fusion start at random, or from the weights it names for them.

    Raises:
        UserError: some of the recipe's experts are pre-aligned and some are not.
    """
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.model.weights.exchange.projector import load_joint
    from manyeyes.model.weights.loading import load_expert

    model, experts = piece.model, context.experts
    names = [encoder.name for encoder in model.encoders]
    if experts and set(names) != set(experts):
        raise UserError(
            f"Stage pretrain needs one prealign checkpoint for each of {', '.join(names)}, "
            f"but was given {', '.join(sorted(experts)) or 'none'}."
        )
    if piece.section.inherit == "whole":
        if len(experts) != 1:
            raise UserError(
                "pretrain.inherit whole continues the one checkpoint of prealign, but was given "
                f"{len(experts)}."
            )
        (whole,) = experts.values()
        vlm = VisionLanguageModel.from_pretrained(whole, training=model)
    else:
        vlm = VisionLanguageModel.from_recipe(model, seed=piece.seed)
        for name, checkpoint in experts.items():
            load_expert(vlm.encoders[name], name, checkpoint)
    if model.projector.weights is not None:
        load_joint(vlm, model.projector.weights)
    inherit(experts, context.out)
    return train_and_save(vlm, piece, context)
