"""``explain``: per stage, is its result at hand, or will it run, and why.

The answer comes from the same fingerprints the runner uses, so it is right for every skin. A stage
below one that will run cannot be known exactly: it runs too, unless that one's new result turns
out equal to the old.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import slice_json, tasks_of
from manyeyes.errors import ManyeyesError
from manyeyes.pipeline import code_lock, stages
from manyeyes.pipeline.fingerprint import fingerprint
from manyeyes.pipeline.outside import Source, outside_of, outside_text, refuse_absent
from manyeyes.runtime.home import home, stage_record
from manyeyes.steps import Task
from manyeyes.store import Entry, Store, open_store


@dataclass(frozen=True)
class Explanation:
    """What will happen to one stage."""

    task: Task
    cached: bool
    reason: str
    fingerprint: str | None
    """None while a parent's content is not known."""
    digest: str | None

    def as_json(self) -> JsonValue:
        """Return what a program wants to know of it."""
        return {
            "stage": self.task.stage,
            "expert": self.task.expert,
            "cached": self.cached,
            "reason": self.reason,
            "fingerprint": self.fingerprint,
            "digest": self.digest,
        }


def explain(recipe: Recipe) -> list[Explanation]:
    """Explain every stage of a recipe, in the order of the pipeline."""
    store = open_store()
    answers: dict[Task, Explanation] = {}
    for task in tasks_of(recipe):
        answers[task] = _explain_one(recipe, task, answers, store)
    return list(answers.values())


def check_outside(recipe: Recipe) -> None:
    """Refuse to start a pipeline on this machine that lacks what a stage reads from outside.

    Raises:
        UserError: something is wrong or absent.
    """
    for task in tasks_of(recipe):
        text = slice_json(recipe, task.stage, task.expert)
        refuse_absent(outside_of(task.stage, text, fetch=True))


def _explain_one(
    recipe: Recipe, task: Task, answers: Mapping[Task, Explanation], store: Store
) -> Explanation:
    parents = dict(_parents(recipe, task, answers))
    text = slice_json(recipe, task.stage, task.expert)
    sources = outside_of(task.stage, text)
    waiting = [answer.task.label for answer in parents.values() if answer.digest is None]
    if waiting:
        reason = f"will run: {', '.join(waiting)} will run first"
        return Explanation(task, False, reason, None, None)
    digests = {role: str(answer.digest) for role, answer in parents.items()}
    if absent := [source for source in sources if source.digest is None]:
        refuse_absent([source for source in absent if not source.on_hub])
        reason = f"will run: {absent[0].label} is not here, so that its key is not known"
        return Explanation(task, False, reason, None, None)
    key = fingerprint(task.stage, text, digests, outside_text(sources))
    edited = _edited(code_lock.code_of(task.stage, text))
    entry = store.lookup(key)
    if entry is not None and (again := _why_again(task.stage, entry)):
        return Explanation(task, False, f"will run: {again}{edited}", key, None)
    if entry is not None:
        reason = f"cached: the content store has the result of these inputs{edited}"
        return Explanation(task, True, reason, key, entry.digest)
    reason = f"will run: {_why(recipe.name, task, text, digests, sources)}{edited}"
    return Explanation(task, False, reason, key, None)


def _why_again(stage: str, entry: Entry) -> str:
    """Say why a stage runs though its result is in the store; nothing if it does not."""
    try:
        return stages.why_again(stage, entry.details)
    except ManyeyesError as error:
        return f"whether its result holds is not known: {str(error).rstrip('.')}"


def _parents(
    recipe: Recipe, task: Task, answers: Mapping[Task, Explanation]
) -> Iterator[tuple[str, Explanation]]:
    for needed in task.step.inputs:
        if needed.many:
            for expert in recipe.prealign.experts:
                yield f"expert.{expert}", answers[Task(needed.source, expert)]
        else:
            yield needed.role, answers[Task(needed.source)]


def _why(
    name: str, task: Task, text: str, digests: Mapping[str, str], sources: Sequence[Source]
) -> str:
    """Compare with the last time this stage ran for a recipe of this name."""
    record = _last_record(name, task)
    if record is None:
        return "it has not run yet"
    if record["state"] in ("failed", "stopped", "refused"):
        return f"the last attempt {record['state']}"
    reasons = []
    if record["slice"] != text:
        changes = _changes(json.loads(str(record["slice"])), json.loads(text))
        reasons.append(f"the recipe changed ({'; '.join(changes)})")
    reasons += _code_changes(record["code"], code_lock.code_of(task.stage, text))
    reasons += _outside_changes(record.get("outside"), sources)
    before = record["parents"]
    if isinstance(before, dict):
        changed = [role for role, digest in digests.items() if before.get(role) != digest]
        reasons += [f"the content of {role} changed" for role in changed]
    return ", ".join(reasons) or "its result is no longer in the content store"


def _outside_changes(before: JsonValue, sources: Sequence[Source]) -> list[str]:
    """Name what is outside the pipeline and was other content the last time."""
    if not isinstance(before, dict):
        return []
    changes = []
    for source in sources:
        old = before.get(source.label)
        if old is not None and old != source.digest:
            verb = "moved" if source.label.startswith("the hub model") else "changed"
            changes.append(f"{source.label} {verb} ({_short(old)} -> {_short(source.digest)})")
    return changes


def _code_changes(before: JsonValue, code: Mapping[str, str]) -> list[str]:
    """Name the stage and the parts whose code is another one than the last time."""
    if not isinstance(before, dict):
        return ["its code changed"]
    changes = []
    for label, now in code.items():
        old = before.get(label)
        if old is None or old == now:
            continue  # a part that was not used is a change of the recipe
        if code_lock.EDITED in f"{old}{now}":
            changes.append(f"the code of {code_lock.said(label)} changed")
        else:
            changes.append(f"{code_lock.said(label)} has version {now} (before: {old})")
    return changes


def _edited(code: Mapping[str, str]) -> str:
    """Say whose installed code is not that of the lock, and is therefore in the key."""
    names = [
        code_lock.said(label) for label, version in code.items() if code_lock.EDITED in version
    ]
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f" (the installed code of {listed} differs from the lock, so it is in the key)"


def _short(digest: JsonValue) -> str:
    return str(digest)[:12]


def _last_record(name: str, task: Task) -> dict[str, JsonValue] | None:
    runs = home() / "runs"
    folders = [runs / name, *runs.glob(f"{name}-*")]
    found = [path for run in folders if (path := stage_record(run, task.slug)).exists()]
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
