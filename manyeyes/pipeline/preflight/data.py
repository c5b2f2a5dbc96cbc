"""The data: tasks, splits and answers that later stages need, and questions that are too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.config.recipe import ImportedData
from manyeyes.data.contract.needs import Stock, is_starter, lacking, stock_of, stock_of_starter
from manyeyes.errors import UserError
from manyeyes.evaluation.metrics import METRICS
from manyeyes.pipeline.preflight.subject import Found, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from manyeyes.data.dataset.dataset import Dataset

NAME = ("data", "name")


def tasks(subject: Subject) -> Iterator[Found]:
    """Find sources, tasks and splits that the data have not."""
    found = _stock(subject)
    if isinstance(found, Found):
        yield found
    else:
        yield from (Found(key, text) for key, text in lacking(subject.recipe, found))


def answers(subject: Subject) -> Iterator[Found]:
    """Find accepted answers that a metric cannot read, or that cap the score."""
    from manyeyes.evaluation.run import check_tasks, choose_samples

    section, dataset = subject.recipe.evaluation, open_dataset(subject)
    known = all(metric in METRICS for metric in section.tasks.values())
    if dataset is None or not known or list(tasks(subject)):
        return
    for task, found in check_tasks(choose_samples(dataset, section), section.tasks).items():
        yield from (Found(("eval", "tasks", task), f"{text}.") for text in found.refusals)
        yield from (Found(("eval", "tasks", task), f"{text}.", note=True) for text in found.notes)


def questions(subject: Subject) -> Iterator[Found]:
    """Find questions that are longer than the model reads."""
    from manyeyes.evaluation.lengths import reader_of, sentence, too_long
    from manyeyes.evaluation.run import choose_samples
    from manyeyes.pipeline.preflight.models import tokenizer_is_here

    recipe = subject.recipe
    dataset, model = open_dataset(subject), recipe.final_model
    if dataset is None or list(tasks(subject)) or recipe.evaluation.too_long is not None:
        return
    if not tokenizer_is_here(model.llm.weights):
        return
    try:
        found = too_long(choose_samples(dataset, recipe.evaluation), reader_of(model))
    except UserError:  # of the model or the tokenizer, which other checks name
        return
    if found:
        yield Found(("model", "max_length"), sentence(found, model.max_length))


def open_dataset(subject: Subject) -> Dataset | None:
    """Open the dataset, if it is imported and lies here."""
    from manyeyes.data.dataset.dataset import Dataset

    folder = dataset_path(subject)
    if folder is None:
        return None
    try:
        return Dataset.open(folder)
    except UserError:
        return None


def dataset_path(subject: Subject) -> Path | None:
    """Return where a recipe's imported dataset lies; None for the starter data."""
    from manyeyes.runtime.home import dataset_folder

    if subject.dataset is not None:
        return subject.dataset
    data = subject.recipe.data
    return dataset_folder(data.name) if isinstance(data, ImportedData) else None


def _stock(subject: Subject) -> Stock | Found:
    if subject.dataset is None and is_starter(subject.recipe):
        return stock_of_starter()
    folder = dataset_path(subject)
    assert folder is not None
    if not folder.exists():
        return _not_here(subject, folder)
    try:
        from manyeyes.data.dataset.dataset import Dataset

        dataset = Dataset.open(folder)
        return stock_of(dataset, str(folder))
    except UserError as error:
        return Found(NAME, str(error))


def _not_here(subject: Subject, folder: Path) -> Found:
    from manyeyes.store import open_store

    store = open_store()
    name = folder.name
    if subject.dataset is None and not store.is_remote and store.named(name) is not None:
        return Found(NAME, f"{folder} is not here; prepare takes it from the store.", note=True)
    advice = (
        f"import it (manyeyes data import FILE --out {folder}), run the command in the folder "
        "that holds it, or set MANYEYES_DATA"
    )
    if store.is_remote:
        advice += "; or it is in the store, which was not asked"
        return Found(NAME, f"{folder} is not here: {advice}.", note=True)
    return Found(NAME, f"{folder} is not here: {advice}.", absent=True)
