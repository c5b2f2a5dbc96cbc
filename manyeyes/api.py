"""manyeyes from Python: ``load``, ``load_recipe``, ``train``, ``evaluate``, ``Recipe``.

``import manyeyes`` offers these names and imports this module when one of them is used.

    import manyeyes

    model = manyeyes.load("runs/eagle-x5-tiny/sft")
    print(model.ask("picture.png", "What number is written here?"))

Each function is what a verb of the command line does, in the same way and with the same errors
(``manyeyes.errors``): ``load`` finds and checks a model as ``manyeyes chat`` does, ``train`` is
``manyeyes run``, ``evaluate`` asks the questions of ``manyeyes eval``.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.config import recipe as recipes
from manyeyes.config.recipe import Recipe
from manyeyes.runtime.defaults import set_defaults

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Sequence

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.evaluation.run import Evaluation
    from manyeyes.kubeflow.pipelines.run_recipe import RunResults
    from manyeyes.serve.assistant import Assistant

    AnyPath = str | os.PathLike[str]

__all__ = ["Recipe", "evaluate", "load", "load_recipe", "train"]


def load(model: AnyPath) -> Assistant:
    """Load a trained model that answers questions: ``load(...).ask(image, prompt)``.

    Its parts are ``.model`` (a ``torch.nn.Module`` and a ``transformers.PreTrainedModel``),
    ``.processor`` and ``.tokenizer``. It is on the CPU; ``.model.to("cuda")`` moves it. From then
    on transformers' ``AutoModel`` and ``AutoProcessor`` know such checkpoints too.

    Args:
        model: the folder of a checkpoint, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` of
            the registry, a content digest, or a pointer into the content store.

    Raises:
        UserError: there is no such model, or its files are not what its manifest says.
    """
    set_defaults()
    from manyeyes.serve.chat import open_model

    return open_model(str(model))


def load_recipe(path: AnyPath, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: its file.
        overrides: values in place of the file's, as ``--set`` takes them: ``["sft.steps=10"]``.

    Raises:
        UserError: it cannot be read, or breaks the schema; one line for each problem.
    """
    return recipes.load_recipe(Path(path), overrides)


def train(
    recipe: Recipe | AnyPath, *, out: AnyPath | None = None, quiet: bool = False
) -> RunResults:
    """Run a recipe on this machine, from its data to a registered model.

    What was made before is not made again, and a call that was stopped or killed is continued by
    the same call.

    Args:
        recipe: a file, or what ``load_recipe`` returned.
        out: folder for the results; ``runs/NAME`` without it.
        quiet: draw no progress.

    Returns:
        Where the checkpoint and the report lie, the scores, and what the registry's gate said.

    Raises:
        UserError: the recipe, its data or ``out`` cannot be used.
        GateRefused: the data break the recipe's contract.
        ManyeyesError: a stage failed.
        Interrupted: a signal came.
    """
    set_defaults()
    from manyeyes.kubeflow.pipelines.run_recipe import run_recipe
    from manyeyes.pipeline.preflight import require

    path = None if isinstance(recipe, Recipe) else Path(recipe)
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    require(known, path)
    results = run_recipe(known, path=path, out=Path(out) if out else None, quiet=quiet)
    _send_owed()
    return results


def evaluate(
    model: Assistant | AnyPath, recipe: Recipe | AnyPath, *, dataset: AnyPath | None = None
) -> Evaluation:
    """Ask a model the questions of a recipe's ``eval`` and score its answers.

    Nothing is kept: ``manyeyes eval`` writes a report. Data that the recipe names are made, or
    taken from the content store, as ``manyeyes run`` does it.

    Args:
        model: what ``load`` returned, as it is now, or what ``load`` takes.
        recipe: whose questions, metrics and lengths.
        dataset: a finished dataset to ask of, in place of the recipe's.

    Returns:
        ``.scores``, with intervals and beside a blank image, and ``.predictions``, each answer.

    Raises:
        UserError: the model, the recipe or the dataset cannot be used.
        GateRefused: the recipe's data break its contract.
    """
    set_defaults()
    from manyeyes.evaluation.generate import Subject
    from manyeyes.evaluation.run import Exam, evaluate_model
    from manyeyes.pipeline.preflight import require
    from manyeyes.runtime.locks import temporary
    from manyeyes.runtime.progress import Progress
    from manyeyes.serve.assistant import Assistant
    from manyeyes.training.cpu_sharing import cores_shared

    path = None if isinstance(recipe, Recipe) else Path(recipe)
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    require(known, path)
    asked = model if isinstance(model, Assistant) else load(model)
    subject = Subject(asked.model, asked.tokenizer, asked.processor, asked.template)
    with _questions(known, dataset) as (questions, excluded), temporary() as scratch:
        exam = Exam(known.evaluation, known.seed, identity="", excluded=excluded)
        with cores_shared():
            return evaluate_model(subject, questions, exam, out=scratch, progress=Progress("eval"))


@contextlib.contextmanager
def _questions(
    recipe: Recipe, dataset: AnyPath | None
) -> Iterator[tuple[Dataset, Collection[str]]]:
    """Open the dataset to ask of; also give the ids of what its validation put aside."""
    from manyeyes.artifact.verified import open_verified
    from manyeyes.config.recipe.slices import slice_json
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.quarantine import quarantined_ids
    from manyeyes.pipeline.runner import run_stage
    from manyeyes.runtime.home import INPUTS, home
    from manyeyes.runtime.locks import temporary
    from manyeyes.store import open_store
    from manyeyes.store.delivery import whole

    if dataset is not None:
        open_verified(Path(dataset), "dataset")
        yield Dataset.open(Path(dataset)), ()
        return
    with temporary() as folder:
        found: dict[str, Path] = {}
        for role, stage in (("dataset", "prepare"), ("validation", "validate")):
            place = folder / stage
            text = slice_json(recipe, stage)
            run_stage(stage, text, inputs=dict(found), out=place, by_pointer=True)
            found[role] = place
        with whole(open_store(), found, home() / INPUTS) as paths:
            yield Dataset.open(paths["dataset"]), quarantined_ids(paths["validation"])


def _send_owed() -> None:
    """Send MLflow what could not be sent before; whatever fails here, the results stand."""
    from manyeyes.tracking.sync import send_owed

    with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
        for note in send_owed().notes:
            sys.stderr.write(f"{note}\n")
