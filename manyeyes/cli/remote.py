"""``manyeyes status|logs|cancel``: what became of a run on a cluster."""

from __future__ import annotations

import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import Function, json_option, verb
from manyeyes.cli.output import print_json, print_table
from manyeyes.cli.values import PLACE, TEXT

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.config.profile import ClusterProfile
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow, RunState, TaskState
    from manyeyes.kubeflow.pipelines.pod_logs import Line, PodLogs
    from manyeyes.kubeflow.pipelines.submissions import Submission

LOG_SECONDS = 2.0
"""Between two looks at the pods while following."""


def run_options(function: Function) -> Function:
    """Add what names a run on a cluster."""
    run = click.argument(
        "run",
        metavar="[RUN]",
        required=False,
        type=PLACE,
        help="recipe, run id or run name (default: what was submitted last)",
    )
    profile = click.option(
        "--profile",
        metavar="PROFILE",
        type=PLACE,
        help="its cluster, for a run that was started elsewhere",
    )
    return run(profile(function))


@dataclass(frozen=True)
class ClusterRun:
    """A run and the server it is on."""

    profile: ClusterProfile
    server: Kubeflow
    submission: Submission


def locate(run: str | None, profile: str | None) -> ClusterRun:
    """Find the run that a command means; with ``--profile``, also one started elsewhere."""
    from manyeyes.kubeflow.pipelines import submissions, submit
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow

    if profile and run:
        reference = submit.profile_reference(profile)
        known = [one for one in submissions.submissions() if one.profile == reference]
        mine = [one for one in known if run in (one.recipe, one.run, one.name)]
        found = mine[-1] if mine else submissions.Submission(run, reference, run, run, run, "")
    else:
        found = submissions.find(run)
        reference = profile or found.profile
    cluster = submit.cluster_profile(reference)
    return ClusterRun(cluster, Kubeflow(cluster), found)


class Teller:
    """Says on standard error what changed in a run since the last look."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._told: dict[str, str] = {}

    def __call__(self, state: RunState) -> None:
        """Tell of every task whose state is new."""
        for task in state.tasks:
            if self._told.get(task.name) != task.state:
                self._told[task.name] = task.state
                self._say(f"{task.name}: {task.state.lower()}")
        if self._told.get("") != state.state:
            self._told[""] = state.state
            self._say(f"run: {state.state.lower()}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            clock = time.strftime("%H:%M:%S")
            sys.stderr.write(f"{clock}  {text}\n")
            sys.stderr.flush()


@verb("status")
@run_options
@json_option
def status(run: str | None, profile: str | None, as_json: bool) -> int:
    """Show the tasks of a run."""
    place = locate(run, profile)
    state = place.server.run(place.submission.run)
    if as_json:
        print_json(_as_json(place, state))
        return 0
    rows = [
        (task.name, task.state.lower(), _clock(task.started), _duration(task), task.error)
        for task in state.tasks
    ]
    print(f"{state.name}: {state.state.lower()}, created {_clock(state.created)}")
    if rows:
        print_table("tasks", ("task", "state", "started", "took", "error"), rows)
    if state.error:
        print(state.error)
    print(place.server.link(state.run))
    return 0


@verb("logs")
@run_options
@click.option("-f", "--follow", is_flag=True, help="go on until the run ends")
@click.option("--step", type=TEXT, help="only this step")
@json_option
def logs(
    run: str | None, profile: str | None, follow: bool, step: str | None, as_json: bool
) -> int:
    """Print what the tasks of a run print."""
    from manyeyes.kubeflow.pipelines.pod_logs import PodLogs, no_pods

    place = locate(run, profile)
    pods = PodLogs(place.profile, place.submission.run, step)
    while True:
        # in this order: what is printed before the end is read after the end was seen
        ended = place.server.run(place.submission.run).has_ended if follow else True
        _print_lines(pods, as_json=as_json)
        if ended:
            break
        time.sleep(LOG_SECONDS)
    if not pods.num_pods:
        raise no_pods(place.profile, place.submission.run)
    return 0


def _print_lines(pods: PodLogs, *, as_json: bool) -> None:
    for line in pods.new_lines():
        text = json.dumps(asdict(line), ensure_ascii=False) if as_json else _log_line(line)
        print(text, flush=True)


def _log_line(line: Line) -> str:
    return f"{line.step} {line.pod[-6:]}  {line.text}"


@verb("cancel")
@run_options
@json_option
def cancel_verb(run: str | None, profile: str | None, as_json: bool) -> int:
    """Stop a run."""
    from manyeyes.kubeflow.pipelines.submit import cancel

    place = locate(run, profile)
    state = cancel(place.server, place.submission.run)
    if as_json:
        print_json({"run": state.run, "name": state.name, "was": state.state})
    else:
        print(f"Run {state.run} was asked to stop; manyeyes resume will continue it.")
    return 0


def _as_json(place: ClusterRun, state: RunState) -> JsonValue:
    return {
        "recipe": place.submission.recipe,
        "profile": place.profile.name,
        "run": state.run,
        "name": state.name,
        "state": state.state,
        "created": _iso(state.created),
        "ended": _iso(state.ended),
        "error": state.error,
        "parameters": state.parameters,
        "link": place.server.link(state.run),
        "tasks": [
            {
                "name": task.name,
                "state": task.state,
                "started": _iso(task.started),
                "ended": _iso(task.ended),
                "error": task.error,
            }
            for task in state.tasks
        ],
    }


def _iso(moment: datetime.datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _clock(moment: datetime.datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _duration(task: TaskState) -> str:
    if task.started is None:
        return ""
    end = task.ended or datetime.datetime.now(datetime.UTC)
    return str(datetime.timedelta(seconds=int((end - task.started).total_seconds())))


COMMANDS = (status, logs, cancel_verb)
