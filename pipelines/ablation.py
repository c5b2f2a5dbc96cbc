"""The fusion table: the same small model with each fusion, trained and scored by one pipeline.

    python -m manyeyes.kubeflow.pipelines.ablation recipes/tiny/eagle-x5.yaml

Eagle's ablation (arXiv:2408.15998, table 3) asks which way of joining experts is worth its price.
Here as there, two encoders (the recipe's first two), data, language model, steps and batches are
the same for all; a variant replaces the fusion alone. ``fusions`` is the table of what differs.

One graph: prepare, validate and prealign stand in it once, and pretrain, sft and eval once per
fusion. The steps are those of ``manyeyes.kubeflow.pipelines.training`` and take what the content
store has, so an ablation that was stopped goes on by the same command, and results are shared with
``manyeyes run``. Nothing is registered. KFP is imported where the graph is built.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import Signature
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.destination import claim_folder
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.artifact.marker import reserve
from manyeyes.config.recipe import (
    ChannelConcat,
    DeformableAttention,
    FusionSection,
    MixtureOfResolution,
    PatchInfoMining,
    Recipe,
    SequenceAppend,
    SpatialVisionAggregator,
    TrainSection,
    load_recipe,
    recipe_yaml,
)
from manyeyes.errors import ManyeyesError, UserError, unknown
from manyeyes.pipeline.comparison import TABLE_FILES, compare, write_table
from manyeyes.pipeline.explain import explain
from manyeyes.pipeline.fingerprint import run_key
from manyeyes.runtime.home import RUN, home
from manyeyes.runtime.progress import VARIANT
from manyeyes.steps import Task

if TYPE_CHECKING:
    from manyeyes.kubeflow.pipelines.training import Pipeline, Threads

PIPELINE = "manyeyes-ablation"
WITHOUT_PARAMETERS = ("channel_concat", "sequence_append")
"""Fusions that have nothing to train."""


@dataclass(frozen=True)
class Variant:
    """What one line of the table has of its own."""

    fusion: FusionSection
    fineness: int = 1
    """Side of the second encoder's map, in sides of the common grid."""


def fusions(tokens: str, detail: str) -> tuple[Variant, ...]:
    """Return the table of fusions, in the order of Eagle's.

    Args:
        tokens: the encoder that gives the tokens, where a fusion tells the two apart.
        detail: the encoder that is looked into.
    """
    return (
        Variant(SequenceAppend(kind="sequence_append")),
        Variant(ChannelConcat(kind="channel_concat")),
        Variant(
            MixtureOfResolution(
                kind="mixture_of_resolution", fast=tokens, slow=detail, before_blocks=(1, 2)
            )
        ),
        Variant(
            PatchInfoMining(kind="patch_info_mining", low=tokens, high=detail, crops=1),
            fineness=2,
        ),
        Variant(DeformableAttention(kind="deformable_attention", heads=8, points=4)),
        Variant(
            SpatialVisionAggregator(
                kind="spatial_vision_aggregator",
                width=96,
                heads=4,
                depth=2,
                num_layers=2,
                first_layer=0,
                layer_stride=2,
            ),
            fineness=2,
        ),
    )


def variants(base: Recipe) -> dict[str, Recipe]:
    """Return the recipe of every line, by the fusion's kind.

    Raises:
        UserError: the recipe has fewer than two encoders.
    """
    if len(base.model.encoders) < 2:
        raise UserError(
            f"Recipe {base.name} has one encoder; an ablation of fusions needs two to join."
        )
    first, second = base.model.encoders[:2]
    table = fusions(first.name, second.name)
    return {variant.fusion.kind: _recipe(base, variant) for variant in table}


def _recipe(base: Recipe, variant: Variant) -> Recipe:
    """Replace a recipe's fusion, and what has to go with it."""
    model, kind = base.model, variant.fusion.kind
    first, second = (encoder.model_copy(update={"grid": None}) for encoder in model.encoders[:2])
    if variant.fineness > 1:
        second = second.model_copy(update={"grid": variant.fineness * model.grid})
    aligned = base.prealign.experts
    changed = base.model_copy(
        update={
            "name": f"{base.name}-{kind}",
            "model": model.model_copy(
                update={
                    "encoders": (first, second),
                    "fusion": variant.fusion,
                    # As much room for text as the base has, for the longest images of all.
                    "max_length": model.max_length + model.grid**2,
                }
            ),
            "prealign": base.prealign.model_copy(
                update={
                    "experts": {
                        encoder.name: aligned[encoder.name]
                        for encoder in (first, second)
                        if encoder.name in aligned
                    }
                }
            ),
            "pretrain": _training(base.pretrain, kind),
            "sft": _training(base.sft, kind),
        }
    )
    return Recipe.model_validate_json(changed.model_dump_json(by_alias=True))


def _training(section: TrainSection, kind: str) -> TrainSection:
    """Let the fusion train where it has parameters; name it nowhere where it has none.

    A stage has no model of its own: the same one is trained throughout.
    """
    patterns = [one for one in section.train if not one.startswith("fusion.")]
    if kind not in WITHOUT_PARAMETERS and "*" not in patterns:
        patterns.append("fusion.*")
    rates = [rate for rate in section.learning_rates if not rate.modules.startswith("fusion.")]
    return section.model_copy(
        update={"train": tuple(patterns), "learning_rates": tuple(rates), "model": None}
    )


def build(recipes: Sequence[Recipe], threads: Threads | None = None) -> Pipeline:
    """Build the pipeline that trains and scores several recipes.

    Args:
        recipes: they have data, validation and pre-alignment in common, which are taken from the
            first; a branch that expected others would refuse by its fingerprint.
        threads: OpenMP threads of the steps.

    Raises:
        UserError: a recipe is too long for KFP.
    """
    from kfp import dsl

    from manyeyes.kubeflow.pipelines.training import Graph, decorated

    components = decorated(None)
    trunk = Graph.of(recipes[0], components, threads)
    branches = [
        Graph.of(
            recipe,
            components,
            threads,
            environment={RUN: run_key(recipe), VARIANT: recipe.model.fusion.kind},
        )
        for recipe in recipes
    ]

    def ablation() -> None:
        with dsl.ExitHandler(trunk.finalize()):
            data = trunk.data()
            aligned = trunk.align(data)
            for branch in branches:
                branch.model(data, aligned)

    # kfp reads the annotations, which are texts in this module
    ablation.__signature__ = Signature()  # type: ignore[attr-defined]
    return dsl.pipeline(name=PIPELINE)(ablation)


def run(base: Recipe, recipes: Mapping[str, Recipe], *, quiet: bool) -> None:
    """Run the pipeline here, unless every result is at hand.

    Raises:
        ManyeyesError: a step failed; the error is the step's own.
        Interrupted: a signal came; the same call continues.
    """
    from manyeyes.kubeflow.pipelines.local import run_local
    from manyeyes.runtime.watch import watching
    from manyeyes.tracking.sync import sync

    if all(is_done(recipe) for recipe in recipes.values()):
        return
    name = run_key(base.model_copy(update={"name": f"{base.name}-ablation"}))
    progress = home() / "runs" / name / "progress.jsonl"
    progress.parent.mkdir(parents=True, exist_ok=True)
    with watching(progress, labels(recipes), quiet=quiet):
        run_local(
            base,
            run=name,
            progress=progress,
            variants=list(recipes.values()),
            recorded=lambda: _recorded(list(recipes.values()), name),
        )
    for recipe in recipes.values():
        sync(run_key(recipe))


@contextmanager
def _recorded(recipes: Sequence[Recipe], name: str) -> Iterator[None]:
    """Record each line as a pipeline run of its own."""
    from manyeyes.tracking.pipeline import recorded_pipeline

    with ExitStack() as stack:
        for recipe in recipes:
            stack.enter_context(recorded_pipeline(run_key(recipe), recipe, {"ablation": name}))
        yield


def is_done(recipe: Recipe) -> bool:
    """Say whether the store has everything of a recipe but its registration."""
    return all(answer.cached for answer in explain(recipe) if answer.task.stage != "register")


def labels(recipes: Mapping[str, Recipe]) -> list[str]:
    """Return every stage of the run, as its progress names it."""
    experts = next(iter(recipes.values())).prealign.experts
    own = [f"{stage}:{kind}" for kind in recipes for stage in ("pretrain", "sft", "eval")]
    return ["prepare", "validate", *(Task("prealign", name).label for name in experts), *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, write and print the table; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m manyeyes.kubeflow.pipelines.ablation", description=__doc__
    )
    parser.add_argument("recipe", type=Path, help="the base: data, stages, its first two encoders")
    parser.add_argument("--fusions", nargs="+", metavar="KIND", help="only these lines")
    parser.add_argument(
        "--out", type=Path, help="folder for the table (default: runs/NAME-ablation)"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    given = parser.parse_args(arguments)
    try:
        base = load_recipe(given.recipe)
        recipes = _chosen(variants(base), given.fusions)
        out = given.out or Path("runs") / f"{base.name}-ablation"
        _write_recipes(recipes, out, given.recipe)
        run(base, recipes, quiet=given.json)
        files = write_table(base.name, compare(recipes), out)
    except ManyeyesError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print((files.json if given.json else files.markdown).read_text(encoding="utf-8"), end="")
    return 0


def _chosen(recipes: dict[str, Recipe], kinds: Sequence[str] | None) -> dict[str, Recipe]:
    for kind in kinds or ():
        if kind not in recipes:
            raise unknown("fusion", kind, recipes)
    return {kind: recipe for kind, recipe in recipes.items() if not kinds or kind in kinds}


def _write_recipes(recipes: Mapping[str, Recipe], out: Path, base: Path) -> None:
    """Write each line's recipe, with which ``manyeyes run`` and ``show`` look into it.

    Raises:
        UserError: the folder holds something that is no earlier table of this kind.
    """
    claim_folder(out, inputs=[base])
    files = {f"recipes/{kind}.yaml": recipe_yaml(recipe) for kind, recipe in recipes.items()}
    reserve(out, [*files, *TABLE_FILES])
    for name, text in files.items():
        atomic_write_text(out / name, text)


if __name__ == "__main__":
    sys.exit(main())
