"""The KFP API as our commands need it, through the real ``kfp.Client``.

The client gives address, authentication and namespace rules; the calls go through the services it
carries and not through its own methods, because those print links on standard output, know no time
limit, and cannot set a description or tags. Namespaces are sent in multi-user mode only: a
single-user server refuses them.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import JsonValue

from manyeyes.config.profile import ClusterProfile, KubeflowSection
from manyeyes.config.profile.sections import STEP_NAMES
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.kubeflow.pipelines.calls import TIMEOUT, Refused, Server, quiet_network, unexpected
from manyeyes.kubeflow.pipelines.compile import Compiled
from manyeyes.runtime.locks import temporary

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
"""States that a run does not leave."""
_EQUALS = 1
_NO_TIME = 1970
"""Year of the times that KFP gives for what has not happened."""


@dataclass(frozen=True)
class TaskState:
    """One task of a run."""

    name: str
    """The step; of several tasks of one step, with a number."""
    state: str
    started: datetime.datetime | None
    ended: datetime.datetime | None
    error: str = ""


@dataclass(frozen=True)
class RunState:
    """One run as KFP tells it."""

    run: str
    name: str
    state: str
    created: datetime.datetime | None
    ended: datetime.datetime | None
    error: str
    tasks: tuple[TaskState, ...]
    experiment: str
    pipeline: str
    version: str
    parameters: dict[str, JsonValue]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


@dataclass(frozen=True)
class RunRequest:
    """What shall run."""

    experiment: str
    pipeline: str
    version: str
    name: str
    """Unique, so that a run whose creation was not confirmed can be found."""
    description: str
    parameters: Mapping[str, JsonValue]


class Kubeflow:
    """One KFP server."""

    def __init__(self, profile: ClusterProfile) -> None:
        section = profile.kubeflow
        self.section = section
        self.server = Server("The KFP API", section.endpoint, section.token_variable)
        self._client = _connect(section, _token(profile))

    @cached_property
    def _namespace(self) -> str | None:
        """The namespace to send, None for a server with a single user."""
        health = self.server.ask(
            lambda: self._client.healthzs.healthz_service_get_healthz(_request_timeout=TIMEOUT)
        )
        return self.section.namespace if health.multi_user else None

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made if there is none of the name."""
        service, models = self._client.experiments, self._client.api_models
        namespace = self._namespace

        def find() -> str | None:
            answer = service.experiment_service_list_experiments(
                **_drop_none(namespace=namespace), **_named(name)
            )
            return _only([one.experiment_id for one in answer.experiments or []])

        def make() -> str:
            body = models.V2beta1Experiment(display_name=name, namespace=namespace)
            made = service.experiment_service_create_experiment(body, _request_timeout=TIMEOUT)
            return str(made.experiment_id)

        return self._find_or_make(f"the experiment {name}", find, make)

    def pipeline(self, name: str) -> str:
        """Return the id of a pipeline, which is made if there is none of the name."""
        service, models = self._client.pipelines, self._client.api_models
        namespace = self._namespace

        def find() -> str | None:
            answer = service.pipeline_service_list_pipelines(
                **_drop_none(namespace=namespace), **_named(name)
            )
            return _only([one.pipeline_id for one in answer.pipelines or []])

        def make() -> str:
            body = models.V2beta1Pipeline(name=name, display_name=name, namespace=namespace)
            made = service.pipeline_service_create_pipeline(body, _request_timeout=TIMEOUT)
            return str(made.pipeline_id)

        return self._find_or_make(f"the pipeline {name}", find, make)

    def version(self, pipeline: str, compiled: Compiled, tags: Mapping[str, str]) -> str:
        """Return the id of a compiled pipeline's version, which is uploaded if it is not there.

        Equal names mean equal content, so a version that is there already is adopted.
        """
        service = self._client.pipelines

        def find() -> str | None:
            answer = service.pipeline_service_list_pipeline_versions(
                pipeline, **_named(compiled.version)
            )
            return _only([one.pipeline_version_id for one in answer.pipeline_versions or []])

        def make() -> str:
            with temporary() as folder:
                path = folder / "pipeline.yaml"
                path.write_text(compiled.text, encoding="utf-8")
                made = self._client.pipeline_uploads.upload_pipeline_version(
                    str(path),
                    name=compiled.version,
                    display_name=compiled.version,
                    pipelineid=pipeline,
                    description=f"sha256:{compiled.digest}",
                    tags=json.dumps(dict(tags), sort_keys=True),
                    _request_timeout=TIMEOUT,
                )
            return str(made.pipeline_version_id)

        return self._find_or_make(f"the pipeline version {compiled.version}", find, make)

    def start(self, request: RunRequest) -> str:
        """Start a run and return its id; a lost answer does not start a second one."""
        service, models = self._client.runs, self._client.api_models
        body = models.V2beta1Run(
            experiment_id=request.experiment,
            display_name=request.name,
            description=request.description,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(
                pipeline_id=request.pipeline, pipeline_version_id=request.version
            ),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(request.parameters)),
            service_account=self.section.service_account,
        )

        def find() -> str | None:
            answer = service.run_service_list_runs(
                experiment_id=request.experiment, **_named(request.name)
            )
            return _only([one.run_id for one in answer.runs or []])

        def make() -> str:
            made = service.run_service_create_run(body, _request_timeout=TIMEOUT)
            return str(made.run_id)

        return self._find_or_make(f"the run {request.name}", find, make)

    def run(self, run: str) -> RunState:
        """Return a run with its tasks.

        Raises:
            UserError: the server knows no such run.
        """
        try:
            found = self.server.ask(
                lambda: self._client.runs.run_service_get_run(run, _request_timeout=TIMEOUT)
            )
        except Refused as error:
            raise self._no_run(run, error) from None
        return _run_state(found)

    def terminate(self, run: str) -> None:
        """Ask a run to stop.

        Raises:
            UserError: the server knows no such run.
        """
        try:
            self.server.ask(
                lambda: self._client.runs.run_service_terminate_run(run, _request_timeout=TIMEOUT)
            )
        except Refused as error:
            raise self._no_run(run, error) from None

    def link(self, run: str) -> str:
        """Return the address of a run's page."""
        return f"{self.section.endpoint.rstrip('/')}/#/runs/details/{run}"

    def _find_or_make(self, what: str, find: Any, make: Any) -> str:  # noqa: ANN401  (str callables)
        try:
            try:
                return str(self.server.settle(find, make))
            except Refused as error:
                if error.status != 409:
                    raise
                # someone else made it between our look and our request: look again
                found = self.server.ask(find)
                if found is None:
                    raise
                return str(found)
        except Refused as error:
            raise unexpected(self.server, what, error) from None

    def _no_run(self, run: str, error: Refused) -> ManyeyesError:
        if error.status != 404:
            return unexpected(self.server, f"to tell of the run {run}", error)
        return UserError(
            f"{self.server.name} at {self.server.address} knows no run {run}: it was deleted, or "
            "it belongs to another cluster; name its profile with --profile."
        )


def unique_name(version: str) -> str:
    """Return a run's name: its version and the time, with four random digits."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{version} {now:%Y-%m-%d %H:%M:%S} {secrets.token_hex(2)}"


def _token(profile: ClusterProfile) -> str | None:
    variable = profile.kubeflow.token_variable
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            f"Profile {profile.name} takes the token for KFP from ${variable}, which is not set."
        )
    return token


def _connect(section: KubeflowSection, token: str | None) -> Any:  # noqa: ANN401  (kfp ships no types)
    import kfp

    quiet_network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # greets with the versions it works with
        # With any namespace but its default the constructor asks the server nothing; otherwise it
        # would ask five times, five seconds apart, and log a traceback each time.
        return kfp.Client(host=section.endpoint, namespace="-", existing_token=token)


def _named(name: str) -> dict[str, Any]:
    """Return the arguments of a list request for the things of one name."""
    predicate = {"operation": _EQUALS, "key": "display_name", "stringValue": name}
    return {"filter": json.dumps({"predicates": [predicate]}), "_request_timeout": TIMEOUT}


def _drop_none(**arguments: str | None) -> dict[str, str]:
    return {name: value for name, value in arguments.items() if value is not None}


def _only(found: list[Any]) -> str | None:
    return str(found[0]) if found else None


def _run_state(found: Any) -> RunState:  # noqa: ANN401  (a generated model)
    reference = found.pipeline_version_reference
    parameters = found.runtime_config.parameters if found.runtime_config else None
    return RunState(
        run=str(found.run_id),
        name=str(found.display_name),
        state=str(found.state or "PENDING"),
        created=_time(found.created_at),
        ended=_time(found.finished_at),
        error=_error(found),
        tasks=_tasks(found.run_details.task_details if found.run_details else None),
        experiment=str(found.experiment_id),
        pipeline=str(reference.pipeline_id) if reference else "",
        version=str(reference.pipeline_version_id) if reference else "",
        parameters=dict(parameters or {}),
    )


def _tasks(details: Any) -> tuple[TaskState, ...]:  # noqa: ANN401  (generated models)
    """Return our steps among a run's tasks, which hold KFP's drivers and graphs too."""
    ours = [one for one in details or [] if one.display_name in STEP_NAMES]
    latest = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    ours.sort(key=lambda one: (_time(one.start_time) or latest, str(one.task_id)))
    names = [one.display_name for one in ours]
    numbers: dict[str, int] = {}
    found = []
    for one in ours:
        numbers[one.display_name] = numbers.get(one.display_name, 0) + 1
        number = f" {numbers[one.display_name]}" if names.count(one.display_name) > 1 else ""
        found.append(
            TaskState(
                name=f"{one.display_name}{number}",
                state=str(one.state or "PENDING"),
                started=_time(one.start_time),
                ended=_time(one.end_time),
                error=_error(one),
            )
        )
    return tuple(found)


def _time(value: datetime.datetime | None) -> datetime.datetime | None:
    return None if value is None or value.year == _NO_TIME else value


def _error(found: Any) -> str:  # noqa: ANN401  (a generated model)
    return str(found.error.message or "") if found.error else ""
