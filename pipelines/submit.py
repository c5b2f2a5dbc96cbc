"""Submitting a recipe to a cluster, and what can be done with its run afterwards.

Experiment, pipeline and version are found or made; the version is named by the digest of the IR, so
submitting twice uploads once. Resuming is submitting the same version with the same parameters
again: every stage that finished comes out of the content store by its fingerprint, and a training
stage continues from its newest checkpoint.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact.provenance import revision
from manyeyes.config.profile import ClusterProfile, load_profile
from manyeyes.config.recipe import Recipe
from manyeyes.errors import Interrupted, ManyeyesError, UserError, unknown
from manyeyes.kubeflow.pipelines.compile import compile_for
from manyeyes.kubeflow.pipelines.kubeflow import Kubeflow, RunRequest, RunState, unique_name
from manyeyes.kubeflow.pipelines.secrets import refuse_secrets
from manyeyes.kubeflow.pipelines.submissions import Submission, record
from manyeyes.pipeline.fingerprint import run_key

POLL_SECONDS = 5.0


def cluster_profile(reference: str) -> ClusterProfile:
    """Read a profile that must be a cluster's.

    Raises:
        UserError: there is no such profile, it breaks the schema, or it is not a cluster's.
    """
    profile = load_profile(reference)
    if not isinstance(profile, ClusterProfile):
        raise UserError(
            f"Profile {profile.name} is this machine: use manyeyes run, or name a cluster's "
            "profile with --profile."
        )
    return profile


def submit(
    recipe: Recipe, profile: ClusterProfile, reference: str, given: Mapping[str, str]
) -> Submission:
    """Upload a recipe's pipeline unless it is there, and start a run of it.

    Args:
        recipe: the checked recipe.
        profile: where it shall run.
        reference: the profile as ``load_profile`` takes it, for the record.
        given: pipeline inputs by name, as text.

    Raises:
        UserError: an input is unknown or wrong, a secret would be sent, or the token is refused.
        ManyeyesError: the server does not answer or fails.
    """
    parameters = read_parameters(profile, given)
    compiled = compile_for(recipe, profile)
    server = Kubeflow(profile)
    experiment = server.experiment(profile.kubeflow.experiment)
    pipeline = server.pipeline(compiled.pipeline)
    facts = {"recipe": recipe.name, "run": run_key(recipe), "revision": revision()}
    tags = facts | {"profile": profile.name}
    version = server.version(pipeline, compiled, tags)
    request = RunRequest(
        experiment=experiment,
        pipeline=pipeline,
        version=version,
        name=unique_name(compiled.version),
        description=", ".join(f"{name} {value}" for name, value in tags.items()),
        parameters=parameters,
    )
    return _start(server, request, Submission(recipe.name, reference, "", "", compiled.version, ""))


def resume(server: Kubeflow, state: RunState, submission: Submission) -> Submission:
    """Start the version of an ended run again, with its parameters.

    Raises:
        UserError: the run still goes on, or it was started from no version.
    """
    if not state.has_ended:
        raise UserError(
            f"Run {state.run} still goes on ({state.state.lower()}): "
            "follow it with manyeyes status, or stop it with manyeyes cancel."
        )
    if not state.version:
        raise UserError(
            f"Run {state.run} was not started from a pipeline version: submit its recipe instead."
        )
    request = RunRequest(
        experiment=state.experiment,
        pipeline=state.pipeline,
        version=state.version,
        name=unique_name(submission.version),
        description=f"resumes {state.run}",
        parameters=state.parameters,
    )
    return _start(server, request, submission)


def cancel(server: Kubeflow, run: str) -> RunState:
    """Ask a run to stop and return it as it was.

    Raises:
        UserError: the run has ended, or the server knows none.
    """
    state = server.run(run)
    if state.has_ended:
        raise UserError(f"Run {run} has ended already ({state.state.lower()}).")
    server.terminate(run)
    return state


def wait(server: Kubeflow, run: str, tell: Callable[[RunState], None]) -> RunState:
    """Wait until a run ends, however long that takes.

    Args:
        server: where it runs.
        run: its id.
        tell: called with every state that was read.

    Raises:
        ManyeyesError: the run failed; the text names the failed steps.
        Interrupted: the run was cancelled.
    """
    while True:
        state = server.run(run)
        tell(state)
        if state.has_ended:
            break
        time.sleep(POLL_SECONDS)
    match state.state:
        case "FAILED":
            raise ManyeyesError(f"Run {run} failed: {failure(state)}")
        case "CANCELED":
            raise Interrupted(f"Run {run} was cancelled; manyeyes resume continues it.")
    return state


def failure(state: RunState) -> str:
    """Say in a sentence what failed in a run."""
    failed = [task for task in state.tasks if task.state == "FAILED"]
    told = [f"{task.name} ({task.error})" if task.error else task.name for task in failed]
    if told:
        return f"{', '.join(told)}; manyeyes logs shows what it said, manyeyes resume continues."
    return f"{state.error or 'KFP does not say why'}; manyeyes resume continues."


def read_parameters(profile: ClusterProfile, given: Mapping[str, str]) -> dict[str, JsonValue]:
    """Check what a user gives for the pipeline's inputs.

    Raises:
        UserError: an input is unknown, has the wrong shape, or holds a secret.
    """
    if not given:
        return {}
    from manyeyes.kubeflow.pipelines.cluster import Cluster

    kinds = {one.name: one.annotation for one in Cluster(profile, "").inputs()}
    for name in given:
        if name not in kinds:
            raise unknown("pipeline input", name, kinds)
    refuse_secrets(
        {f"the pipeline input {name}": text for name, text in given.items()},
        profile.kubeflow.token_variable,
    )
    return {name: _read_parameter(name, kinds[name], text) for name, text in given.items()}


def _read_parameter(name: str, kind: type, text: str) -> JsonValue:
    if kind is str:
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"Pipeline input {name} is a number of GPUs, such as 4; got {text!r}.")
        return text
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        value = None
    example = '{"pool": "a100"}' if kind is dict else '[{"key": "gpu", "operator": "Exists"}]'
    inner = list(value.values()) if isinstance(value, dict) else []
    if isinstance(value, list):
        inner = [word for one in value for word in (one.values() if isinstance(one, dict) else [1])]
    if not isinstance(value, kind) or not all(isinstance(word, str) for word in inner):
        raise UserError(f"Pipeline input {name} is JSON such as {example}; got {text!r}.")
    return value


def _start(server: Kubeflow, request: RunRequest, known: Submission) -> Submission:
    run = server.start(request)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    started = Submission(known.recipe, known.profile, run, request.name, known.version, now)
    record(started)
    return started


def profile_reference(word: str) -> str:
    """Return a profile's name, or its path as every working directory understands it."""
    path = Path(word)
    return str(path.absolute()) if path.suffix in {".yaml", ".yml"} else word
