"""Answering, judging and scoring, with a model whose eyes and answers are known exactly."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_kit import WORDS, model_section, write_llama
from PIL import Image

from manyeyes.config.recipe import EvalSection
from manyeyes.data.dataset.dataset import Dataset, DatasetWriter, Sample, Turn
from manyeyes.errors import Interrupted, UserError
from manyeyes.evaluation import generate, run, score, statistics
from manyeyes.evaluation.generate import GreedyAnswerer, Journal, Prompt, Subject
from manyeyes.evaluation.metrics import METRICS
from manyeyes.evaluation.predictions import Prediction, read_predictions, write_predictions
from manyeyes.model.processor import Processor
from manyeyes.model.transformer import load_tokenizer
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.runtime.progress import Progress

END = 0
SIDE = 8


class Letters:
    """A tokenizer of one id per character."""

    bos_token_id = None
    eos_token_id = END

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in one] for one in text]}

    def convert_ids_to_tokens(self, ids):
        return chr(ids)

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(one) for one in ids)


@dataclass
class DigitReader:
    """Answers with the digit that the first pixel of its last picture spells, then ends."""

    batches: list[int] = field(default_factory=list)
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_length=60))
    num_visual: int = 4
    device: str = "cpu"

    def picture_tokens(self, width, height):
        return self.num_visual

    def generate(self, input_ids, attention_mask, pixels, image_sizes, *, max_new_tokens):
        assert len(image_sizes) == len(pixels)
        assert max_new_tokens == 3
        assert attention_mask.shape == input_ids.shape
        self.batches.append(len(input_ids))
        pictures = iter(pixels)
        answers = []
        for row in input_ids:
            seen = [next(pictures) for _ in range(int((row == -200).sum()))]
            digit = int(seen[-1][0, 0, 0]) // 25
            answers.append([ord(" "), ord("0") + digit, END, ord("x")])
        assert next(pictures, None) is None
        return torch.tensor(answers)


def picture(digit: int) -> bytes:
    """A picture whose first pixel tells the digit and whose mean does not."""
    values = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    values[0, 0] = digit * 25 + 3
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def sample(number: int, digit: int, refs, task="numbers", subset="") -> Sample:
    turns = (
        Turn("human", f"<image>\nwhich {'x' * (number % 4)}?"),
        Turn("gpt", str(digit)),
    )
    return Sample(
        f"{task}-{number:03}", "test", task, subset, turns, refs, (str(digit),), "drawn", "CC0", ()
    )


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    folder = tmp_path / "dataset"
    with DatasetWriter(folder) as writer:
        writer.add_source("drawn", "CC0", "drawn by the test")
        for number in range(20):
            digit = number % 5
            ref = writer.add_image(picture(digit), f"picture-{number:03}")
            writer.add(sample(number, digit, (ref,)))
    return Dataset.open(folder)


def section(**changes) -> EvalSection:
    values = {
        "split": "test", "tasks": {"numbers": "exact_match"}, "max_new_tokens": 3,
        "batch_size": 3, "limit": 0, "examples": 2, "blind": True,
    }  # fmt: skip
    return EvalSection.model_validate({**values, **changes})


def evaluate(model, dataset, out, should_stop=lambda: False, identity="model", **changes):
    subject = Subject(model, Letters(), Processor(canvas_size=SIDE), "plain_chat")
    exam = run.Exam(section(**changes), seed=1, identity=identity)
    progress = Progress("eval")
    return run.evaluate_model(
        subject, dataset, exam, out=out, progress=progress, should_stop=should_stop
    )


def test_a_model_that_sees_scores_full_and_blind_it_scores_the_guess(dataset, tmp_path):
    found = evaluate(DigitReader(), dataset, tmp_path / "out")
    assert found.scores.average.score.value == 100.0
    # The blank picture has the mean colour, about 99, which this model reads as a 3 or a 4.
    blind = {row.blind_prediction for row in found.predictions}
    assert len(blind) == 1
    assert found.scores.average.blind.value == 20.0
    assert found.scores.average.gain.value == 80.0
    assert found.predictions[0].question == "which ?"


def test_the_real_model_answers_in_batches_as_it_does_alone(dataset, tmp_path):
    llm = write_llama(tmp_path / "llm", vocab_size=len(WORDS))
    model = VisionLanguageModel.from_recipe(model_section(llm, names=("clip",)), seed=0).eval()
    subject = Subject(model, load_tokenizer(llm), Processor(canvas_size=SIDE), "plain_chat")
    (ref,) = dataset.samples()[0].images
    asked = ("what is red", "is this a circle", "blue", "the the the the red", "a blue circle", "")
    samples = [
        replace(dataset.samples()[0], id=text, turns=(Turn("human", f"<image> {text}"),))
        for text in asked
    ]
    # One of the questions shows two pictures: their places must not shift those of the others.
    samples[1] = replace(
        samples[1], images=(ref, ref), turns=(Turn("human", "<image><image> is this a circle"),)
    )
    prompts = subject.prompts(samples)
    answerer = GreedyAnswerer(subject, dataset.pictures, max_new_tokens=4)
    together = answerer(prompts)
    assert together == [answerer([prompt])[0] for prompt in prompts]
    assert len(set(together)) > 1
    assert all(set(text.split()) <= set(WORDS[4:]) for text in together)


def test_equal_blind_questions_are_asked_once(dataset, tmp_path):
    model = DigitReader()
    evaluate(model, dataset, tmp_path / "out")
    # 20 questions in batches of 3, then 4 distinct ones without anything to see.
    assert model.batches == [3, 3, 3, 3, 3, 3, 2, 3, 1]


def test_without_a_blind_run_there_are_no_blind_scores(dataset, tmp_path):
    found = evaluate(DigitReader(), dataset, tmp_path / "out", blind=False)
    assert found.scores.average.blind is None
    assert found.scores.average.gain is None
    assert {row.blind_score for row in found.predictions} == {None}


def test_a_stopped_run_continues_with_the_batches_it_has_not_done(dataset, tmp_path):
    whole, model = DigitReader(), DigitReader()
    expected = evaluate(whole, dataset, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Interrupted) as stop:
        evaluate(model, dataset, out, should_stop=lambda: len(model.batches) == 4)
    assert str(stop.value) == (
        "Stopped after 12 of 20 questions; run the same command again to continue."
    )
    # A kill in the middle of a line leaves a torn one.
    with (out / "state" / "seeing.jsonl").open("a") as file:
        file.write('{"id": "numbers-0')
    assert evaluate(model, dataset, out) == expected
    assert model.batches == whole.batches
    for name in ("metrics.json", "predictions.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run.discard_state(out)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "predictions.parquet"]


def zeroed(lines):
    lines[1] = b"\0" * len(lines[1])


def cut(lines):
    lines[1] = lines[1][:9]


def joined(lines):
    lines[1:3] = [lines[1] + lines[2]]


def changed(lines):
    entry = json.loads(lines[1])
    lines[1] = json.dumps({**entry, "answer": entry["answer"] + "1"}).encode()


def not_an_answer(lines):
    lines[1] = b'["id", "answer"]'


def not_text(lines):
    lines[1] = b"\xff\xfe" + lines[1]


def first_lost(lines):
    lines[0] = b""


DAMAGE = [zeroed, cut, joined, changed, not_an_answer, not_text, first_lost]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_a_damaged_journal_lost_is_asked_again(dataset, tmp_path, damage):
    expected = evaluate(DigitReader(), dataset, tmp_path / "out")
    path = tmp_path / "out/state/seeing.jsonl"
    lines = path.read_bytes().split(b"\n")
    damage(lines)
    path.write_bytes(b"\n".join(lines))
    for asked in ([3], [], []):
        model = DigitReader()
        assert evaluate(model, dataset, tmp_path / "out") == expected
        assert model.batches == asked


def test_a_finished_journal_asks_nothing_again(dataset, tmp_path):
    evaluate(DigitReader(), dataset, tmp_path / "out")
    again = DigitReader()
    evaluate(again, dataset, tmp_path / "out")
    assert again.batches == []


def test_answers_of_another_model_are_not_taken_over(dataset, tmp_path):
    evaluate(DigitReader(), dataset, tmp_path / "out")
    other = DigitReader()
    evaluate(other, dataset, tmp_path / "out", identity="another model")
    assert sum(other.batches) == 24


def test_progress_counts_the_questions_of_both_runs(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_PROGRESS", str(tmp_path / "progress.jsonl"))
    evaluate(DigitReader(), dataset, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert lines[0]["text"] == "20 questions of the test split"
    assert (lines[-1]["step"], lines[-1]["total"], lines[-1]["unit"]) == (24, 24, "questions")


def test_a_limit_takes_the_same_questions_for_every_model_and_grows(dataset):
    few = [s.id for s in run.choose_samples(dataset, section(limit=5))]
    more = [s.id for s in run.choose_samples(dataset, section(limit=9))]
    assert len(few) == 5
    assert set(few) < set(more)
    assert few == sorted(few)


def test_quarantined_questions_are_not_asked(dataset):
    chosen = run.choose_samples(dataset, section(), excluded={"numbers-003"})
    assert len(chosen) == 19


def test_questions_that_are_too_long_are_left_out_and_counted(dataset, tmp_path):
    reader = DigitReader(num_visual=35)  # every fourth question takes 61 positions of 60
    found = evaluate(reader, dataset, tmp_path / "out", too_long="leave_out")
    assert found.left_out == {"numbers": 5}
    assert len(found.predictions) == 15
    assert not [row.id for row in found.predictions if int(row.id[-3:]) % 4 == 3]
    assert evaluate(DigitReader(), dataset, tmp_path / "all", too_long="leave_out").left_out == {}


@pytest.mark.parametrize(
    ("changes", "model", "text"),
    [
        pytest.param(
            {"tasks": {"charts": "relaxed_accuracy"}},
            DigitReader(),
            "The task 'charts' has no question in the split 'test': take it out of eval.tasks or "
            "add data for it.",
            id="a task without questions",
        ),
        pytest.param(
            {},
            DigitReader(num_visual=50),
            "eval: the question of sample numbers-000 (and 19 more) takes 73 positions, more than "
            "model.max_length, 60: write eval.too_long: leave_out to score the others and count "
            "it, remove it from the data, or raise max_length (which trains everything again).",
            id="a question that is too long",
        ),
        pytest.param(
            {"too_long": "leave_out"},
            DigitReader(num_visual=50),
            "eval: every question of the task 'numbers' is longer than model.max_length, 60: take "
            "it out of eval.tasks, or raise max_length.",
            id="only questions that are too long",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes, model, text, dataset, tmp_path):
    with pytest.raises(UserError) as refusal:
        evaluate(model, dataset, tmp_path / "out", **changes)
    assert str(refusal.value) == text


def test_a_question_is_known_by_its_words_and_pictures(dataset):
    first, second = dataset.samples()[:2]
    assert run.asked_digest(first) != run.asked_digest(second)
    answered = replace(first, turns=(*first.turns[:-1], Turn("gpt", "another answer")))
    assert run.asked_digest(answered) == run.asked_digest(first)
    reworded = replace(first, turns=(Turn("human", "<image> what"), *first.turns[1:]))
    assert run.asked_digest(reworded) != run.asked_digest(first)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("pope_f1", "task numbers: 20 of 20 questions have an accepted answer that pope_f1 cannot "
         "read (first: numbers-000, '0'); write one of yes or no, or choose another metric."),
        ("vqa_accuracy", "task numbers: 20 of 20 questions have fewer than 4 accepted answers "
         "(first: numbers-000); the highest score possible is 0.0, so nothing would be measured."),
    ],
)  # fmt: skip
def test_nothing_is_asked_where_nothing_can_score(metric, text, dataset, tmp_path):
    model = DigitReader()
    with pytest.raises(UserError) as refusal:
        evaluate(model, dataset, tmp_path / "out", tasks={"numbers": metric})
    assert str(refusal.value) == text
    assert model.batches == []


def test_batches_do_not_depend_on_the_order_of_the_questions():
    prompts = [Prompt(f"q{n}", (1,) * (n % 3 + 1), (), n % 3 + 1) for n in range(10)]
    batches = generate.cut_into_batches(prompts, 4)
    assert batches == generate.cut_into_batches(reversed(prompts), 4)
    lengths = [prompt.length for batch in batches for prompt in batch]
    assert lengths == sorted(lengths)


def test_prompts_are_padded_on_the_left():
    ids, mask = generate.pad_left([[5], [6, 7, 8]])
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("ids", "stops", "kept"),
    [
        ([4, 2, 0, 4], (0,), [4, 2]),
        ([4, 2], (0,), [4, 2]),
        ([4], (), [4]),
        ([4, 2, 0], (0, 2), [4]),
    ],
)
def test_an_answer_ends_before_the_first_end_token(ids, stops, kept):
    assert generate.until(ids, stops) == kept


def test_a_journal_of_other_questions_is_replaced(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal.open(path, "first").add({"a": "1\n2"})
    assert Journal.open(path, "first").answers == {"a": "1\n2"}
    assert Journal.open(path, "second").answers == {}
    assert Journal.open(path, "first").answers == {}


# Scores


def row(number, right, blind=None, task="t", subset="", answers=("x",)) -> Prediction:
    return Prediction(
        id=f"{task}-{subset}-{number:04}", task=task, subset=subset, question="q", answers=answers,
        prediction="x", blind_prediction=None if blind is None else "y",
        score=float(right), blind_score=None if blind is None else float(blind),
    )  # fmt: skip


def test_a_task_scores_the_mean_and_the_average_is_over_tasks():
    rows = [row(n, n < 3, blind=n < 1) for n in range(4)]
    rows += [row(n, n < 1, blind=0, task="u") for n in range(2)]
    scores = score.score_predictions(
        rows, {"t": "exact_match", "u": "anls"}, score.Conditions("test"), seed=0
    )
    assert scores.tasks["t"].total.score.value == 75.0
    assert scores.tasks["t"].total.blind.value == 25.0
    assert scores.tasks["u"].total.score.value == 50.0
    assert scores.average.score.value == 62.5
    assert scores.average.blind.value == 12.5
    assert scores.average.gain.value == 50.0
    assert scores.average.count == 6
    assert scores.flat() == {
        "average": 62.5, "average_blind": 12.5, "average_gain": 50.0, "average_floor": 100.0,
        "t": 75.0, "t_blind": 25.0, "t_gain": 50.0, "t_floor": 100.0,
        "u": 50.0, "u_blind": 0.0, "u_gain": 50.0, "u_floor": 100.0,
    }  # fmt: skip


def test_the_interval_is_that_of_the_binomial():
    # 400 questions, 300 right: standard error 100 * sqrt(0.75 * 0.25 / 400) = 2.165 points.
    rows = [row(n, n < 300) for n in range(400)]
    total = score.score_predictions(rows, {"t": "exact_match"}, score.Conditions("test"), seed=3)
    estimate = total.average.score
    assert estimate.low == pytest.approx(75 - 1.96 * 2.165, abs=0.6)
    assert estimate.high == pytest.approx(75 + 1.96 * 2.165, abs=0.6)


def test_the_gain_has_a_paired_interval():
    # Both runs are right on the same questions: the gain never varies, though the scores do.
    rows = [row(n, n % 2, blind=n % 2) for n in range(100)]
    found = score.score_predictions(rows, {"t": "exact_match"}, score.Conditions("test"), seed=0)
    gain, seen = found.average.gain, found.average.score
    assert gain.value == 0.0
    assert gain.high - gain.low < 0.5 * (seen.high - seen.low)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_all_right_of_few_questions_is_no_certainty(count):
    rows = [row(n, 1) for n in range(count)]
    found = score.score_predictions(rows, {"t": "anls"}, score.Conditions("test"), seed=0)
    assert found.tasks["t"].total.score == statistics.proportion(count, count)
    assert found.average.score.low < 75.0


def asked(number, said, label, blind, task="t", subset="", metric="exact_match") -> Prediction:
    per_answer = METRICS[metric].per_answer
    return Prediction(
        f"{task}-{number:03}", task, subset, "q", (label,), said, blind,
        per_answer(said, (label,)), None if blind is None else per_answer(blind, (label,)),
    )  # fmt: skip


def scored(rows, metric):
    return score.score_predictions(rows, {"t": metric}, score.Conditions("test"), seed=0).tasks["t"]


@pytest.mark.parametrize("label", [("yes", "no"), ("Yes", "No"), ("YES.", "no.")])
def test_saying_always_yes_is_no_gain_on_pope(label):
    # It says yes when it sees a picture and no when that is blank.
    rows = [asked(n, "yes", label[n % 2], "no", metric="pope_f1") for n in range(40)]
    task = scored(rows, "pope_f1")
    assert task.total.score.value == pytest.approx(66.6667)
    assert task.total.blind.value == 0.0
    assert (task.floor.value, task.floor.constant) == (66.6667, "yes")
    assert task.floor.headroom == 0.0
    assert task.details["all"] == {
        "accuracy": 50.0, "precision": 50.0, "recall": 100.0, "f1": 66.6667, "yes_ratio": 100.0,
    }  # fmt: skip


def test_table_and_details_of_pope_agree_with_labels_in_capitals():
    labels = ["Yes", "No", "No", "No"]
    never = scored([asked(n, "No", label, None, metric="pope_f1")
                    for n, label in enumerate(labels)], "pope_f1")  # fmt: skip
    assert (never.total.score.value, never.details["all"]["f1"]) == (0.0, 0.0)
    assert never.details["all"]["accuracy"] == 75.0
    right = scored([asked(n, label, label, None, metric="pope_f1")
                    for n, label in enumerate(labels)], "pope_f1")  # fmt: skip
    assert (right.total.score.value, right.details["all"]["f1"]) == (100.0, 100.0)


def test_one_answer_to_everything_is_never_above_the_floor():
    # 104.5 is near enough to both numbers, and is neither.
    rows = [asked(n, "104.5", ("100", "109")[n % 2], "x", metric="relaxed_accuracy")
            for n in range(10)]  # fmt: skip
    task = scored(rows, "relaxed_accuracy")
    assert task.total.score.value == 100.0
    assert (task.floor.value, task.floor.constant, task.floor.headroom) == (100.0, "104.5", None)


def test_the_floor_is_the_better_of_blank_and_constant():
    labels = ["a", "b", "c", "d"]
    blind = scored([asked(n, label, label, label if n else "x")
                    for n, label in enumerate(labels)], "exact_match")  # fmt: skip
    assert (blind.floor.value, blind.floor.constant_score, blind.floor.headroom) == (
        75.0, 25.0, 1.0,
    )  # fmt: skip


def test_a_task_without_pictures_has_no_blank_floor():
    rows = [replace(asked(n, "a" if n else "b", "ab"[n % 2], "a" if n else "b"), pictures=0)
            for n in range(4)]  # fmt: skip
    task = scored(rows, "exact_match")
    assert (task.visual, task.floor.value) == (False, 50.0)


def test_the_highest_score_bounds_the_headroom():
    rows = [Prediction(f"t-{n}", "t", "", "q", (word,) * 2, word, "x", 1 / 3, 0.0)
            for n, word in enumerate(("red", "blue"))]  # fmt: skip
    task = scored(rows, "vqa_accuracy")
    assert task.floor.highest == 33.3333
    assert task.floor.headroom == 1.0


def test_empty_and_equal_answers_are_counted():
    said = ["", " ", "Red", "red ", "RED", "blue"]
    rows = [asked(n, text, ("red", "x", "y")[n % 3], None) for n, text in enumerate(said)]
    assert scored(rows, "exact_match").answered == score.Answered(2, 3, "Red", 2)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"prediction": "z", "score": 0.0}, True),
        ({"id": "t-other"}, False),
        ({"answers": ("another",)}, False),
        ({"asked": "f" * 64}, False),
        ({"subset": "part"}, False),
    ],
    ids=["another answer given", "id", "label", "words or pictures", "part"],
)
def test_the_digest_of_the_questions_is_of_the_questions_alone(change, same):
    rows = [asked(n, "a", "a", None) for n in range(3)]
    changed = [*rows[:2], replace(rows[2], **change)]
    before, after = (scored(given, "exact_match").questions for given in (rows, changed))
    assert (before == after) is same


def pope_rows(subset, pairs):
    """Rows from (predicted, label) pairs, judged as the metric does."""
    return [
        Prediction(f"{subset}-{n}", "pope", subset, "q", (label,), said, None, said == label, None)
        for n, (said, label) in enumerate(pairs)
    ]


def test_pope_scores_the_mean_of_its_subsets_f1():
    perfect = [("yes", "yes"), ("no", "no")]
    # TP 1, FP 2, FN 0: precision 1/3, recall 1, F1 1/2.
    biased = [("yes", "yes"), ("no", "no"), ("yes", "no"), ("yes", "no")]
    never = [("no", "yes"), ("no", "no")]
    rows = pope_rows("random", perfect) + pope_rows("popular", biased)
    rows += pope_rows("adversarial", never)
    task = score.score_predictions(
        rows, {"pope": "pope_f1"}, score.Conditions("test"), seed=0
    ).tasks["pope"]
    assert {name: line.score.value for name, line in task.subsets.items()} == {
        "random": 100.0, "popular": 50.0, "adversarial": 0.0,
    }  # fmt: skip
    assert task.total.score.value == 50.0
    assert task.details["popular"] == {
        "accuracy": 50.0, "precision": 33.3333, "recall": 100.0, "f1": 50.0, "yes_ratio": 75.0,
    }  # fmt: skip
    assert task.details["all"]["accuracy"] == 62.5
    assert task.protocol == "official_pope"


def test_subsets_of_other_tasks_weigh_by_their_size():
    rows = [row(n, 1, subset="colour") for n in range(3)] + [row(0, 0, subset="counting")]
    task = score.score_predictions(
        rows, {"t": "vqa_accuracy"}, score.Conditions("test"), seed=0
    ).tasks["t"]
    assert task.total.score.value == 75.0
    assert sorted(task.subsets) == ["colour", "counting"]
    assert task.subsets["colour"].count == 3


def test_scores_do_not_depend_on_order_nor_intervals_on_other_tasks():
    rows = [row(n, n % 3 == 0) for n in range(30)]
    other = [row(n, n % 2, task="u") for n in range(30)]
    alone = score.score_predictions(rows, {"t": "anls"}, score.Conditions("test"), seed=0)
    both = score.score_predictions(
        [*other, *reversed(rows)], {"u": "anls", "t": "anls"}, score.Conditions("test"), seed=0
    )
    assert both.tasks["t"] == alone.tasks["t"]


def test_scores_and_predictions_come_back_as_they_were_written(tmp_path):
    rows = [row(n, n % 2, blind=0) for n in range(6)]
    scores = score.score_predictions(rows, {"t": "anls"}, score.Conditions("val"), seed=0)
    score.write_scores(scores, tmp_path)
    write_predictions(reversed(rows), tmp_path)
    assert score.read_scores(tmp_path) == scores
    assert read_predictions(tmp_path) == tuple(rows)
    first = (tmp_path / "metrics.json").read_bytes()
    score.write_scores(scores, tmp_path)
    assert (tmp_path / "metrics.json").read_bytes() == first


def test_a_damaged_report_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "predictions.parquet").write_text("no")
    with pytest.raises(UserError) as scores:
        score.read_scores(tmp_path)
    assert str(scores.value) == (
        f"{tmp_path / 'metrics.json'} is not a readable table of scores; run eval again."
    )
    with pytest.raises(UserError) as predictions:
        read_predictions(tmp_path)
    assert str(predictions.value) == (
        f"{tmp_path / 'predictions.parquet'} is not a readable table of predictions; "
        "run eval again."
    )
