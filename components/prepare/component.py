"""KFP skin of ``prepare``. Lightweight mode copies the function alone: it imports inside."""

from kfp.dsl import Dataset, Output


def prepare(recipe_slice: str, fingerprint: str, dataset: Output[Dataset]) -> str:
    """Make the dataset of a recipe.

    Args:
        recipe_slice: JSON of what the stage sees of the recipe: seed and data.
        fingerprint: digest of code and slice; the key of KFP's cache.
        dataset: image shards, sample index and manifest.

    Returns:
        The content digest of the dataset.
    """
    from manyeyes.pipeline.worker import run_step

    return run_step("prepare", recipe_slice, inputs={}, out=dataset.path, fingerprint=fingerprint)
