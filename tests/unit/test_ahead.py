"""Before a training starts, the validated data are held against what every later stage needs."""

import pytest
from preflight_kit import ASK, GOOD, write_data, write_recipe

from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.data.dataset.quarantine import QuarantineRow, write_quarantine
from manyeyes.errors import UserError
from manyeyes.pipeline import stages
from manyeyes.pipeline.stages.ahead import check_ahead
from manyeyes.runtime.home import WHOLE_RECIPE
from manyeyes.runtime.progress import Progress

START = "Nothing was trained: a later stage would fail.\n"


def inputs(folder, samples, quarantined=()):
    (folder / "validation").mkdir()
    rows = [QuarantineRow(name, "licence", "not allowed") for name in quarantined]
    write_quarantine(folder / "validation" / QUARANTINE_FILE, rows)
    return {
        "dataset": write_data(folder / "dataset", *samples),
        "validation": folder / "validation",
    }


LATER = {
    "the only question is in quarantine": (
        GOOD, ("s3",), (),
        "eval.split: the dataset, 1 samples of which are in quarantine, has no questions with "
        "accepted answers in the split 'test'; it has them in train. Give samples \"split\": "
        '"test" in the data, or name another split.',
    ),
    "all samples of a later source are in quarantine": (
        GOOD, ("s2",), (("sources: {vqa: 1.0}", "sources: {captions: 1.0}"),),
        "sft.sources.captions: the dataset, 1 samples of which are in quarantine, has no samples "
        "of the task 'captions' in the split 'train'; there it has vqa (2).",
    ),
    "labels are none of the metric's": (
        GOOD, (), (("exact_match", "pope_f1"),),
        "eval.tasks.vqa: task vqa: 1 of 1 questions have an accepted answer that pope_f1 cannot "
        "read (first: s3, 'red'); write one of yes or no, or choose another metric.",
    ),
    "a question is longer than the model reads": (
        [*GOOD, ("test", "vqa", ASK + " red" * 300, ("red",))], (), (),
        "model.max_length: the question of sample s4 takes 372 positions, more than "
        "model.max_length, 256: write eval.too_long: leave_out to score the others and count it, "
        "remove it from the data, or raise max_length (which trains everything again).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LATER)
def test_a_training_that_a_later_stage_could_not_use_does_not_start(case, tmp_path, monkeypatch):
    samples, quarantined, changes, expected = LATER[case]
    recipe = load_recipe(write_recipe(tmp_path, *changes))
    given = inputs(tmp_path, samples, quarantined)
    monkeypatch.setenv(WHOLE_RECIPE, recipe.model_dump_json(by_alias=True, exclude_none=True))
    out = tmp_path / "out"
    context = stages.StageContext(given, out, Progress("pretrain"))
    with pytest.raises(UserError) as error:
        stages.ready("pretrain", slice_json(recipe, "pretrain"), context)()
    assert str(error.value) == START + expected
    assert not out.exists()


def test_a_long_question_in_quarantine_or_left_out_stops_nothing(tmp_path):
    samples = [*GOOD, ("test", "vqa", ASK + " red" * 300, ("red",))]
    given = inputs(tmp_path, samples, ("s4",))
    check_ahead(load_recipe(write_recipe(tmp_path)), given)
    write_quarantine(given["validation"] / QUARANTINE_FILE, [])
    leave_out = ("  blind: false", "  blind: false\n  too_long: leave_out")
    check_ahead(load_recipe(write_recipe(tmp_path, leave_out)), given)


def test_the_whole_recipe_is_no_part_of_a_stages_slice(tmp_path):
    one = load_recipe(write_recipe(tmp_path))
    other = load_recipe(write_recipe(tmp_path, ("exact_match", "anls")))
    for stage in ("validate", "pretrain", "sft"):
        assert slice_json(one, stage) == slice_json(other, stage)
