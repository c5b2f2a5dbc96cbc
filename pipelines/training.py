"""The training pipeline: one definition for the laptop and for the cluster.

The step functions are plain; they are decorated here, late, as lightweight components for kfp.local
and as Containerized Python Components on a digest-pinned image for a cluster. Constants of the
recipe are compiled in as JSON text, because KFP turns integers inside mappings into floats. What a
cluster needs besides hangs on the finished tasks (``manyeyes.kubeflow.pipelines.cluster``). Every
step gets a fingerprint of its code, its slice and its inputs' content, so that KFP's cache, which
hashes the names of artifacts only, is sound. Avoided on purpose, for kfp.local would run them
wrongly: output parameters read inside a loop, conditions, artifacts into nested pipelines
(``manyeyes.kubeflow.pipelines.lint`` looks for them). No ``annotations`` from ``__future__`` here:
kfp reads them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Signature
from typing import Any, TypeAlias

from kfp import dsl

from manyeyes import steps
from manyeyes.config.profile import ClusterProfile
from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import UserError
from manyeyes.kubeflow.components.eval.component import eval as evaluate
from manyeyes.kubeflow.components.experts.component import experts
from manyeyes.kubeflow.components.finalize.component import finalize
from manyeyes.kubeflow.components.prealign.component import prealign
from manyeyes.kubeflow.components.prepare.component import prepare
from manyeyes.kubeflow.components.pretrain.component import pretrain
from manyeyes.kubeflow.components.register.component import register
from manyeyes.kubeflow.components.sft.component import sft
from manyeyes.kubeflow.components.validate.component import validate
from manyeyes.kubeflow.pipelines.cluster import Cluster
from manyeyes.pipeline.fingerprint import fingerprint_text, is_known, run_key
from manyeyes.pipeline.outside import outside_elsewhere, outside_of, outside_text
from manyeyes.pipeline.worker import EXPERTS, protect, reveal
from manyeyes.runtime.home import WHOLE_RECIPE

StepFunction = Callable[..., object]

COMPONENTS: Mapping[str, StepFunction] = {
    "prepare": prepare,
    "validate": validate,
    "experts": experts,
    "prealign": prealign,
    "pretrain": pretrain,
    "sft": sft,
    "eval": evaluate,
    "register": register,
    "finalize": finalize,
}
"""Every step function of the pipeline. All but ``experts`` and ``finalize`` are stages."""

PIPELINE = "manyeyes-training"
"""Scope of KFP's cache, so one name for all recipes: they share stages."""
LOCAL_IMAGE = "python-of-this-environment"
"""Image name of lightweight components; kfp.local warns about names without ``python``."""
LOOP_PARALLELISM = 2
"""Iterations kfp.local runs at a time, its fixed cap; a cluster runs all that fit."""
UNCACHED = ("register", "finalize")
"""Steps whose effect lies outside their artifacts: a registry entry may have been undone."""
MAX_PARAMETER_BYTES = 100_000
"""Parameters travel in one command line argument, which Linux limits to 128 KiB."""

Pipeline: TypeAlias = Any
Component: TypeAlias = Any
Task: TypeAlias = Any
Output: TypeAlias = Any
"""KFP's objects; kfp ships no types."""


@dataclass(frozen=True)
class Threads:
    """OpenMP threads for the steps on this machine."""

    serial: int
    """For a step that runs alone."""
    parallel: int
    """For each of the loop iterations that run at the same time."""

    @staticmethod
    def share(cores: int, num_experts: int) -> "Threads":
        """Share the cores: two OpenMP processes on all cores run ten times slower than one."""
        concurrent = max(1, min(LOOP_PARALLELISM, num_experts))
        return Threads(serial=cores, parallel=max(1, cores // concurrent))


def build(
    recipe: Recipe, profile: ClusterProfile | None = None, threads: Threads | None = None
) -> Pipeline:
    """Build the pipeline of one recipe.

    Args:
        recipe: the checked recipe; its slices become parameters of the steps.
        profile: the cluster it shall run on; None builds it for kfp.local.
        threads: OpenMP threads of the steps, for kfp.local.

    Raises:
        UserError: the recipe is too long for KFP.
    """
    cluster = Cluster(profile, run_key(recipe)) if profile else None
    graph = Graph.of(recipe, decorated(cluster), threads, cluster)
    return dsl.pipeline(name=PIPELINE)(graph.definition())


def decorated(cluster: Cluster | None) -> dict[str, Component]:
    """Make components of the step functions: on a cluster's images, or for kfp.local."""
    return {
        name: _decorate(function, cluster.image(name) if cluster else None)
        for name, function in COMPONENTS.items()
    }


@dataclass(frozen=True)
class Made:
    """Artifacts that tasks will have made, by role, and the outputs that hold their digests."""

    artifacts: Mapping[str, Output]
    digests: Mapping[str, Output]

    def plus(self, role: str, task: Task, output: str) -> "Made":
        """Add what a task makes."""
        return Made(
            {**self.artifacts, role: task.outputs[output]},
            {**self.digests, role: task.outputs["Output"]},
        )

    def only(self, *roles: str) -> "Made":
        """Return the artifacts with these roles."""
        return Made(
            {role: self.artifacts[role] for role in roles},
            {role: self.digests[role] for role in roles},
        )


@dataclass(frozen=True)
class Graph:
    """Adds tasks to a pipeline; everything its body needs."""

    components: Mapping[str, Component]
    texts: Mapping[str, str]
    """Stage to its protected slice."""
    plan: list[dict[str, str]]
    threads: Threads | None
    cluster: Cluster | None
    settings: dict[str, Output] = field(default_factory=dict)
    """The pipeline's inputs, by name; filled when kfp calls the body."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables of every task."""
    recipe: str = ""
    """The whole recipe, protected, for the trainings. In their environment, because a parameter
    would be part of KFP's key: another metric of ``eval`` must not train anything again."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        components: Mapping[str, Component],
        threads: Threads | None = None,
        cluster: Cluster | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Graph":
        """Compile a recipe's slices in.

        Raises:
            UserError: the recipe is too long for KFP.
        """
        plan, texts = _experts_plan(recipe, elsewhere=cluster is not None), _step_texts(recipe)
        whole = protect(recipe.model_dump_json(by_alias=True, exclude_none=True))
        _check_length([*texts.values(), str(plan), whole], recipe.name)
        return cls(
            components,
            texts,
            plan,
            threads,
            cluster,
            environment=environment or {},
            recipe=whole,
        )

    def definition(self) -> Callable[..., None]:
        """Return the body of the pipeline: the graph, in the order of the step table."""
        declared = self.cluster.inputs() if self.cluster else []

        def training(*given: Output) -> None:
            self.settings.update(zip((one.name for one in declared), given, strict=True))
            with dsl.ExitHandler(self.finalize()):
                data = self.data()
                scored = self.model(data, self.align(data))
                self.stage("register", scored.only("checkpoint", "report"))

        # kfp reads the pipeline's inputs from here; which there are depends on the profile
        training.__signature__ = Signature(declared)  # type: ignore[attr-defined]
        return training

    def finalize(self) -> Task:
        """Add the exit handler's task."""
        return self.serial("finalize", self.components["finalize"]())

    def data(self) -> Made:
        """Add the stages that make and check the dataset."""
        made = Made({}, {})
        made = made.plus("dataset", self.stage("prepare", made), "dataset")
        return made.plus("validation", self.stage("validate", made), "validation")

    def model(self, data: Made, aligned: Task | None) -> Made:
        """Add the stages that train a model and score it."""
        joined = self.pretrain(data, aligned)
        tuned = self.stage("sft", data.plus("checkpoint", joined, "checkpoint"))
        made = data.plus("checkpoint", tuned, "model")
        return made.plus("report", self.stage("eval", made), "report")

    def stage(self, name: str, made: Made, **more: Output) -> Task:
        """Add one stage.

        Args:
            name: the stage.
            made: its inputs, whose digests are part of its fingerprint.
            more: further parameters of the step.
        """
        text = self.texts[name]
        key = fingerprint(name, text, made.digests, elsewhere=self.cluster is not None)
        task = self.components[name](**made.artifacts, **more, recipe_slice=text, fingerprint=key)
        return self.serial(name, task, known=is_known(key))

    def pretrain(self, data: Made, aligned: Task | None) -> Task:
        """Add pretrain, on the experts that the loop of ``align`` collects, if there is one."""
        if aligned is None:
            return self.stage("pretrain", data)
        collected = Made(
            {**data.artifacts, "experts": dsl.Collected(aligned.outputs["checkpoint"])},
            {**data.digests, "expert.*": EXPERTS},
        )
        digests = dsl.Collected(aligned.outputs["Output"])
        return self.stage("pretrain", collected, expert_digests=digests)

    def align(self, data: Made) -> Task | None:
        """Add the loop over the experts; its body reads items and outer artifacts only.

        No empty loop where the recipe pre-aligns none: kfp.local cannot collect from one.
        """
        if not self.plan:
            return None
        listed = self.components["experts"](plan=self.plan, **data.digests)
        with dsl.ParallelFor(self.serial("experts", listed).output) as item:
            task = self.components["prealign"](
                **data.artifacts,
                expert=item.expert,
                recipe_slice=item.recipe_slice,
                fingerprint=item.fingerprint,
            )
        threads = self.threads.parallel if self.threads else None
        known = all(is_known(entry["fingerprint"]) for entry in self.plan)
        return self.place("prealign", task, threads, known=known)

    def serial(self, name: str, task: Task, *, known: bool = True) -> Task:
        """Finish a task that runs alone: on a laptop it gets all cores."""
        threads = self.threads.serial if self.threads else None
        return self.place(name, task, threads, known=known)

    def place(self, name: str, task: Task, threads: int | None, *, known: bool) -> Task:
        """Say how a task runs: cached or not, with how many threads, where on a cluster.

        KFP's cache is asked only where the fingerprint is ``known``, all of it; elsewhere the step
        itself looks into the content store.
        """
        cached = name not in UNCACHED and known
        if threads is not None:  # before the step's process starts and imports torch
            task.set_env_variable("OMP_NUM_THREADS", str(threads))
        whole = {WHOLE_RECIPE: self.recipe} if name in steps.TRAININGS else {}
        for variable, value in {**self.environment, **whole}.items():
            task.set_env_variable(variable, value)
        if self.cluster:
            cached = cached and self.cluster.profile.steps[name].caching
            self.cluster.place(task, name, self.settings)
        return task.set_caching_options(cached)


def fingerprint(
    stage: str, text: str, digests: Mapping[str, object], *, elsewhere: bool = False
) -> str:
    """Return a stage's readable fingerprint, with its inputs' digests ordered by role.

    The same text as ``manyeyes.pipeline.fingerprint.fingerprint_text`` gives once the digests are
    known.

    Args:
        stage: name in the step table.
        text: the protected slice.
        digests: role to content digest, or to the task output that will hold it.
        elsewhere: the stage runs on another machine, which alone knows its folders.

    Raises:
        UserError: what the stage reads from outside is wrong.
    """
    plain = reveal(text)
    sources = outside_elsewhere(stage, plain) if elsewhere else outside_of(stage, plain)
    named = {role: f"{digest}" for role, digest in digests.items()}
    return fingerprint_text(stage, plain, named, outside_text(sources))


def _step_texts(recipe: Recipe) -> dict[str, str]:
    return {
        step.name: protect(slice_json(recipe, step.name))
        for step in steps.STEPS
        if not step.per_expert
    }


def _experts_plan(recipe: Recipe, *, elsewhere: bool) -> list[dict[str, str]]:
    """Return per expert what the ``experts`` step completes with digests."""
    plan = []
    for name in recipe.prealign.experts:
        text = protect(slice_json(recipe, "prealign", name))
        digests = {"dataset": "{dataset}", "validation": "{validation}"}
        plan.append(
            {
                "expert": name,
                "recipe_slice": text,
                "fingerprint": fingerprint("prealign", text, digests, elsewhere=elsewhere),
            }
        )
    return plan


def _decorate(function: StepFunction, image: str | None) -> Component:
    """Make a component: containerized on an image, or lightweight for kfp.local."""
    base = image or LOCAL_IMAGE
    return dsl.component(function, base_image=base, target_image=image, install_kfp_package=False)


def _check_length(texts: list[str], name: str) -> None:
    longest = max(len(text.encode()) for text in texts)
    if longest > MAX_PARAMETER_BYTES:
        raise UserError(
            f"Recipe {name} is too long for KFP: a step's part takes {longest:,} bytes, and "
            f"{MAX_PARAMETER_BYTES:,} fit into a command line; shorten its lists."
        )
