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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from manyeyes import steps
from manyeyes.artifact import provenance
from manyeyes.artifact.destination import claim_folder, free_place
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
from manyeyes.registry import known as registries
from manyeyes.runtime import ranks
from manyeyes.runtime.disk import AGAIN, explained, full_disk
from manyeyes.runtime.home import INPUTS, home, run_directory
from manyeyes.runtime.locks import held
from manyeyes.runtime.progress import Progress
from manyeyes.store import open_store
from manyeyes.store.delivery import Delivery, left_behind, whole
from manyeyes.store.keeping import keeper, kept
from manyeyes.store.pointer import open_input
from manyeyes.tracking import StageRecord
from manyeyes.tracking.spool import is_recorded
from manyeyes.tracking.store import locate

REPORT = "report.html"
"""What a refused gate wrote for people."""


@dataclass(frozen=True)
class StageCall:
    """One execution of one stage, with everything it depends on."""

    stage: str
    expert: str | None
    recipe_slice: str
    parents: Parents
    fingerprint: str
    sources: tuple[Source, ...]
    """What it reads from outside."""

    @property
    def label(self) -> str:
        """Name in progress lines and records: ``sft``, ``prealign:clip``."""
        return f"{self.stage}:{self.expert}" if self.expert else self.stage


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
        manifest = _run_stage(
            stage, recipe_slice, inputs, out, expert, fingerprint, by_pointer=by_pointer
        )
        tell("end", manifest.digest)
    return manifest


@contextmanager
def _leading() -> Iterator[Callable[[str, str], None]]:
    """Join the processes that train with this one, if there are any; yield how to tell them."""
    if ranks.world_size() == 1:
        yield _tell_nobody
        return
    from manyeyes.train.distributed import joined

    with joined() as world:
        yield world.tell


def _tell_nobody(key: str, value: str) -> None:
    """Say nothing: there is no other process."""
    del key, value


def _run_stage(
    stage: str,
    recipe_slice: str,
    inputs: Paths,
    out: Path,
    expert: str | None,
    fingerprint: str | None,
    *,
    by_pointer: bool,
) -> Manifest:
    claim_folder(out, inputs=given_paths(inputs))
    store = open_store()
    parents = open_parents(stage, inputs, lambda path, kind: open_input(store, path, kind))
    sources = outside_of(stage, recipe_slice, fetch=True)
    own = fingerprint_text(stage, recipe_slice, parents.digests, outside_text(sources))
    text = agreed(fingerprint, own)
    if text is None:
        raise _disagreement(stage, str(fingerprint), own, sources)
    call = StageCall(stage, expert, recipe_slice, parents, key_of(text), tuple(sources))
    progress = Progress(call.label)
    started = datetime.now(UTC)
    clock = time.monotonic()
    with explained(home(), AGAIN), _recorded(call, progress, started, clock) as outcome:
        with _lock(call):
            delivery = Delivery(store, out, by_pointer)
            manifest, outcome.state = _obtain(call, delivery, progress)
            if fingerprint not in (None, text):
                delivery.also_under(key_of(str(fingerprint)), manifest)
        outcome.manifest = manifest
    return manifest


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
def _recorded(
    call: StageCall, progress: Progress, started: datetime, clock: float
) -> Iterator[_Outcome]:
    """Record how the stage ended, in the run's folder and for the tracker."""
    outcome = _Outcome()
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
            _write_record(call, outcome, progress, started, clock)
        raise
    _write_record(call, outcome, progress, started, clock)


def _write_record(
    call: StageCall, outcome: _Outcome, progress: Progress, started: datetime, clock: float
) -> None:
    progress.done(outcome.state)
    record: dict[str, JsonValue] = {
        "stage": call.stage,
        "expert": call.expert,
        "state": outcome.state,
        "fingerprint": call.fingerprint,
        "code": {**code_lock.code_of(call.stage, call.recipe_slice)},
        "slice": call.recipe_slice,
        "outside": {source.label: source.digest for source in call.sources},
        "parents": dict(call.parents.digests),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
        "digest": outcome.manifest.digest if outcome.manifest else None,
        "details": outcome.manifest.details if outcome.manifest else {},
    }
    atomic_write_json(run_directory() / "stages" / f"{call.label.replace(':', '-')}.json", record)


def _obtain(call: StageCall, delivery: Delivery, progress: Progress) -> tuple[Manifest, str]:
    """Find or make the result; also say whether it was ``current``, ``cached`` or ``done``."""
    work = home() / "work" / call.fingerprint[:32]
    present = _manifest_if_current(call, delivery.out)
    if present is not None:
        _remove(work)
        return present, "current"
    with explained(delivery.out, AGAIN):
        found = delivery.fetch(call.fingerprint)
    if found is not None and not stages.why_again(call.stage, found.details):
        _remove(work)
        return found, "cached"
    refuse_absent(call.sources)
    _make(call, work, delivery, progress)
    manifest = read_manifest(work)
    shutil.rmtree(work / STATES, ignore_errors=True)
    with explained(delivery.out, AGAIN):
        delivery.keep(work, manifest)
    _remove(work)
    states = keeper(delivery.store, call.fingerprint)
    if states is not None:
        states.clear()
    return manifest, "done"


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
        if stages.why_again(call.stage, manifest.details):
            return None
        return open_artifact(out, steps.step(call.stage).writes)
    except UserError:  # damaged: it is made or fetched again, as the error would advise
        return None


def _make(call: StageCall, work: Path, delivery: Delivery, progress: Progress) -> None:
    """Run the stage in its work directory, which may hold an earlier, killed attempt."""
    if is_finished(work):
        _record_finished(call, work)
        return
    work.mkdir(parents=True, exist_ok=True)
    for unfinished in work.rglob(TEMPORARY):
        unfinished.unlink()  # of a write that a kill cut off; it would be listed with the result
    clock = time.monotonic()
    run = StageRecord.describe(call.stage, call.expert, call.recipe_slice, call.fingerprint, work)
    with StageRecord.open(run) as record:
        record.parents(call.parents.manifests)
        for note in call.parents.notes:
            progress.note(note)
        if call.stage == "register":
            registries.remember(locate().uri)
        with _leading() as tell:
            tell("train", call.fingerprint)
        try:
            leave = left_behind(call.stage)
            with (
                whole(delivery.store, call.parents.paths, home() / INPUTS, leave) as paths,
                kept(keeper(delivery.store, call.fingerprint), work),
            ):
                details = stages.call(call.stage, call.recipe_slice, paths, work, progress)
        except GateRefused as refusal:
            evidence = _keep_evidence(call, work, delivery)
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


def _record_finished(call: StageCall, work: Path) -> None:
    """Record what an attempt made that was killed before it could say so."""
    run = StageRecord.describe(call.stage, call.expert, call.recipe_slice, call.fingerprint, work)
    if not is_recorded(run):
        with StageRecord.open(run) as record:
            record.parents(call.parents.manifests)
            record.finish(work, read_manifest(work))


def _header(call: StageCall, details: dict[str, JsonValue]) -> Header:
    return Header(
        kind=steps.step(call.stage).writes,
        stage=call.stage,
        name=call.expert or call.stage,
        recipe_slice=slice_digest(call.recipe_slice),
        fingerprint=call.fingerprint,
        parents=call.parents.digests,
        code=code_lock.code_digest(call.stage, call.recipe_slice),
        revision=provenance.revision(),
        libraries=provenance.libraries(),
        seed=stages.seed_of(call.recipe_slice),
        details=details,
    )


def _keep_evidence(call: StageCall, work: Path, delivery: Delivery) -> str:
    """Move what a refused gate wrote to where no run takes it for a result; say where it is.

    That is beside ``out``, but nobody looks beside a pointer. A pod takes its disk with it, so from
    there the evidence goes to the store, under no fingerprint; here it lies in the folder of the
    run.
    """
    if delivery.by_pointer and delivery.store.is_remote:
        manifest = write_manifest(work, _header(call, {"refused": True}))
        store = delivery.store
        store.remember("", store.put(work, manifest), manifest.digest)
        shutil.rmtree(work)
        return f"in the content store: manyeyes data pull {manifest.digest} --out FOLDER"
    beside = delivery.out.with_name(delivery.out.name + ".refused")
    in_run = run_directory() / f"{call.label.replace(':', '-')}.refused"
    place = free_place(in_run if delivery.by_pointer else beside)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work, place)
    mark(place)
    return str(place / REPORT)


def _disk_error(error: OSError) -> ManyeyesError:
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"Cannot write {error.filename}: {error.strerror}; check its permissions.")
    return ManyeyesError(f"{type(error).__name__}: {error}.")


@contextmanager
def _lock(call: StageCall) -> Iterator[None]:
    """Let one process at a time make one result; a second one finds it in the store."""
    with held(home() / "locks" / f"{call.fingerprint[:32]}.lock"):
        yield
