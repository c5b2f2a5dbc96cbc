"""Runs one stage, whichever skin asks: take the result from the store, or make it, once.

A stage's result is looked up by its fingerprint: in ``out`` itself, then in the content store.
Otherwise the stage runs in ``<home>/work/<fingerprint>``, where a killed run continues; its result
goes to the store and from there to ``out``. Nothing here knows about KFP, DVC or the terminal.

Inputs may be pointers, and the result may be left as one (``store.delivery``). Where the store is a
bucket, the states of training are kept in it (``store.keeping``), because the next attempt may run
on another machine.

Under torchrun this is the part of process 0; the others are in ``following``. They learn from it
whether there is anything to train, and under which fingerprint, and how it ended.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact import provenance
from manyeyes.artifact.destination import claim_folder, free_place
from manyeyes.artifact.files import REPORT_FILE
from manyeyes.artifact.manifest import (
    MANIFEST,
    STATES,
    TEMPORARY,
    Header,
    Manifest,
    atomic_write_json,
    is_finished,
    open_artifact,
    read_manifest,
    write_manifest,
)
from manyeyes.artifact.marker import mark
from manyeyes.config.recipe.slices import slice_digest
from manyeyes.errors import GateRefused, Interrupted, ManyeyesError, UserError
from manyeyes.pipeline import code_lock, stages
from manyeyes.pipeline.fingerprint import (
    OUTSIDE_FIELD,
    Parents,
    Paths,
    agreed,
    fingerprint_text,
    given_paths,
    key_of,
    open_parents,
)
from manyeyes.pipeline.outside import Source, outside_of, outside_text, refuse_absent
from manyeyes.pipeline.stages import StageContext
from manyeyes.registry import known as registries
from manyeyes.runtime import ranks
from manyeyes.runtime.disk import AGAIN, explained, full_disk
from manyeyes.runtime.home import INPUTS, home, run_directory, stage_record
from manyeyes.runtime.locks import held
from manyeyes.runtime.progress import Progress
from manyeyes.steps import Task
from manyeyes.store import Store, open_store
from manyeyes.store.delivery import Delivery, left_behind, whole
from manyeyes.store.keeping import keeper, kept
from manyeyes.store.pointer import open_input
from manyeyes.tracking import StageRecord
from manyeyes.tracking.records import StageRun
from manyeyes.tracking.spool import is_recorded
from manyeyes.tracking.store import locate


@dataclass(frozen=True)
class StageCall:
    """One execution of one stage, with everything it depends on."""

    task: Task
    recipe_slice: str
    parents: Parents
    fingerprint: str
    readable: str
    """The fingerprint's readable form, on which this machine and the caller's agree."""
    sources: tuple[Source, ...]
    """What it reads from outside."""

    @property
    def work(self) -> Path:
        """Folder in which it is made, and in which a killed attempt continues."""
        return home() / "work" / self.fingerprint[:32]


def run_stage(
    stage: str,
    recipe_slice: str,
    *,
    inputs: Paths,
    out: Path,
    expert: str | None = None,
    fingerprint: str | None = None,
    by_pointer: bool = False,
) -> Manifest:
    """Bring one stage's result to ``out`` and return its manifest.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of what the stage sees of the recipe.
        inputs: role to artifact directory, or directories for one input per expert; a pointer into
            the store will do.
        out: where the result shall lie.
        expert: the expert that ``prealign`` trains.
        fingerprint: the readable fingerprint the caller computed, checked when given.
        by_pointer: leave a pointer in ``out`` instead of the files.

    Raises:
        UserError: an input or ``out`` cannot be used.
        GateRefused: ``validate`` or ``register`` said no; the evidence lies beside ``out``.
        Interrupted: the stage was told to stop and saved its state.
    """
    with _leading() as tell:
        claim_folder(out, inputs=given_paths(inputs))
        delivery = Delivery(open_store(), out, by_pointer)
        call = _call_of(Task(stage, expert), recipe_slice, inputs, fingerprint, delivery.store)
        progress = Progress(call.task.label)
        with explained(home(), AGAIN), _recorded(call, progress) as outcome, _lock(call):
            found = _find(call, delivery)
            if found is None:
                refuse_absent(call.sources)
                _make(call, delivery, progress)
                found = _keep(call, delivery), "done"
            manifest, outcome.state = found
            if fingerprint not in (None, call.readable):
                delivery.also_under(key_of(str(fingerprint)), manifest)
            outcome.manifest = manifest
        tell("end", manifest.digest)
    return manifest


@contextmanager
def _leading() -> Iterator[Callable[[str, str], None]]:
    """Join the processes that train with this one, if there are any; yield how to tell them."""
    if ranks.world_size() == 1:
        yield _tell_nobody
        return
    from manyeyes.training.distributed import joined

    with joined() as world:
        yield world.tell


def _tell_nobody(key: str, value: str) -> None:
    """Say nothing: there is no other process."""
    del key, value


def _call_of(
    task: Task, recipe_slice: str, inputs: Paths, given: str | None, store: Store
) -> StageCall:
    """Open the inputs and find the key, on which this machine and the caller's must agree.

    Raises:
        UserError: an input cannot be used.
        ManyeyesError: the fingerprint is not the ``given`` one.
    """
    stage = task.stage
    parents = open_parents(stage, inputs, lambda path, kind: open_input(store, path, kind))
    sources = outside_of(stage, recipe_slice, fetch=True)
    own = fingerprint_text(stage, recipe_slice, parents.digests, outside_text(sources))
    text = agreed(given, own)
    if text is None:
        raise _disagreement(stage, str(given), own, sources)
    return StageCall(task, recipe_slice, parents, key_of(text), text, tuple(sources))


def _disagreement(stage: str, given: str, own: str, sources: Sequence[Source]) -> ManyeyesError:
    """Say which of the inputs is not what it was where the pipeline was built."""
    theirs, ours = given.split("."), own.split(".")
    if len(theirs) == len(ours) and theirs[OUTSIDE_FIELD] != ours[OUTSIDE_FIELD]:
        here = ", ".join(f"{source.label} {str(source.digest)[:12]}" for source in sources)
        return ManyeyesError(
            f"Stage {stage} reads other content here than where the pipeline was built (here: "
            f"{here or 'nothing from outside'}); bring the same there, or start it again."
        )
    return ManyeyesError(
        f"Stage {stage} was started with fingerprint {given}, but its inputs give {own}: "
        "the inputs changed since the pipeline was built; start it again."
    )


@dataclass
class _Outcome:
    state: str = "failed"
    manifest: Manifest | None = None


@contextmanager
def _recorded(call: StageCall, progress: Progress) -> Iterator[_Outcome]:
    """Record how the stage ended, in the run's folder and for the tracker."""
    outcome = _Outcome()
    started, clock = datetime.now(UTC), time.monotonic()
    progress.start()
    try:
        yield outcome
    except BaseException as error:
        match error:
            case Interrupted():
                outcome.state = "stopped"
            case GateRefused():
                outcome.state = "refused"
        with suppress(OSError):  # a disk that is full now is what the error at hand may be about
            _write_record(call, outcome, progress, started, time.monotonic() - clock)
        raise
    _write_record(call, outcome, progress, started, time.monotonic() - clock)


def _write_record(
    call: StageCall, outcome: _Outcome, progress: Progress, started: datetime, seconds: float
) -> None:
    progress.done(outcome.state)
    task = call.task
    record: dict[str, JsonValue] = {
        "stage": task.stage,
        "expert": task.expert,
        "state": outcome.state,
        "fingerprint": call.fingerprint,
        "code": {**code_lock.code_of(task.stage, call.recipe_slice)},
        "slice": call.recipe_slice,
        "outside": {source.label: source.digest for source in call.sources},
        "parents": dict(call.parents.digests),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "digest": outcome.manifest.digest if outcome.manifest else None,
        "details": outcome.manifest.details if outcome.manifest else {},
    }
    atomic_write_json(stage_record(run_directory(), task.slug), record)


def _find(call: StageCall, delivery: Delivery) -> tuple[Manifest, str] | None:
    """Look for the result in ``out`` (``current``) and in the store (``cached``)."""
    present = _manifest_if_current(call, delivery.out)
    if present is not None:
        _remove(call.work)
        return present, "current"
    with explained(delivery.out, AGAIN):
        found = delivery.fetch(call.fingerprint)
    if found is not None and not stages.why_again(call.task.stage, found.details):
        _remove(call.work)
        return found, "cached"
    return None


def _keep(call: StageCall, delivery: Delivery) -> Manifest:
    """Store and deliver what was made; what only its making needed goes."""
    manifest = read_manifest(call.work)
    shutil.rmtree(call.work / STATES, ignore_errors=True)
    with explained(delivery.out, AGAIN):
        delivery.keep(call.work, manifest)
    _remove(call.work)
    states = keeper(delivery.store, call.fingerprint)
    if states is not None:
        states.clear()
    return manifest


def _remove(work: Path) -> None:
    """Remove a work directory whose result is kept, or what a kill left of it.

    The manifest goes first: what is there of a directory half removed must not pass for a result.
    """
    (work / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _manifest_if_current(call: StageCall, out: Path) -> Manifest | None:
    if not is_finished(out):
        return None
    try:
        manifest = read_manifest(out)
        if manifest.fingerprint != call.fingerprint:
            return None
        if stages.why_again(call.task.stage, manifest.details):
            return None
        return open_artifact(out, call.task.step.writes)
    except UserError:  # damaged: it is made or fetched again, as the error would advise
        return None


def _make(call: StageCall, delivery: Delivery, progress: Progress) -> None:
    """Run the stage in its work directory, which may hold an earlier, killed attempt."""
    work = call.work
    run = StageRecord.describe(call.task, call.recipe_slice, call.fingerprint, work)
    if is_finished(work):
        _record_finished(call, run)
        return
    work.mkdir(parents=True, exist_ok=True)
    for unfinished in work.rglob(TEMPORARY):
        unfinished.unlink()  # of a write that a kill cut off; it would be listed with the result
    clock = time.monotonic()
    with StageRecord.open(run) as record:
        record.parents(call.parents.manifests)
        for note in call.parents.notes:
            progress.note(note)
        if call.task.stage == "register":
            registries.remember(locate().uri)
        with _leading() as tell:
            tell("train", call.fingerprint)
        try:
            with (
                _whole_inputs(call, delivery.store) as paths,
                kept(keeper(delivery.store, call.fingerprint), work),
            ):
                context = StageContext(paths, work, progress)
                details = stages.ready(call.task.stage, call.recipe_slice, context)()
        except GateRefused as refusal:
            evidence = _keep_evidence(call, delivery)
            raise GateRefused(f"{refusal} The full report is {evidence}.") from None
        except OSError as error:
            if full_disk(error) is not None:
                raise  # run_stage explains it
            raise _disk_error(error) from error
        seconds = round(time.monotonic() - clock, 2)
        facts: dict[str, JsonValue] = {**details, "seconds": seconds}
        if notes := [*progress.notes, *record.recorder.notes]:
            facts["notes"] = list(notes)
        manifest = write_manifest(work, _header(call, facts))
        record.finish(work, manifest)
    for note in record.recorder.notes:
        progress.note(note)


def _whole_inputs(call: StageCall, store: Store) -> AbstractContextManager[dict[str, Path]]:
    """Fetch what the inputs stand for; what the stage can read in the bucket stays there."""
    return whole(store, call.parents.paths, home() / INPUTS, left_behind(call.task.stage))


def _record_finished(call: StageCall, run: StageRun) -> None:
    """Record what an attempt made that was killed before it could say so."""
    if not is_recorded(run):
        with StageRecord.open(run) as record:
            record.parents(call.parents.manifests)
            record.finish(call.work, read_manifest(call.work))


def _header(call: StageCall, details: dict[str, JsonValue]) -> Header:
    task = call.task
    return Header(
        kind=task.step.writes,
        stage=task.stage,
        name=task.expert or task.stage,
        recipe_slice=slice_digest(call.recipe_slice),
        fingerprint=call.fingerprint,
        parents=call.parents.digests,
        code=code_lock.code_digest(task.stage, call.recipe_slice),
        revision=provenance.revision(),
        libraries=provenance.libraries(),
        seed=stages.seed_of(call.recipe_slice),
        details=details,
    )


def _keep_evidence(call: StageCall, delivery: Delivery) -> str:
    """Move what a refused gate wrote to where no run takes it for a result; say where it is.

    That is beside ``out``, but nobody looks beside a pointer. A pod takes its disk with it, so from
    there the evidence goes to the store, under no fingerprint; here it lies in the folder of the
    run.
    """
    work = call.work
    if delivery.by_pointer and delivery.store.is_remote:
        manifest = write_manifest(work, _header(call, {"refused": True}))
        store = delivery.store
        store.remember("", store.put(work, manifest), manifest.digest)
        shutil.rmtree(work)
        return f"in the content store: manyeyes data pull {manifest.digest} --out FOLDER"
    beside = delivery.out.with_name(delivery.out.name + ".refused")
    in_run = run_directory() / f"{call.task.slug}.refused"
    place = free_place(in_run if delivery.by_pointer else beside)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work, place)
    mark(place)
    return str(place / REPORT_FILE)


def _disk_error(error: OSError) -> ManyeyesError:
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"Cannot write {error.filename}: {error.strerror}; check its permissions.")
    return ManyeyesError(f"{type(error).__name__}: {error}.")


@contextmanager
def _lock(call: StageCall) -> Iterator[None]:
    """Let one process at a time make one result; a second one finds it in the store."""
    with held(home() / "locks" / f"{call.fingerprint[:32]}.lock"):
        yield
