"""``explain``: per stage, is its result at hand, or will it run, and why.

The answer comes from the same fingerprints the runner uses, so it is right for every skin. A stage
below one that will run cannot be known exactly: it runs too, unless that one's new result turns
out equal to the old.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from manyeyes import steps
from manyeyes.fingerprint import fingerprint
from manyeyes.home import home
from manyeyes.recipe import Recipe
from manyeyes.recipe.slices import slice_json
from manyeyes.store import Store, open_store


@dataclass(frozen=True)
class Explanation:
    """What will happen to one stage."""

    stage: str
    expert: str | None
    cached: bool
    reason: str
    fingerprint: str | None
    """None while a parent's content is not known."""
    digest: str | None

    @property
    def label(self) -> str:
        """``sft``, ``prealign:clip``."""
        return f"{self.stage}:{self.expert}" if self.expert else self.stage


def explain(recipe: Recipe) -> list[Explanation]:
    """Explain every stage of a recipe, in the order of the pipeline."""
    store = open_store()
    answers: dict[str, Explanation] = {}
    for step in steps.STEPS:
        experts = list(recipe.prealign.experts) if step.per_expert else [None]
        for expert in experts:
            answer = _explain_one(recipe, step, expert, answers, store)
            answers[answer.label] = answer
    return list(answers.values())


def _explain_one(
    recipe: Recipe,
    step: steps.Step,
    expert: str | None,
    answers: Mapping[str, Explanation],
    store: Store,
) -> Explanation:
    parents = dict(_parents(recipe, step, answers))
    text = slice_json(recipe, step.name, expert)
    waiting = [answer.label for answer in parents.values() if answer.digest is None]
    if waiting:
        reason = f"will run: {', '.join(waiting)} will run first"
        return Explanation(step.name, expert, False, reason, None, None)
    digests = {role: str(answer.digest) for role, answer in parents.items()}
    key = fingerprint(step.name, text, digests)
    entry = store.lookup(key)
    if entry is not None:
        reason = "cached: the content store has the result of these inputs"
        return Explanation(step.name, expert, True, reason, key, entry.digest)
    reason = f"will run: {_why(recipe.name, step, expert, text, digests)}"
    return Explanation(step.name, expert, False, reason, key, None)


def _parents(
    recipe: Recipe, step: steps.Step, answers: Mapping[str, Explanation]
) -> Iterator[tuple[str, Explanation]]:
    for needed in step.inputs:
        if needed.many:
            for expert in recipe.prealign.experts:
                yield f"expert.{expert}", answers[f"{needed.source}:{expert}"]
        else:
            yield needed.role, answers[needed.source]


def _why(
    name: str, step: steps.Step, expert: str | None, text: str, digests: Mapping[str, str]
) -> str:
    """Compare with the last time this stage ran for a recipe of this name."""
    label = f"{step.name}-{expert}" if expert else step.name
    record = _last_record(name, label)
    if record is None:
        return "it has not run yet"
    if record["state"] in ("failed", "stopped", "refused"):
        return f"the last attempt {record['state']}"
    reasons = []
    if record["slice"] != text:
        changes = _changes(json.loads(str(record["slice"])), json.loads(text))
        reasons.append(f"the recipe changed ({'; '.join(changes)})")
    if record["code"] != steps.code_digest(step.name):
        reasons.append("its code changed")
    before = record["parents"]
    if isinstance(before, dict):
        changed = [role for role, digest in digests.items() if before.get(role) != digest]
        reasons += [f"the content of {role} changed" for role in changed]
    return ", ".join(reasons) or "its result is no longer in the content store"


def _last_record(name: str, label: str) -> dict[str, JsonValue] | None:
    runs = home() / "runs"
    found = [*runs.glob(f"{name}/stages/{label}.json"), *runs.glob(f"{name}-*/stages/{label}.json")]
    for path in sorted(found, key=_modified, reverse=True):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            return record
    return None


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _changes(before: JsonValue, after: JsonValue, path: str = "") -> list[str]:
    """List the leaves that differ, as ``key: old -> new``."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        return [
            change
            for key in keys
            for change in _changes(
                before.get(key), after.get(key), f"{path}.{key}" if path else key
            )
        ]
    if before == after:
        return []
    return [f"{path}: {json.dumps(before)} -> {json.dumps(after)}"]
