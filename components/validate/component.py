"""KFP skin of ``validate``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Artifact, Dataset, Input, Output


def validate(
    dataset: Input[Dataset],
    recipe_slice: str,
    fingerprint: str,
    validation: Output[Artifact],
) -> str:
    """Hold a dataset against the data contract; fails when the gate says no.

    Args:
        dataset: the output of prepare.
        recipe_slice: JSON of what the stage sees of the recipe: seed and validate.
        fingerprint: digest of code, slice and the dataset's content; the key of KFP's cache.
        validation: the report, with the quarantined samples and a reason for each.

    Returns:
        The content digest of the report.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "validate",
        recipe_slice,
        inputs={"dataset": dataset.path},
        out=validation.path,
        fingerprint=fingerprint,
    )
