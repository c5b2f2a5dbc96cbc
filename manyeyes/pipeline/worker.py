"""A pipeline step as a process of its own: what surrounds ``run_stage`` under an orchestrator.

The KFP components make one call into this module, on a laptop and in a pod. It adds only what a
process needs that a function does not: a log file of its own, a stop signal that becomes
``Interrupted``, an exit code, and a line in the run's journal that says how the step ended, because
kfp.local reports of a failed step no more than its name. After one step failed or was stopped, the
steps that kfp.local would still start (the other experts of a loop) refuse at once.

Where the environment says that a stage trains elsewhere (``manyeyes.pipeline.launch``), the step
has it made there and then takes it from the store, like any result that exists.

A step leaves a pointer into the store for the next instead of its files. Where the store is a
bucket (``MANYEYES_STORE``), it leaves its records there too, for the steps that gather them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from manyeyes.errors import Interrupted, ManyeyesError
from manyeyes.runtime import ranks
from manyeyes.runtime.instruction_set import limit_alike
from manyeyes.runtime.journal import JOURNAL, Event, EventKind, read_journal, write_event
from manyeyes.runtime.progress import labelled
from manyeyes.steps import Task, slug_of

LOGS = "MANYEYES_LOGS"
"""Names the folder in which every step process of a run keeps its log."""
EXPERTS = "*"
"""In a fingerprint, stands for the digests of the experts, which a pipeline collects in a list."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

EXECUTOR_REWRITES = ("python3", "/kfp-workspace")
"""Texts that kfp.local rewrites inside parameter values."""
_ESCAPES = {
    "python3": "\\u0070ython3",
    "/kfp-workspace": "\\u002fkfp-workspace",
    "{{": "\\u007b\\u007b",
}
"""What ``protect`` writes instead; ``{{`` begins KFP's placeholders."""


def protect(text: str) -> str:
    """Escape in a JSON text what KFP would rewrite in a parameter; the JSON stays equal.

    kfp.local replaces ``python3`` by the path of the interpreter and resolves ``{{$``; the compiler
    resolves ``{{channel:``. Such text stands in JSON only inside strings, where an escape is free.
    """
    for plain, escaped in _ESCAPES.items():
        text = text.replace(plain, escaped)
    return text


def reveal(text: str) -> str:
    """Undo ``protect``: write the JSON in its canonical form again."""
    value = json.loads(text)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def run_step(
    stage: str,
    recipe_slice: str,
    *,
    inputs: Mapping[str, str | Sequence[str]],
    out: str,
    fingerprint: str,
    expert: str | None = None,
    expert_digests: Sequence[str] = (),
) -> str:
    """Run one stage as a step of a pipeline and return its content digest.

    Args:
        stage: name in the step table.
        recipe_slice: JSON of what the stage sees of the recipe, as ``protect`` wrote it.
        inputs: role to the path of an artifact, or to a list of paths.
        out: where the result shall lie.
        fingerprint: what the pipeline expects; ``EXPERTS`` in it stands for ``expert_digests``.
        expert: the expert that ``prealign`` trains.
        expert_digests: content digests of the collected experts, in any order.

    Raises:
        SystemExit: the stage failed; the code is the error's exit code.
    """
    from manyeyes.pipeline.following import follow_stage
    from manyeyes.pipeline.launch import have_made
    from manyeyes.pipeline.runner import run_stage

    limit_alike()
    paths = {role: _paths(given) for role, given in inputs.items()}
    label = labelled(Task(stage, expert).label)
    with _step(label, out) as event, _records(gather=stage == "register"):
        experts = paths.get("experts", [])
        if isinstance(experts, list) and experts:
            fingerprint = _with_experts(fingerprint, experts, expert_digests)
        text = reveal(recipe_slice)
        fingerprint = _with_outside(fingerprint, stage, text)
        have_made(stage, text, inputs=paths, out=out, fingerprint=fingerprint, expert=expert)
        if ranks.rank():
            return follow_stage(stage, text, inputs=paths, expert=expert)
        manifest = run_stage(
            stage,
            text,
            inputs=paths,
            out=Path(out),
            expert=expert,
            fingerprint=fingerprint,
            by_pointer=True,
        )
        event["digest"] = manifest.digest
    return manifest.digest


def expert_items(plan: Sequence[Mapping[str, str]], **digests: str) -> list[dict[str, str]]:
    """Complete each expert's fingerprint with the content digests of the stage's inputs.

    A loop of kfp.local must not read an outer task's output parameter in its body, so this step
    puts everything an iteration needs into its item.

    Args:
        plan: per expert its name, its slice and the fingerprint with ``{role}`` for each digest.
        digests: role to content digest.
    """
    return [{**entry, "fingerprint": _fill(entry["fingerprint"], digests)} for entry in plan]


def finalize_run(state: str) -> None:
    """End a pipeline run: send what tracking spooled, write the summary. Runs after any outcome.

    Args:
        state: how the pipeline ended, in KFP's words (``finalize.STATUS``).

    Raises:
        SystemExit: it failed; the code is the error's exit code.
    """
    with _step("finalize", "", stoppable=False), _records(gather=True):
        from manyeyes.pipeline.finalize import finalize

        finalize(state)


def _paths(given: str | Sequence[str]) -> Path | list[Path]:
    return Path(given) if isinstance(given, str) else [Path(path) for path in given]


def _fill(fingerprint: str, digests: Mapping[str, str]) -> str:
    for role, digest in digests.items():
        fingerprint = fingerprint.replace("{" + role + "}", digest)
    return fingerprint


def _with_experts(fingerprint: str, experts: Sequence[Path], digests: Sequence[str]) -> str:
    """Put the experts' digests into a fingerprint, in the order of their names.

    Raises:
        ManyeyesError: the digests that the pipeline collected are not those of the checkpoints.
    """
    from manyeyes.store import open_store
    from manyeyes.store.pointer import read_input

    store = open_store()
    manifests = sorted((read_input(store, path) for path in experts), key=lambda found: found.name)
    found = [manifest.digest for manifest in manifests]
    if sorted(found) != sorted(digests):
        raise ManyeyesError(
            "The collected experts are not those the pipeline announced: their content digests "
            "differ; start the run again."
        )
    return fingerprint.replace(EXPERTS, "+".join(found))


def _with_outside(fingerprint: str, stage: str, recipe_slice: str) -> str:
    """Put in what the stage reads from outside, where only this machine knows it.

    Raises:
        UserError: it is wrong.
    """
    from manyeyes.pipeline.fingerprint import OUTSIDE_FIELD
    from manyeyes.pipeline.outside import UNKNOWN, outside_of, outside_text

    fields = fingerprint.split(".", 3)
    if len(fields) > OUTSIDE_FIELD and fields[OUTSIDE_FIELD] == UNKNOWN:
        fields[OUTSIDE_FIELD] = outside_text(outside_of(stage, recipe_slice, fetch=True))
    return ".".join(fields)


@contextmanager
def _records(*, gather: bool) -> Iterator[None]:
    """Leave this step's records in the bucket, however it ends; first bring those of others."""
    from manyeyes.runtime.home import run_directory, run_name
    from manyeyes.store import open_store
    from manyeyes.store.records import Records

    records = Records(open_store(), run_name(), run_directory())
    if gather:
        records.bring()
    try:
        yield
    finally:
        records.send()


@contextmanager
def _step(label: str, out: str, *, stoppable: bool = True) -> Iterator[dict[str, str]]:
    """Surround a step: log file, stop signals, journal, exit code."""
    # Process 0 keeps the journal for all that torchrun started for this step.
    journal = None if ranks.rank() else os.environ.get(JOURNAL)
    process = os.getpid() if stoppable else 0

    def note(event: EventKind, digest: str = "", message: str = "", exit_code: int = 0) -> None:
        if journal:
            line = Event(label, event, out, digest, message, exit_code, process)
            write_event(Path(journal), line)

    if stoppable and journal and _is_ending(Path(journal)):
        note("skipped")
        raise SystemExit(Interrupted.exit_code)
    _redirect_output(label)
    before = {number: signal.signal(number, _stop) for number in _STOP_SIGNALS}
    note("started")
    facts: dict[str, str] = {}
    try:
        yield facts
    except Exception as error:
        traceback.print_exc()
        known = isinstance(error, ManyeyesError)
        code = error.exit_code if isinstance(error, ManyeyesError) else ManyeyesError.exit_code
        note("failed", message=str(error) if known else repr(error), exit_code=code)
        raise SystemExit(code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    note("finished", digest=facts.get("digest", ""))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # let the step save in peace
    raise Interrupted("Stopped; run the same command again to continue.")


def _is_ending(journal: Path) -> bool:
    return any(event.event == "failed" for event in read_journal(journal))


def _redirect_output(label: str) -> None:
    """Send what this process prints from here on to the step's own log."""
    folder = os.environ.get(LOGS)
    if not folder:
        return
    of = f".process-{ranks.rank()}" if ranks.rank() else ""
    path = Path(folder) / f"{slug_of(label)}{of}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
