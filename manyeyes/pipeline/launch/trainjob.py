"""Running one stage as a TrainJob: create or adopt, follow, start again, clean up.

The name is a function of run, stage and fingerprint, so that a launcher that was killed finds its
job again instead of making a second one; a label with the fingerprint says whose job it is. One
thread, one loop, one look after another; every state has its own time limit, and the whole talks to
one clock. The result is not read from the job: it lies in the store, under its fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.launch.api import Api, UnreachableError
from manyeyes.pipeline.launch.attempt import Attempt
from manyeyes.pipeline.launch.cluster import Cluster, Json
from manyeyes.pipeline.launch.failure import RESTARTED, Failure
from manyeyes.pipeline.launch.manifest import (
    ATTEMPT,
    FINGERPRINT_LABEL,
    SUSPENDED,
    job_name,
    label_of,
    train_job,
)
from manyeyes.pipeline.launch.objects import TrainJobView
from manyeyes.pipeline.launch.redact import Voice
from manyeyes.pipeline.launch.reference import StageReference
from manyeyes.pipeline.launch.settings import TrainJob
from manyeyes.runtime.kubernetes import Owner
from manyeyes.runtime.retry import RetryPolicy

if TYPE_CHECKING:
    from kubernetes.client.rest import ApiException

LOOK_SECONDS = 10.0
"""Between two looks whether a deleted job is gone."""
GONE_SECONDS = 600.0
"""How long a deleted job may take to be gone."""
PAUSES = RetryPolicy(first=30.0, longest=600.0)
"""Between attempts: a broken rack needs time to be taken out."""
TERMINATE_SECONDS = 15.0
"""Kubernetes kills the launching pod 30 s after SIGTERM."""


@dataclass
class TrainJobLauncher:
    """Brings one stage's result to the store by a TrainJob."""

    settings: TrainJob
    call: StageReference
    api: Api
    voice: Voice
    pod_name: str | None = None
    """The pod of this process, whose owner shall own the job."""

    def __post_init__(self) -> None:
        self.cluster = Cluster(self.api)
        self.name = job_name(self.call.run, self.call.stage, self.call.key)
        self.title = f"TrainJob {self.settings.namespace}/{self.name}"
        self._uid: str | None = None
        self._kueue = self.settings.scheduling.kind == "kueue"

    def run(self) -> None:
        """Return when the job is done and deleted.

        Raises:
            UserError: the cluster is not as the profile says, or the training's input is wrong.
            ManyeyesError: it failed, or a time limit passed; the job is deleted.
            Interrupted: this process was told to stop, or somebody else deleted the job.
        """
        from kubernetes.client.rest import ApiException

        try:
            self._run()
        except Interrupted:
            self._terminate()
            raise
        except ApiException as error:
            raise self._refusal(error) from None

    def _run(self) -> None:
        self._check_runtime()
        owner = self._owner()
        attempt = 1
        while True:
            job, attempt = self._start(attempt, owner)
            self._uid = job.metadata.uid
            try:
                failure = self._follow(job)
            except (Interrupted, UnreachableError):
                raise
            except ManyeyesError:
                self._delete(job)
                raise
            if failure is None:
                self._delete_done(job)
                return
            self._delete(job)
            self.voice.say(failure.sentence)
            if failure.kind not in RESTARTED or attempt > self.settings.restarts:
                raise failure.error(restarts=attempt - 1)
            pause = PAUSES.delay(attempt)
            self.voice.say(
                f"starting it again in {pause:.0f} s ({attempt} of {self.settings.restarts})"
            )
            self.api.clock.sleep(pause)
            attempt += 1

    def _follow(self, job: TrainJobView) -> Failure | None:
        from kubernetes.client.rest import ApiException

        try:
            return Attempt(self.settings, self.cluster, job, self.title, self.voice).follow()
        except ApiException as error:
            raise self._refusal(error) from None

    def _refusal(self, error: ApiException) -> ManyeyesError:
        return ManyeyesError(
            f"The Kubernetes API refused a request about {self.title}: {_reason(error)}"
        )

    def _check_runtime(self) -> None:
        """Refuse before anything is made.

        Raises:
            UserError: there is no such runtime, or it does not schedule as the profile says.
        """
        kind, name = self.settings.scheduling.kind, self.settings.runtime
        runtime = self.cluster.runtime(name)
        if runtime is None:
            raise UserError(
                f"Namespace {self.settings.namespace} has no TrainingRuntime {name!r}: apply "
                "infra/kubernetes, or name another one in train_jobs.runtime of the profile."
            )
        policy = runtime.spec.pod_group_policy
        if kind in ("volcano", "coscheduling") and kind not in policy:
            raise UserError(
                f"The profile schedules with {kind}, but the TrainingRuntime {name!r} has no "
                f"podGroupPolicy.{kind}: without it pods would start one by one; add it there."
            )

    def _owner(self) -> Owner | None:
        """Return the workflow of this pod, which outlives the pod and goes with the run."""
        pod = self.cluster.own_pod(self.pod_name) if self.pod_name else None
        owners = pod.metadata.owner_references if pod else ()
        return next((owner for owner in owners if owner.kind == "Workflow"), None)

    def _start(self, attempt: int, owner: Owner | None) -> tuple[TrainJobView, int]:
        """Create the job, or adopt the one that an earlier launcher made.

        Returns:
            The job and the number of its attempt.
        """
        manifest = train_job(self.settings, self.call, attempt=attempt, owner=owner)
        deadline = self.api.clock.now() + GONE_SECONDS
        while self.api.clock.now() < deadline:
            made = self._create(manifest)
            if made is not None:
                self.voice.say(f"{self.title} created, attempt {attempt}")
                return made, attempt
            present = self.cluster.job(self.name)
            if present is not None and present.metadata.deletion_timestamp is None:
                return self._adopt(present)
            self.api.clock.sleep(LOOK_SECONDS)
        raise ManyeyesError(
            f"{self.title} is being deleted for {GONE_SECONDS / 60:.0f} minutes and does not go; "
            "look at its finalizers and pods."
        )

    def _create(self, manifest: Json) -> TrainJobView | None:
        from kubernetes.client.rest import ApiException

        try:
            return self.cluster.create_job(manifest)
        except ApiException as error:
            raise UserError(f"The cluster refused {self.title}: {_reason(error)}") from None

    def _adopt(self, job: TrainJobView) -> tuple[TrainJobView, int]:
        found = job.metadata.labels.get(FINGERPRINT_LABEL, "none")
        if found != label_of(self.call.key):
            raise UserError(
                f"{self.title} exists already and is not ours: its label {FINGERPRINT_LABEL} is "
                f"{found!r}. Delete it or rename it, and run the same command again."
            )
        attempt = int(job.metadata.annotations.get(ATTEMPT, "1"))
        self.voice.say(f"{self.title} exists already, attempt {attempt}: taking it up")
        if SUSPENDED in job.metadata.annotations:
            self._resume(job)
        return job, attempt

    def _resume(self, job: TrainJobView) -> None:
        """Let a job go on that a stopped launcher suspended."""
        forget: Json = {"metadata": {"annotations": {SUSPENDED: None}}}
        workload = self.cluster.workload(job) if self._kueue else None
        if workload is not None:
            self.cluster.activate_workload(workload.metadata.name, active=True)
        elif not self._kueue:
            forget["spec"] = {"suspend": False}
        self.cluster.patch_job(self.name, forget)
        self.voice.say("resumed what the last launcher had suspended")

    def _delete(self, job: TrainJobView) -> None:
        self.cluster.delete_job(job)
        self._uid = None
        self.voice.say(f"{self.title} deleted")

    def _delete_done(self, job: TrainJobView) -> None:
        """Delete a job whose result is in the store; that is worth no failure."""
        try:
            self._delete(job)
        except UnreachableError as error:
            self.voice.say(f"{self.title} is done but could not be deleted: {error}")

    def _terminate(self) -> None:
        """Do with the job what the profile says, quickly; it may be gone, or not ours."""
        from kubernetes.client.rest import ApiException

        self.api.policy = replace(self.api.policy, seconds=TERMINATE_SECONDS)
        try:
            job = self.cluster.job(self.name)
            ours = job is not None and job.metadata.labels.get(FINGERPRINT_LABEL) == label_of(
                self.call.key
            )
            if job is None or not ours or self._uid not in (None, job.metadata.uid):
                return
            ended = job.condition("Complete") or job.condition("Failed")
            if self.settings.on_terminate == "delete" or ended:
                self._delete(job)
            else:
                self._suspend(job)
        except (ManyeyesError, ApiException) as error:
            self.voice.say(f"{self.title} could not be stopped: {error}")

    def _suspend(self, job: TrainJobView) -> None:
        """Stop the pods and keep the job. With Kueue, Kueue must do it, or it resumes the job."""
        patch: Json = {"metadata": {"annotations": {SUSPENDED: "true"}}}
        workload = self.cluster.workload(job) if self._kueue else None
        if workload is None:
            patch["spec"] = {"suspend": True}
        self.cluster.patch_job(self.name, patch)
        if workload is not None:
            self.cluster.activate_workload(workload.metadata.name, active=False)
        self.voice.say(f"{self.title} suspended; run the same command again to continue")


def _reason(error: ApiException) -> str:
    """Return the message in the API's answer."""
    try:
        said = str(json.loads(error.body or "{}").get("message", ""))
    except ValueError:
        said = ""
    return said or f"{error.status} {error.reason}"
