"""``manyeyes submit|resume``: start a recipe's pipeline on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, recipe_argument, verb
from manyeyes.cli.output import print_json
from manyeyes.cli.remote import Teller, locate, run_options
from manyeyes.cli.values import PLACE, TEXT
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow
    from manyeyes.kubeflow.pipelines.submissions import Submission

wait_option = click.option("--wait", is_flag=True, help="wait until the run ends")


@verb("submit")
@recipe_argument
@click.option(
    "--profile",
    metavar="PROFILE",
    type=PLACE,
    required=True,
    help="the cluster: a name or a .yaml file",
)
@click.option(
    "--set",
    "given",
    type=TEXT,
    multiple=True,
    metavar="KEY=VALUE",
    help="put another value into the recipe, like sft.steps=10, or into a pipeline input, like "
    "sft_gpus=4; may be given again",
)
@wait_option
@json_option
def submit_verb(path: Path, profile: str, given: tuple[str, ...], wait: bool, as_json: bool) -> int:
    """Start a run of a recipe, and wait for its end if asked."""
    from manyeyes.cli.loading import load_ready

    overrides, inputs = _told_apart(given)
    recipe = load_ready(path, overrides=overrides)
    from manyeyes.kubeflow.pipelines import submit
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow

    cluster = submit.cluster_profile(profile)
    server = Kubeflow(cluster)
    started = submit.submit(recipe, cluster, submit.profile_reference(profile), inputs)
    return _tell(server, started, wait=wait, as_json=as_json)


@verb("resume")
@run_options
@wait_option
@json_option
def resume_verb(run: str | None, profile: str | None, wait: bool, as_json: bool) -> int:
    """Start an ended run again, from where it stopped."""
    from manyeyes.kubeflow.pipelines.submit import resume

    place = locate(run, profile)
    state = place.server.run(place.submission.run)
    started = resume(place.server, state, place.submission)
    return _tell(place.server, started, wait=wait, as_json=as_json)


def _tell(server: Kubeflow, submission: Submission, *, wait: bool, as_json: bool) -> int:
    """Say which run was started, and wait for its end if asked."""
    if not as_json:
        print(f"Run {submission.run} of {submission.version} was started.")
        print(f"  page     {server.link(submission.run)}")
        print("  follow   manyeyes status, manyeyes logs -f, manyeyes cancel")
    state = _wait(server, submission, quiet=as_json) if wait else None
    if as_json:
        link = server.link(submission.run)
        print_json({**asdict(submission), "link": link, "state": state})
    return 0


def _wait(server: Kubeflow, submission: Submission, *, quiet: bool) -> str:
    from manyeyes.kubeflow.pipelines.submit import wait

    return wait(server, submission.run, Teller(quiet=quiet)).state


def _told_apart(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Tell what is set in the recipe (a key of it, or a dotted one) from pipeline inputs.

    Raises:
        UserError: a word is no pair.
    """
    from manyeyes.config.recipe import Recipe

    keys = {field.alias or key for key, field in Recipe.model_fields.items()}
    overrides: list[str] = []
    inputs: dict[str, str] = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"--set wants KEY=VALUE, got {word!r}.")
        if "." in name or name in keys:
            overrides.append(word)
        else:
            inputs[name] = value
    return overrides, inputs


COMMANDS = (submit_verb, resume_verb)
