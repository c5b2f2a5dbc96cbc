"""``manyeyes submit|resume``: start a recipe's pipeline on a cluster."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from manyeyes.cli.check import load_ready
from manyeyes.cli.output import print_json
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow
    from manyeyes.kubeflow.pipelines.submissions import Submission


def run(arguments: argparse.Namespace) -> int:
    """Start a run, say which, and wait for its end if asked."""
    if arguments.verb == "submit":
        server, submission = _submit(arguments)
    else:
        server, submission = _resume(arguments)
    if not arguments.json:
        print(f"Run {submission.run} of {submission.version} was started.")
        print(f"  page     {server.link(submission.run)}")
        print("  follow   manyeyes status, manyeyes logs -f, manyeyes cancel")
    state = _wait(server, submission, quiet=arguments.json) if arguments.wait else None
    if arguments.json:
        link = server.link(submission.run)
        print_json({**asdict(submission), "link": link, "state": state})
    return 0


def _submit(arguments: argparse.Namespace) -> tuple[Kubeflow, Submission]:
    recipe = load_ready(arguments.recipe)
    from manyeyes.kubeflow.pipelines import submit
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow

    profile = submit.cluster_profile(arguments.profile)
    given = dict(_pair(word) for word in arguments.set)
    reference = submit.profile_reference(arguments.profile)
    return Kubeflow(profile), submit.submit(recipe, profile, reference, given)


def _resume(arguments: argparse.Namespace) -> tuple[Kubeflow, Submission]:
    from manyeyes.cli.remote import locate
    from manyeyes.kubeflow.pipelines.submit import resume

    place = locate(arguments)
    state = place.server.run(place.submission.run)
    return place.server, resume(place.server, state, place.submission)


def _wait(server: Kubeflow, submission: Submission, *, quiet: bool) -> str:
    from manyeyes.cli.remote import Teller
    from manyeyes.kubeflow.pipelines.submit import wait

    return wait(server, submission.run, Teller(quiet=quiet)).state


def _pair(word: str) -> tuple[str, str]:
    name, sign, value = word.partition("=")
    if not sign:
        raise UserError(f"--set wants NAME=VALUE, got {word!r}.")
    return name, value
