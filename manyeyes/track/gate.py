"""The first gate: when a candidate may become champion.

A pure decision on scores: every visual task must gain enough over the blank image (a model that
does not look is no champion, whatever it guesses), and the primary score must not fall further
below the present champion's than allowed. Scores over different tasks are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.track.scores import Scores

if TYPE_CHECKING:
    from manyeyes.recipe.sections import GateSection

# Scores are sums of rounded shares: a difference this small is arithmetic, not a regression.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What the gate says, with every reason, for and against."""

    passed: bool
    reasons: tuple[str, ...]


def decide(candidate: Scores, champion: Scores | None, gate: GateSection) -> Verdict:
    """Decide whether ``candidate`` may become champion.

    Args:
        candidate: Its scores, in points.
        champion: Those of the present champion; None when there is none.
        gate: The recipe's thresholds, in points.
    """
    against = [*_no_scores(candidate), *_blind(candidate, gate)]
    if champion is None:
        comparison, refused = "there is no champion yet", False
    else:
        comparison, refused = _compare(candidate, champion, gate)
    if refused:
        against.append(comparison)
    if against:
        return Verdict(False, tuple(against))
    gains = [score.gain for score in candidate.tasks.values() if score.gain is not None]
    seen = [f"the smallest gain over a blank image is {min(gains):.1f} points"] if gains else []
    return Verdict(True, (comparison, *seen))


def _no_scores(candidate: Scores) -> list[str]:
    return [] if candidate.tasks else ["the candidate has no scores"]


def _blind(candidate: Scores, gate: GateSection) -> list[str]:
    """Say which tasks gain too little over the blank image."""
    return [
        f"{name} gains {score.gain:.1f} points over a blank image, "
        f"but at least {gate.min_gain_over_blind:.1f} are required"
        for name, score in sorted(candidate.tasks.items())
        if score.gain is not None and score.gain < gate.min_gain_over_blind - TOLERANCE
    ]


def _compare(candidate: Scores, champion: Scores, gate: GateSection) -> tuple[str, bool]:
    """Compare the primary score; also say whether the comparison speaks against the candidate."""
    missing = sorted(set(champion.tasks) - set(candidate.tasks))
    if missing:
        return f"the champion is scored on {', '.join(missing)}, the candidate is not", True
    shared = Scores(tasks={name: candidate.tasks[name] for name in champion.tasks})
    change = shared.average - champion.average
    text = (
        f"average {shared.average:.1f} against the champion's {champion.average:.1f} "
        f"({change:+.1f} points; a loss of {gate.max_regression:.1f} is allowed)"
    )
    return text, change < -gate.max_regression - TOLERANCE
