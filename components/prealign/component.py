"""KFP skin of ``prealign``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output


def prealign(
    dataset: Input[Dataset],
    validation: Input[Artifact],
    expert: str,
    recipe_slice: str,
    fingerprint: str,
    checkpoint: Output[Model],
) -> str:
    """Train one expert and a projector of its own against the frozen language model.

    Args:
        dataset: the output of prepare.
        validation: the report of validate, which names the quarantined samples.
        expert: name of the encoder in the recipe.
        recipe_slice: JSON of what the stage sees of the recipe: seed, model, this expert's section.
        fingerprint: digest of code, slice and the inputs' content; the key of KFP's cache.
        checkpoint: the expert's weights; its manifest holds the expert's name.

    Returns:
        The content digest of the checkpoint.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "prealign",
        recipe_slice,
        inputs={"dataset": dataset.path, "validation": validation.path},
        out=checkpoint.path,
        fingerprint=fingerprint,
        expert=expert,
    )
