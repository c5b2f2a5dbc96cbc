"""The gate: when a candidate may become champion.

A pure decision on measurements, with three answers:

- *refused*: it answers too often nothing, or the same; or a task does not reach its share of the
  way from the floor (the better of a blank image and the best constant answer) to the highest
  score there is; or it is worse than the champion beyond doubt.
- *undecided*: the champion was not asked the same questions, or too few of them to tell.
- *promoted*: the lower end of the paired 95 % interval of the lead is no worse than allowed.

Scores of different questions are never compared, and nothing that is no number passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from manyeyes.evaluation.statistics import Comparison, Estimate, compare

if TYPE_CHECKING:
    from manyeyes.config.recipe.sections import GateSection
    from manyeyes.registry.scores import KeptScores, KeptTaskScore, Measurement

# Scores are sums of rounded shares: a difference this small is arithmetic, not a regression.
TOLERANCE = 1e-6
MOST_SHOWN = 30
"""Letters of an answer that a reason quotes."""
Decision = Literal["promoted", "refused", "undecided"]


@dataclass(frozen=True)
class Champion:
    """The present champion, as a candidate meets it."""

    name: str
    """As a person reads it: ``version 3``."""
    measurements: tuple[Measurement, ...]
    """Everything it was measured on, newest first."""
    weights: str = ""
    """Where its checkpoint is."""
    is_candidate: bool = False
    """Whether it is what asks: a champion that was measured again."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, with every reason, for and against."""

    decision: Decision
    reasons: tuple[str, ...]
    comparison: Comparison | None = None
    """The paired comparison with the champion, where there was one."""
    needed: int | None = None
    """Of an undecided comparison: about how many questions would decide it."""
    tasks: dict[str, Estimate] = field(default_factory=dict)
    """Lead over the champion per task, in points."""

    @property
    def passed(self) -> bool:
        """Whether the candidate may become champion."""
        return self.decision == "promoted"


def decide(candidate: Measurement, champion: Champion | None, gate: GateSection) -> Verdict:
    """Decide whether ``candidate`` may become champion.

    Args:
        candidate: Its measurement.
        champion: The present champion; None when there is none.
        gate: The recipe's thresholds.
    """
    against = alone(candidate.scores, gate)
    if champion is None:
        if against:
            return Verdict("refused", tuple(against))
        return Verdict("promoted", ("there is no champion yet", *_lowest(candidate.scores)))
    if champion.is_candidate:
        if against:
            stays = f"{champion.name} stays champion until another model takes its place"
            return Verdict("refused", (*against, stays))
        reason = f"{champion.name} is the champion already"
        return Verdict("promoted", (reason, *_lowest(candidate.scores)))
    found = _same_questions(candidate, champion)
    if found is None:
        if against:
            return Verdict("refused", tuple(against))
        return Verdict("undecided", (_other_questions(candidate.scores, champion),))
    versus = compare(candidate.unpacked(), found.unpacked())
    return _against_champion(candidate.scores, champion, versus, gate, against)


def alone(scores: KeptScores, gate: GateSection) -> list[str]:
    """Say what speaks against a candidate, whoever the champion is."""
    if not scores.tasks:
        return ["the candidate has no scores"]
    reasons = []
    for name, score in sorted(scores.tasks.items()):
        numbers = [score.value, score.highest]
        numbers += [number for number in (score.blind, score.floor) if number is not None]
        if not all(map(math.isfinite, numbers)):
            reasons.append(f"{name} has a score that is no finite number")
            continue
        reasons += [*_said(name, score, gate), *_gain(name, score, gate)]
    if not all(
        limit is None or math.isfinite(limit)
        for limit in (gate.max_regression, gate.min_gain, gate.max_empty, gate.max_equal)
    ):
        reasons.append("a limit of the gate is no finite number")
    return reasons


def _said(name: str, score: KeptTaskScore, gate: GateSection) -> list[str]:
    """Judge how often a model said nothing, or the same."""
    if score.num_empty > gate.max_empty * score.count + TOLERANCE:
        return [
            f"{name}: {score.num_empty} of {score.count} answers are empty, but at most "
            f"{_percent(gate.max_empty)} may be"
        ]
    most = max(gate.max_equal * score.count, score.num_equal_labels)
    if score.num_equal > most + TOLERANCE:
        return [
            f"{name}: {score.num_equal} of {score.count} answers are {_quoted(score.commonest)}, "
            f"but at most {_percent(gate.max_equal)} may be the same"
        ]
    return []


def _gain(name: str, score: KeptTaskScore, gate: GateSection) -> list[str]:
    """Judge the share of the way from the floor to the highest score."""
    if gate.min_gain is None:
        return []
    if score.floor is None or (score.visual and score.blind is None):
        return [
            f"{name} was not asked with a blank image (eval.blind), so it is not known what "
            "looking gains"
        ]
    if score.headroom is None:
        return [
            f"{name}: always answering {_quoted(score.constant)} scores {score.floor:.1f}, the "
            "highest score there is, so asking it shows nothing; ask more questions"
        ]
    if score.headroom < gate.min_gain - TOLERANCE:
        return [
            f"{name} scores {score.value:.1f}, which is {_percent(score.headroom)} of the way from "
            f"{score.floor:.1f} ({_floor_of(score)}) to {score.highest:.1f}, but at least "
            f"{_percent(gate.min_gain)} is required"
        ]
    return []


def _floor_of(score: KeptTaskScore) -> str:
    blank = score.visual and score.blind is not None and score.blind >= (score.floor or 0.0)
    return "a blank image" if blank else f"always {_quoted(score.constant)}"


def _lowest(scores: KeptScores) -> tuple[str, ...]:
    """Name the task that is nearest to its floor."""
    shares = {
        name: score.headroom for name, score in scores.tasks.items() if score.headroom is not None
    }
    if not shares:
        return ()
    least = min(sorted(shares), key=lambda name: shares[name])
    return (f"the task nearest its floor is {least}, {_percent(shares[least])} of the way up",)


def _same_questions(candidate: Measurement, champion: Champion) -> Measurement | None:
    """Return the champion's measurement whose questions the candidate was asked too.

    Where it was asked them more than once, that of the same code counts, then the best one: a
    worse measurement does not make it easier to beat.
    """
    same = [
        measured
        for measured in champion.measurements
        if measured.scores.tasks
        and set(measured.outcomes) == set(measured.scores.tasks)
        and not candidate.scores.differences(measured.scores)
    ]
    return max(
        same,
        key=lambda one: (one.scores.code == candidate.scores.code, one.scores.average),
        default=None,
    )


def _other_questions(scores: KeptScores, champion: Champion) -> str:
    """Say how the questions differ, and how the champion gets the same."""
    if champion.measurements:
        newest = champion.measurements[0]
        told = scores.differences(newest.scores) or ("its answers were not kept",)
        how = "; ".join(told)
    else:
        how = "its registration has no scores"
    place = f" ({champion.weights})" if champion.weights else ""
    return (
        f"the champion, {champion.name}, was not asked the same questions: {how}. Ask it the same: "
        f"run eval of this recipe with --checkpoint on the champion's weights{place}, register "
        "these weights with that report, then register this model again"
    )


def _against_champion(
    scores: KeptScores,
    champion: Champion,
    versus: Comparison,
    gate: GateSection,
    against: list[str],
) -> Verdict:
    lead, allowed = versus.average, gate.max_regression
    text = (
        f"average {versus.first:.1f} against {versus.second:.1f} of the champion, "
        f"{champion.name}, on the same {_questions(versus.count)}: {lead.value:+.1f} points "
        f"(95 % interval {lead.low:+.1f} to {lead.high:+.1f}; a loss of {allowed:.1f} is allowed)"
    )
    if not all(map(math.isfinite, (lead.value, lead.low, lead.high))):
        return Verdict("refused", (*against, "the comparison gives no finite number"), versus)
    if lead.high < -allowed - TOLERANCE:
        return Verdict("refused", (*against, text), versus, tasks=versus.tasks)
    if against:
        return Verdict("refused", tuple(against), versus, tasks=versus.tasks)
    if lead.low >= -allowed - TOLERANCE:
        reasons = (text, *_losses(versus), *_lowest(scores))
        return Verdict("promoted", reasons, versus, tasks=versus.tasks)
    needed = versus.questions_to_decide(allowed)
    more = (
        f"about {needed:,} questions would decide"
        if needed is not None
        else "no feasible number of questions would decide"
    )
    reasons = (f"{text}; {more}", *_losses(versus))
    return Verdict("undecided", reasons, versus, needed, versus.tasks)


def _losses(versus: Comparison) -> tuple[str, ...]:
    """Name the tasks that the champion does better beyond doubt, whatever the average says."""
    return tuple(
        f"{name} is worse than the champion's by {-lead.value:.1f} points (95 % interval "
        f"{lead.low:+.1f} to {lead.high:+.1f})"
        for name, lead in sorted(versus.tasks.items())
        if lead.high < 0.0
    )


def _questions(count: int) -> str:
    return "question" if count == 1 else f"{count:,} questions"


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "...")
