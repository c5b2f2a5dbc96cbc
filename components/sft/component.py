"""KFP skin of ``sft``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output


def sft(
    dataset: Input[Dataset],
    validation: Input[Artifact],
    checkpoint: Input[Model],
    recipe_slice: str,
    fingerprint: str,
    model: Output[Model],
) -> str:
    """Fine-tune everything, the encoders included, on conversations.

    Args:
        dataset: the output of prepare.
        validation: the report of validate, which names the quarantined samples.
        checkpoint: the output of pretrain.
        recipe_slice: JSON of what the stage sees of the recipe: seed, model, sft.
        fingerprint: digest of code, slice and the inputs' content; the key of KFP's cache.
        model: the trained model.

    Returns:
        The content digest of the model.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "sft",
        recipe_slice,
        inputs={
            "dataset": dataset.path,
            "validation": validation.path,
            "checkpoint": checkpoint.path,
        },
        out=model.path,
        fingerprint=fingerprint,
    )
