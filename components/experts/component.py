"""KFP skin of the loop over the experts: one control step that no other skin needs.

The body of a loop cannot read an outer task's output parameter under kfp.local, so this step puts
name, slice and fingerprint of each expert into the items of the loop.
"""

from typing import Dict, List  # noqa: UP035 - kfp's type check knows these names


def experts(
    plan: List[Dict[str, str]],  # noqa: UP006 - kfp's type check knows this name
    dataset: str,
    validation: str,
) -> List[Dict[str, str]]:  # noqa: UP006 - kfp's type check knows this name
    """List the experts to pre-align, each with its slice and fingerprint.

    Args:
        plan: per expert its name, its recipe slice and its fingerprint without the inputs' digests.
        dataset: content digest of the dataset.
        validation: content digest of the validation report.

    Returns:
        One item of the loop per expert: expert, recipe_slice, fingerprint.
    """
    from manyeyes.pipeline.worker import expert_items

    return expert_items(plan, dataset=dataset, validation=validation)
