"""``manyeyes compile``: the KFP IR YAML of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.output import print_json
from manyeyes.cli.values import PATH, PLACE


@verb("compile")
@recipe_argument
@click.option("-o", "--out", metavar="FILE", type=PATH, required=True, help="file to write")
@click.option(
    "--profile", metavar="PROFILE", type=PLACE, help="where it shall run (default: this machine)"
)
@click.option("--gitops", is_flag=True, help="write Kubernetes resources for kubectl apply")
@set_option
@json_option
def compile_verb(
    path: Path,
    out: Path,
    profile: str | None,
    gitops: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Write the compiled pipeline; equal recipes give equal bytes."""
    from manyeyes.cli.loading import load_checked
    from manyeyes.config.profile import ClusterProfile, load_profile

    recipe = load_checked(path, overrides=overrides)
    place = load_profile(profile) if profile else None
    cluster = place if isinstance(place, ClusterProfile) else None
    from manyeyes.kubeflow.pipelines.compile import compile_pipeline

    compile_pipeline(recipe, cluster, out, gitops=gitops)
    where = cluster.name if cluster else "this machine"
    if as_json:
        print_json({"recipe": recipe.name, "profile": where, "out": str(out)})
    else:
        print(f"{out}: compiled {recipe.name} for {where}")
    return 0


COMMANDS = (compile_verb,)
