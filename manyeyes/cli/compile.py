"""``manyeyes compile``: the KFP IR YAML of a recipe."""

from __future__ import annotations

import argparse

from manyeyes.cli.check import load_checked
from manyeyes.cli.output import print_json
from manyeyes.config.profile import ClusterProfile, load_profile


def run(arguments: argparse.Namespace) -> int:
    """Write the compiled pipeline; equal recipes give equal bytes."""
    recipe = load_checked(arguments.recipe)
    profile = load_profile(arguments.profile) if arguments.profile else None
    cluster = profile if isinstance(profile, ClusterProfile) else None
    from manyeyes.kubeflow.pipelines.compile import compile_pipeline

    compile_pipeline(recipe, cluster, arguments.out, gitops=arguments.gitops)
    where = cluster.name if cluster else "this machine"
    if arguments.json:
        print_json({"recipe": recipe.name, "profile": where, "out": str(arguments.out)})
    else:
        print(f"{arguments.out}: compiled {recipe.name} for {where}")
    return 0
