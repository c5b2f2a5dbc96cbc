"""Where the tasks run on a cluster: a profile, said in the words of ``kfp.kubernetes``.

Everything here hangs on tasks that ``manyeyes.kubeflow.pipelines.training`` has made; it adds no
task and no edge, so the graph of a cluster stays that of a laptop. What an operator may want to
change from run to run (the nodes of a pool, their tolerations, the GPUs of a step) is a pipeline
input with the profile's value as its default; what KFP cannot take as an input is compiled in. GPU
counts are strings: KFP's driver reads the text of the value, and of a number there is none.

Secrets travel by name only. Bulk data and caches lie on two volumes that every pod gets, because
the containers' root may be read-only: ``cache`` holds what steps can share, ``scratch`` is the
pod's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, TypeAlias

from kfp import kubernetes

from manyeyes import steps
from manyeyes.config.profile import ClusterProfile, Pool, storage_environment
from manyeyes.config.profile.sections import CONTROL_STEPS, TRAINING_STEPS
from manyeyes.config.profile.words import cores
from manyeyes.pipeline.launch.settings import (
    LAUNCH,
    InProcess,
    Mount,
    SecretReference,
    launch_settings,
)
from manyeyes.runtime.home import HOME, RUN

S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
LABEL_PROJECT = "app.kubernetes.io/part-of"
LABEL_STEP = "app.kubernetes.io/component"
PROJECT = "manyeyes"

SHARED_MEMORY = "/dev/shm"  # noqa: S108  (what it is for: processes of one pod share it)
BACKOFF_FIRST = "60s"
BACKOFF_FACTOR = 2.0
BACKOFF_LONGEST = "3600s"
"""Waits between the attempts of a task: a lost node may need minutes to be replaced."""

Task: TypeAlias = Any
Channel: TypeAlias = Any
"""KFP's objects; kfp ships no types."""


@dataclass(frozen=True)
class Cluster:
    """A profile, and the run whose tasks it places."""

    profile: ClusterProfile
    run: str
    """Name under which the tasks record what they do."""

    def launches(self, name: str) -> bool:
        """Say whether a task only launches a training job on several nodes."""
        jobs = self.profile.train_jobs
        return jobs is not None and name in jobs.stages

    def image(self, name: str) -> str:
        """Return the image of a task: the trainer's where the step table says torch."""
        images = self.profile.images
        torch = name not in CONTROL_STEPS and steps.step(name).torch
        return images.trainer if torch and not self.launches(name) else images.control

    def inputs(self) -> list[Parameter]:
        """Return the pipeline's inputs, each with the profile's value as its default."""
        found = []
        used = {placement.pool for placement in self.profile.steps.values()}
        for name, pool in self.profile.pools.items():
            if name in used:
                found.append(_input(nodes_input(name), dict, dict(pool.node_selector)))
                found.append(_input(tolerations_input(name), list, _tolerations(pool)))
        for name, placement in self.profile.steps.items():
            if placement.gpus:
                found.append(_input(gpus_input(name), str, str(placement.gpus)))
        return found

    def place(self, task: Task, name: str, inputs: Mapping[str, Channel]) -> Task:
        """Give a task its nodes, resources, volumes, secrets, environment and patience.

        Args:
            task: a task of the pipeline.
            name: its step.
            inputs: the pipeline's inputs by name, as ``inputs`` declared them.
        """
        self._place_on_nodes(task, name, inputs)
        self._mount(task, name)
        self._set_environment(task, name)
        self._add_secrets(task, name)
        images, placement = self.profile.images, self.profile.steps[name]
        kubernetes.set_image_pull_policy(task, images.pull_policy)
        if images.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(images.pull_secrets))
        kubernetes.set_security_context(
            task,
            run_as_user=images.run_as_user,
            run_as_group=images.run_as_group,
            run_as_non_root=True,
        )
        kubernetes.add_pod_label(task, LABEL_PROJECT, PROJECT)
        kubernetes.add_pod_label(task, LABEL_STEP, name)
        kubernetes.set_timeout(task, placement.timeout_minutes * 60)
        if placement.retries:
            task.set_retry(
                num_retries=placement.retries,
                backoff_duration=BACKOFF_FIRST,
                backoff_factor=BACKOFF_FACTOR,
                backoff_max_duration=BACKOFF_LONGEST,
            )
        return task

    def _place_on_nodes(self, task: Task, name: str, inputs: Mapping[str, Channel]) -> None:
        placement = self.profile.steps[name]
        kubernetes.add_node_selector_json(task, inputs[nodes_input(placement.pool)])
        kubernetes.add_toleration_json(task, inputs[tolerations_input(placement.pool)])
        task.set_cpu_request(placement.cpu).set_cpu_limit(placement.cpu)
        task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
        if placement.gpus:
            gpus = inputs[gpus_input(name)]
            # Without this the compiler refers to an input that it does not hand into the exit
            # handler's graph (kfp 2.17.0); the other settings register their inputs themselves.
            task.register_pipeline_channels([gpus])
            task.set_accelerator_type(self.profile.pools[placement.pool].gpu)
            task.set_accelerator_limit(gpus)

    def _mount(self, task: Task, name: str) -> None:
        storage, placement = self.profile.storage, self.profile.steps[name]
        if storage.claim:
            kubernetes.mount_pvc(task, storage.claim, storage.cache_path)
        else:
            kubernetes.empty_dir_mount(task, "cache", storage.cache_path)
        kubernetes.empty_dir_mount(
            task, "scratch", storage.scratch_path, size_limit=storage.scratch_size
        )
        if placement.shared_memory:
            kubernetes.empty_dir_mount(
                task, "shm", SHARED_MEMORY, medium="Memory", size_limit=placement.shared_memory
            )

    def _set_environment(self, task: Task, name: str) -> None:
        for variable, value in self.environment(name).items():
            task.set_env_variable(variable, value)
        if name in TRAINING_STEPS:
            self._set_launch(task, name)

    def _set_launch(self, task: Task, name: str) -> None:
        """Tell a training step how its stage is started: here, by torchrun, or as a TrainJob."""
        storage = self.profile.storage
        references = [
            SecretReference(variable=variable, secret=secret, key=key)
            for secret, variables in self.secrets(name).items()
            for key, variable in variables.items()
        ]
        launch = launch_settings(
            self.profile,
            name,
            # Threads are of the launching pod's size; torchrun shares a node's cores itself.
            environment={
                key: value
                for key, value in self.environment(name).items()
                if key != "OMP_NUM_THREADS"
            },
            secrets=references,
            mounts=[
                Mount(name="cache", path=storage.cache_path, claim=storage.claim),
                Mount(name="scratch", path=storage.scratch_path, size=storage.scratch_size),
            ],
        )
        if not isinstance(launch, InProcess):
            task.set_env_variable(LAUNCH, launch.model_dump_json())

    def environment(self, name: str) -> dict[str, str]:
        """Return a task's environment variables, which never hold a secret."""
        storage, placement = self.profile.storage, self.profile.steps[name]
        threads = max(1, int(cores(placement.cpu)) // max(1, placement.gpus))
        return {
            RUN: self.run,
            HOME: f"{storage.scratch_path}/manyeyes",
            "HOME": storage.scratch_path,
            "TMPDIR": storage.scratch_path,
            "XDG_CACHE_HOME": f"{storage.scratch_path}/.cache",
            "HF_HOME": f"{storage.cache_path}/huggingface",
            "OMP_NUM_THREADS": str(threads),
            "MLFLOW_TRACKING_URI": self.profile.tracking.uri,
            **storage_environment(self.profile),
        }

    def _add_secrets(self, task: Task, name: str) -> None:
        for secret, variables in self.secrets(name).items():
            kubernetes.use_secret_as_env(task, secret, variables)

    def secrets(self, name: str) -> dict[str, dict[str, str]]:
        """Return a task's secrets: name of the secret, then its key to environment variable."""
        if name == "experts":
            return {}  # it computes on its parameters alone
        storage, tracking = self.profile.storage, self.profile.tracking
        given = [(storage.secret, key, key) for key in S3_VARIABLES]
        given += [(tracking.secret, key, key) for key in MLFLOW_VARIABLES]
        if name not in CONTROL_STEPS:
            given += [(one.secret, one.key, one.variable) for one in self.profile.secrets]
        found: dict[str, dict[str, str]] = {}
        for secret, key, variable in given:
            if secret is not None:
                found.setdefault(secret, {})[key] = variable
        return found


def nodes_input(pool: str) -> str:
    """Name the pipeline input with a pool's node selector."""
    return f"{pool.replace('-', '_')}_nodes"


def tolerations_input(pool: str) -> str:
    """Name the pipeline input with a pool's tolerations."""
    return f"{pool.replace('-', '_')}_tolerations"


def gpus_input(step: str) -> str:
    """Name the pipeline input with the number of a step's GPUs."""
    return f"{step}_gpus"


def _input(name: str, kind: type, default: object) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _tolerations(pool: Pool) -> list[dict[str, str]]:
    return [toleration.model_dump(exclude_none=True) for toleration in pool.tolerations]
