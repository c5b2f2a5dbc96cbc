"""KFP skin of ``pretrain``. Lightweight mode copies the function alone: it imports inside."""

from typing import List  # noqa: UP035 - kfp's type check knows this name

from kfp.dsl import Artifact, Dataset, Input, Model, Output


def pretrain(
    dataset: Input[Dataset],
    validation: Input[Artifact],
    recipe_slice: str,
    fingerprint: str,
    checkpoint: Output[Model],
    experts: Input[List[Model]] = None,  # noqa: UP006 - kfp writes an optional list so
    expert_digests: List[str] = [],  # noqa: UP006, B006 - kfp reads the default
) -> str:
    """Join the pre-aligned experts and train a new joint projector.

    Args:
        dataset: the output of prepare.
        validation: the report of validate, which names the quarantined samples.
        recipe_slice: JSON of what the stage sees of the recipe: seed, model, pretrain.
        fingerprint: digest of code, slice and the inputs' content; the key of KFP's cache.
        checkpoint: the joined model with its projector.
        experts: the collected checkpoints, told apart by the name in each manifest; none when the
            recipe skips prealign.
        expert_digests: their content digests, which KFP's cache needs in its key.

    Returns:
        The content digest of the checkpoint.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "pretrain",
        recipe_slice,
        inputs={
            "dataset": dataset.path,
            "validation": validation.path,
            "experts": [expert.path for expert in experts or []],
        },
        out=checkpoint.path,
        fingerprint=fingerprint,
        expert_digests=expert_digests,
    )
