"""``manyeyes status|logs|cancel``: what became of a run on a cluster."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

from manyeyes.cli.output import print_json, print_table

if TYPE_CHECKING:
    from manyeyes.config.profile import ClusterProfile
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow, RunState, TaskState
    from manyeyes.kubeflow.pipelines.pod_logs import Line, PodLogs
    from manyeyes.kubeflow.pipelines.submissions import Submission

LOG_SECONDS = 2.0
"""Between two looks at the pods while following."""


def run(arguments: argparse.Namespace) -> int:
    """Show, follow or stop a run."""
    place = locate(arguments)
    match arguments.verb:
        case "status":
            _status(place, as_json=arguments.json)
        case "logs":
            _logs(place, arguments)
        case "cancel":
            _cancel(place, as_json=arguments.json)
    return 0


@dataclass(frozen=True)
class Place:
    """A run and the server it is on."""

    profile: ClusterProfile
    server: Kubeflow
    submission: Submission


def locate(arguments: argparse.Namespace) -> Place:
    """Find the run that a command means; with ``--profile``, also one started elsewhere."""
    from manyeyes.kubeflow.pipelines import submissions, submit
    from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow

    if arguments.profile and arguments.run_or_recipe:
        reference = submit.profile_reference(arguments.profile)
        known = [one for one in submissions.submissions() if one.profile == reference]
        word: str = arguments.run_or_recipe
        mine = [one for one in known if word in (one.recipe, one.run, one.name)]
        found = mine[-1] if mine else submissions.Submission(word, reference, word, word, word, "")
    else:
        found = submissions.find(arguments.run_or_recipe)
        reference = arguments.profile or found.profile
    profile = submit.cluster_profile(reference)
    return Place(profile, Kubeflow(profile), found)


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


def _status(place: Place, *, as_json: bool) -> None:
    state = place.server.run(place.submission.run)
    if as_json:
        print_json(_as_json(place, state))
        return
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


def _logs(place: Place, arguments: argparse.Namespace) -> None:
    from manyeyes.kubeflow.pipelines.pod_logs import PodLogs, no_pods

    logs = PodLogs(place.profile, place.submission.run, arguments.step)
    while True:
        # in this order: what is printed before the end is read after the end was seen
        ended = place.server.run(place.submission.run).has_ended if arguments.follow else True
        _print_lines(logs, as_json=arguments.json)
        if ended:
            break
        time.sleep(LOG_SECONDS)
    if not logs.num_pods:
        raise no_pods(place.profile, place.submission.run)


def _print_lines(logs: PodLogs, *, as_json: bool) -> None:
    for line in logs.new_lines():
        text = json.dumps(asdict(line), ensure_ascii=False) if as_json else _log_line(line)
        print(text, flush=True)


def _log_line(line: Line) -> str:
    return f"{line.step} {line.pod[-6:]}  {line.text}"


def _cancel(place: Place, *, as_json: bool) -> None:
    from manyeyes.kubeflow.pipelines.submit import cancel

    state = cancel(place.server, place.submission.run)
    if as_json:
        print_json({"run": state.run, "name": state.name, "was": state.state})
    else:
        print(f"Run {state.run} was asked to stop; manyeyes resume will continue it.")


def _as_json(place: Place, state: RunState) -> JsonValue:
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
