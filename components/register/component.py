"""KFP skin of ``register``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Artifact, Input, Model, Output


def register(
    checkpoint: Input[Model],
    report: Input[Artifact],
    recipe_slice: str,
    fingerprint: str,
    registration: Output[Artifact],
) -> str:
    """Register the model by reference and make it champion if it passes the gate.

    Args:
        checkpoint: the output of sft.
        report: the output of eval.
        recipe_slice: JSON of what the stage sees of the recipe: name and register.
        fingerprint: digest of code, slice and the inputs' content; the key of KFP's cache.
        registration: what was registered, and the evidence of the gate.

    Returns:
        The content digest of the registration report.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step(
        "register",
        recipe_slice,
        inputs={"checkpoint": checkpoint.path, "report": report.path},
        out=registration.path,
        fingerprint=fingerprint,
    )
