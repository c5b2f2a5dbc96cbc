"""KFP skin of ``eval``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output


def eval(  # noqa: A001 - one word for the stage in every skin
    dataset: Input[Dataset],
    validation: Input[Artifact],
    checkpoint: Input[Model],
    recipe_slice: str,
    fingerprint: str,
    report: Output[Artifact],
) -> str:
    """Score the model by each task's official metric, beside a blank image.

    Args:
        dataset: the output of prepare.
        validation: the report of validate, which names the quarantined samples.
        checkpoint: the output of sft.
        recipe_slice: JSON of what the stage sees of the recipe: seed, model, eval.
        fingerprint: digest of code, slice and the inputs' content; the key of KFP's cache.
        report: scores, predictions and the report page.

    Returns:
        The content digest of the report.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "eval",
        recipe_slice,
        inputs={
            "dataset": dataset.path,
            "validation": validation.path,
            "checkpoint": checkpoint.path,
        },
        out=report.path,
        fingerprint=fingerprint,
    )
