"""What the accepted answers of a task tell before any model is asked."""

import pytest

from manyeyes.errors import UserError
from manyeyes.evaluation.answers import Question, best_constant, check_answers, require_scorable
from manyeyes.evaluation.metrics import METRICS, pope, pope_label


def asked(*answers, subset=""):
    return [
        Question(f"q{number}", subset, (text,) if isinstance(text, str) else tuple(text))
        for number, text in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "label"),
    [
        (("yes",), "yes"), (("Yes",), "yes"), (("YES.",), "yes"), ((" yes \n",), "yes"),
        (("no",), "no"), (("No",), "no"), (("No.",), "no"), (("NO!",), "no"), (('"no"',), "no"),
        (("No", "no."), "no"), (("yes", "no"), None), ((), None), (("",), None), (("nein",), None),
        (("non",), None), (("否",), None), (("maybe",), None), (("no idea",), None),
        (("yes, no",), None), (("1",), None),
    ],
)  # fmt: skip
def test_a_label_of_pope_is_read_in_one_way(answers, label):
    assert pope_label(answers) == label


@pytest.mark.parametrize("written", ["yes no", "Yes No", "YES. NO.", " yes  no "])
def test_pope_counts_the_same_however_the_labels_are_written(written):
    yes, no = written.split()
    result = pope(["no", "no", "no", "Yes"], [no, no, yes, yes])
    assert (result.true_positives, result.false_negatives, result.true_negatives) == (1, 1, 2)
    assert result.accuracy == 0.75


def test_pope_refuses_a_label_that_is_neither():
    with pytest.raises(UserError) as error:
        pope(["no"], ["maybe"])
    assert str(error.value) == (
        "'maybe' is no label of POPE; pope_f1 needs yes or no as the one accepted answer."
    )


FEW = "task t: {0} of {0} questions have fewer than 4 accepted answers (first: q0)"


@pytest.mark.parametrize(
    ("metric", "questions", "highest", "refusals", "notes"),
    [
        ("exact_match", asked("5", "6"), 100.0, (), ()),
        ("anls", asked("a", ("b", "c")), 100.0, (), ()),
        ("relaxed_accuracy", asked("5%", "red"), 100.0, (), ()),
        ("vqa_accuracy", asked(["red"] * 10), 100.0, (), ()),
        ("vqa_accuracy", asked(["red"] * 4), 100.0, (), ()),
        ("vqa_accuracy", asked("red", "blue"), 0.0,
         (FEW.format(2) + "; the highest score possible is 0.0, so nothing would be measured",),
         ()),
        ("vqa_accuracy", asked(["red"] * 2), 33.3333, (),
         (FEW.format(1) + "; the highest score possible is 33.3 of 100",)),
        ("textvqa", asked(["red"] * 3), 66.6667, (),
         (FEW.format(1) + "; the highest score possible is 66.7 of 100",)),
        # Ten who agree on nothing: 0.3 each.
        ("vqa_accuracy", asked([f"a{n}" for n in range(10)]), 30.0, (),
         ("task t: not every question can be answered rightly; the highest score possible is "
          "30.0 of 100",)),
        ("pope_f1", asked("Yes", "No."), 100.0, (), ()),
        ("pope_f1", asked("yes", "maybe", ("yes", "no")), 0.0,
         ("task t: 2 of 3 questions have an accepted answer that pope_f1 cannot read (first: q1, "
          "'maybe'); write one of yes or no, or choose another metric",), ()),
        ("pope_f1", asked(("yes", "no")), 0.0,
         ("task t: 1 of 1 questions have an accepted answer that pope_f1 cannot read (first: q0, "
          "['yes', 'no']); write one of yes or no, or choose another metric",), ()),
        ("pope_f1", asked("No", "No"), 0.0, (),
         ("task t: a part has no accepted answer yes, and F1 counts the answers yes (accuracy does "
          "not); the highest score possible is 0.0 of 100",)),
        ("pope_f1", asked("NO", "yes"), 100.0, (),
         ("task t: 1 of 2 labels are written as the official script misreads them in an answer "
          "(first: q0, 'NO'); write yes or no",)),
    ],
)  # fmt: skip
def test_what_cannot_score_is_told_before_training(metric, questions, highest, refusals, notes):
    found = check_answers("t", metric, questions)
    assert (found.refusals, found.notes) == (refusals, notes)
    assert found.highest == pytest.approx(highest, abs=1e-4)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError) as error:
        require_scorable("vqa", "vqa_accuracy", asked("red"))
    assert str(error.value) == (
        "task vqa: 1 of 1 questions have fewer than 4 accepted answers (first: q0); the highest "
        "score possible is 0.0, so nothing would be measured."
    )
    assert require_scorable("t", "anls", asked("red")).notes == ()


@pytest.mark.parametrize(
    ("metric", "questions", "answer", "score"),
    [
        ("pope_f1", asked("Yes", "No", "yes", "no"), "yes", 200 / 3),
        ("pope_f1", asked("no", "no", "no", "yes"), "yes", 40.0),
        ("exact_match", asked("red", "Red", "blue"), "red", 200 / 3),
        ("relaxed_accuracy", asked("100", "102", "7"), "100", 200 / 3),
        ("anls", asked("abcd", "abce", "x"), "abcd", 100 * (1 + 0.75) / 3),
        ("vqa_accuracy", asked(["red"] * 4, ["red"] * 10, ["blue"] * 10), "red", 200 / 3),
    ],
)
def test_the_best_constant_answer_is_measured_by_the_metric(metric, questions, answer, score):
    found = best_constant(METRICS[metric], questions)
    assert found.answer == answer
    assert found.score == pytest.approx(score)


def test_a_constant_that_no_label_has_is_tried_when_the_model_says_it():
    questions = asked("100", "109")
    assert best_constant(METRICS["relaxed_accuracy"], questions).score == 50.0
    found = best_constant(METRICS["relaxed_accuracy"], questions, also=["104.5"])
    assert (found.answer, found.score) == ("104.5", 100.0)
