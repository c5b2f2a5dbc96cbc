"""How right an answer is, exactly as each benchmark's official scorer computes it.

Design decisions:

- A metric judges answers one at a time, (prediction, accepted answers) -> 0..1, and its score is
  the mean; POPE's F1 belongs to a whole list of answers. ``METRICS`` is the one table.
- Where scorers disagree, the canonical one is followed and named in the docstring; the vectors in
  ``tests/unit/vectors/metrics.json`` hold the disagreements.
- A function here never changes its arguments and never divides by zero: the official POPE script
  raises on a model that never says yes; here precision, recall and F1 are 0 then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.errors import UserError, unknown
from manyeyes.evaluation.vqa_text import clean_space, normalise_evalai, normalise_vqa

if TYPE_CHECKING:
    from manyeyes.evaluation.statistics import Aggregate

AnswerMetric = Callable[[str, Sequence[str]], float]
"""(prediction, accepted answers) -> 0..1."""

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
VQA_REFERENCES = 4
"""Three that agree with the answer must remain when any one is left out."""


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals an answer after stripping the ends and lower-casing.

    Nothing else is forgiven: inner spaces, periods and signs count. This metric is ours, for
    answers that have one spelling (numbers read digit by digit).
    """
    given = prediction.strip().lower()
    return float(any(given == answer.strip().lower() for answer in answers))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the VQAv2 soft accuracy (Goyal et al. 2017; ``official_vqa``).

    If all references are the same string, the official script compares without any normalisation,
    so that ``Yes`` is wrong against ten times ``yes``.
    """
    given = clean_space(prediction)
    references = [clean_space(answer) for answer in answers]
    if len(set(references)) > 1:
        given = normalise_vqa(given)
        references = [normalise_vqa(reference) for reference in references]
    return _leave_one_out(given, references)


def textvqa(prediction: str, answers: Sequence[str]) -> float:
    """Return the soft accuracy of TextVQA and VizWiz, which always normalise (``llava_m4c``)."""
    return _leave_one_out(
        normalise_evalai(prediction), [normalise_evalai(answer) for answer in answers]
    )


def _leave_one_out(given: str, references: Sequence[str]) -> float:
    """Average ``min(1, matches / 3)`` over the subsets that leave one reference out.

    References are left out by place, never by value: equal ones must stay in.
    With ten references, 0, 1, 2, 3 and 4 matches give 0, 0.3, 0.6, 0.9 and 1.
    """
    if not references:
        return 0.0
    matches = [given == reference for reference in references]
    total = sum(matches)
    scores = [min(1.0, (total - match) / 3) for match in matches]
    return sum(scores) / len(scores)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the average normalised Levenshtein similarity of one answer (DocVQA, InfoVQA).

    Distance between stripped, lower-cased strings with single spaces, divided by the longer *raw*
    length (of the upper-cased text, as the code has it); the best reference counts, and a
    similarity below 0.5 counts 0. Exactly 0.5 is kept, as the code of all scorers does and the
    paper's formula (Biten et al. 2019) does not.
    """
    given = _single_spaced(prediction)
    best = 0.0
    for answer in answers:
        length = max(len(answer.upper()), len(prediction.upper()))
        wanted = _single_spaced(answer)
        # Each letter that one text has more must be put in: often too far apart already.
        if length and 1.0 - abs(len(given) - len(wanted)) / length < max(best, ANLS_THRESHOLD):
            continue
        distance = levenshtein(given, wanted)
        best = max(best, 1.0 - (distance / length if length else 0.0))
    return best if best >= ANLS_THRESHOLD else 0.0


def _single_spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())


def levenshtein(left: str, right: str) -> int:
    """Return the edit distance: insertions, deletions and replacements cost 1 each."""
    previous = list(range(len(right) + 1))
    for row, left_character in enumerate(left, start=1):
        current = [row]
        for column, right_character in enumerate(right, start=1):
            replaced = previous[column - 1] + (left_character != right_character)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if a number is within 5 % of an answer, or the texts are equal (ChartQA).

    Source: relaxed correctness of Methani et al. 2020 (PlotQA) in the pix2struct form. ``%`` at
    the end divides by 100. A target of 0, or a text on either side, is compared as text, without
    case. The prediction's outer spaces are stripped first.
    """
    return float(any(_within_tolerance(prediction.strip(), answer) for answer in answers))


def _within_tolerance(prediction: str, target: str) -> bool:
    value, wanted = _parse_number(prediction), _parse_number(target)
    if value is not None and wanted:
        return abs(value - wanted) / abs(wanted) <= RELAXED_TOLERANCE
    return prediction.lower() == target.lower()


def _parse_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class PopeResult:
    """Counts of a POPE run, "yes" being the positive class, and what follows from them."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def total(self) -> int:
        """Number of questions."""
        return (
            self.true_positives + self.false_positives + self.true_negatives + self.false_negatives
        )

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return _ratio(self.true_positives + self.true_negatives, self.total)

    @property
    def precision(self) -> float:
        """Share of right ones among the answers "yes", 0..1."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of questions with "yes" that were answered "yes", 0..1."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of *predictions* that are "yes", 0..1."""
        return _ratio(self.true_positives + self.false_positives, self.total)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def pope_answer(text: str) -> str:
    """Read "yes" or "no" out of an answer as the official POPE script does.

    Only the first sentence counts, commas vanish, and one of the words ``No``, ``not``, ``no``
    makes it "no". Everything else is "yes": the empty answer, ``NO`` and ``cannot`` too.
    """
    words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_label(answers: Sequence[str]) -> str | None:
    """Return the label of a POPE question, ``yes`` or ``no``; None where it is neither.

    Case, outer spaces and punctuation do not matter (``No``, ``no.``); several accepted answers
    must say the same. Every place that needs a label reads it here.
    """
    read = {answer.strip().strip(LABEL_MARKS).strip().casefold() for answer in answers}
    return read.pop() if len(read) == 1 and read <= {"yes", "no"} else None


LABEL_MARKS = ".,;:!\"'`*"


def pope_positive(answers: Sequence[str]) -> bool:
    """Say whether the label is yes.

    Raises:
        UserError: it is neither yes nor no.
    """
    label = pope_label(answers)
    if label is None:
        raise UserError(
            f"{in_words(answers)} is no label of POPE; pope_f1 needs yes or no as the one "
            "accepted answer."
        )
    return label == "yes"


def pope(predictions: Sequence[str], labels: Sequence[str]) -> PopeResult:
    """Count a POPE run (Li et al. 2023; ``official_pope``).

    Args:
        predictions: free text, read by :func:`pope_answer`.
        labels: read by :func:`pope_label`. (The official script takes every label but ``no`` for
            yes, ``No`` too; POPE's own files have ``yes`` and ``no``.)

    Raises:
        UserError: a label is neither yes nor no.
    """
    pairs = [
        (pope_answer(prediction), "yes" if pope_positive([label]) else "no")
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    return PopeResult(
        true_positives=pairs.count(("yes", "yes")),
        false_positives=pairs.count(("yes", "no")),
        true_negatives=pairs.count(("no", "no")),
        false_negatives=pairs.count(("no", "yes")),
    )


def pope_correct(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer, read as POPE reads it, is the label; 0 without a label."""
    return float(pope_answer(prediction) == pope_label(answers))


def in_words(answers: Sequence[str]) -> str:
    """Write accepted answers for an error: ``'maybe'``, ``['yes', 'no']``."""
    return repr(answers[0]) if len(answers) == 1 else repr(list(answers))


@dataclass(frozen=True)
class Metric:
    """A metric as the score table uses it."""

    per_answer: AnswerMetric
    """Judges one answer; stands in the table of predictions."""
    aggregate: Aggregate
    """Mean of ``per_answer``; or F1 of "yes" in each subset, and the mean of those for the task."""
    protocol: str
    """Whose implementation is followed, stated beside every score."""
    title: str
    """What a person reads."""
    version: int = 1
    """Raised when the same answers get other scores; scores of two versions are not compared."""
    label: Callable[[Sequence[str]], str | None] | None = None
    """Reads the label of a question, None where there is none; without it any text is one."""
    labels: tuple[str, ...] = ()
    """All labels there are, where they are few; each is tried as a constant answer."""
    references: int = 1
    """Accepted answers a question needs, so that a right answer can get the whole point."""


METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match, "mean", "manyeyes", "exact match"),
    "relaxed_accuracy": Metric(relaxed_accuracy, "mean", "lmms_eval_0.7.3", "relaxed accuracy"),
    "anls": Metric(anls, "mean", "lmms_eval_0.7.3", "ANLS"),
    "pope_f1": Metric(
        pope_correct,
        "f1",
        "official_pope",
        "F1, mean of subsets",
        version=2,
        label=pope_label,
        labels=("yes", "no"),
    ),
    "vqa_accuracy": Metric(
        vqa_accuracy, "mean", "official_vqa", "VQA accuracy", references=VQA_REFERENCES
    ),
    "textvqa": Metric(textvqa, "mean", "llava_m4c", "TextVQA accuracy", references=VQA_REFERENCES),
}
"""Name in a recipe -> metric."""


def metric_named(name: str) -> Metric:
    """Return a metric of the table.

    Raises:
        UserError: there is none of this name.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]
