"""Running the pipeline here, through kfp.local.

kfp.local runs in a child process with a session of its own: its import takes seconds while the
caller can already draw; it prints everything, so its output goes to a file; it is configured by a
process-wide singleton; and what it starts can be killed as one group, so that nothing is orphaned.

Every step writes its start and its end into the run's journal. The caller follows the journal: it
raises the first failed step's own error, and after a failure or a signal it sends SIGTERM to the
steps that still run, which save and leave. kfp.local itself goes on, so that the exit handler runs.
A second signal, or steps that do not leave in time, end in SIGKILL. When the caller is
killed, the child notices the closed pipe and kills the group.

kfp.local's own cache stays off: every step asks the content store, which also knows what DVC and
the single verbs made, checks what it hands out, and lets each run have a full record.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pydantic import JsonValue

from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.config.recipe import Recipe
from manyeyes.errors import GateRefused, Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.worker import LOGS
from manyeyes.runtime.home import HOME, RUN, home
from manyeyes.runtime.journal import JOURNAL, Event, read_journal, write_event
from manyeyes.runtime.locks import HeldElsewhere, held, temporary
from manyeyes.runtime.progress import PROGRESS_FILE
from manyeyes.steps import PACKAGE, slug_of

ERRORS: dict[int, type[ManyeyesError]] = {
    error.exit_code: error for error in (ManyeyesError, UserError, GateRefused, Interrupted)
}
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0
"""Time between the first request to stop and SIGKILL: a step saves what it has."""


@dataclass(frozen=True)
class LocalRun:
    """Where one pipeline run keeps its files."""

    home: Path
    name: str

    @property
    def directory(self) -> Path:
        """Logs, progress, journal and settings of the run."""
        return self.home / "runs" / self.name

    @property
    def artifacts(self) -> Path:
        """Root of what kfp.local writes; emptied by the next run of this name."""
        return self.home / "kfp" / self.name

    @property
    def log(self) -> Path:
        """Everything kfp.local says."""
        return self.directory / "kfp.log"

    @property
    def logs(self) -> Path:
        """One log per step."""
        return self.directory / "logs"

    @property
    def journal(self) -> Path:
        """Start and end of all steps."""
        return self.directory / "journal.jsonl"

    @property
    def settings(self) -> Path:
        """What the child process is to run."""
        return self.directory / "kfp.json"


def run_local(
    recipe: Recipe,
    *,
    run: str,
    progress: Path,
    variants: Sequence[Recipe] = (),
    recorded: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, str]:
    """Run the whole pipeline of a recipe and wait for it.

    Args:
        recipe: the checked recipe.
        run: name of the run; the same name continues the same run.
        progress: file to which every step appends its progress lines.
        variants: recipes to compare (``manyeyes.kubeflow.pipelines.ablation``); runs their pipeline
        instead.
        recorded: entered once the run is this process's own, and left when it has ended: a call
            that is refused records nothing.

    Returns:
        Per step (``sft``, ``prealign:clip``) the content digest of its result, which is in the
        content store.

    Raises:
        ManyeyesError: a step failed; the error is the step's own, with its exit code.
        Interrupted: the run was stopped by a signal and can be continued by the same call.
    """
    place = LocalRun(home(), run)
    with _one_at_a_time(place), recorded():
        _prepare(place, recipe, variants)
        with (
            place.log.open("ab") as log,
            temporary() as scratch,
            _stop_signals() as stop,
        ):
            process = _start(place, progress, str(scratch), log.fileno())
            try:
                _wait(process, place, stop)
            finally:
                _kill_group(process)
        events = read_journal(place.journal)
        _raise_failure(process.returncode, stop, events, place)
        shutil.rmtree(place.artifacts, ignore_errors=True)  # pointers; of a failed run they stay
    return {event.step: event.digest for event in events if event.event == "finished"}


@contextmanager
def _one_at_a_time(place: LocalRun) -> Iterator[None]:
    """Hold the run's lock; the kernel drops it when this process dies, however it dies.

    Raises:
        UserError: the same run goes on in another process, or its folder cannot be written.
    """
    path = place.home / "locks" / f"run-{place.name}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(held(path, wait=False))
        except HeldElsewhere:
            raise UserError(
                f"Run {place.name} is going on in another process; wait for it or stop it."
            ) from None
        except OSError as error:
            raise _not_writable(place.home, error) from None
        yield


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write the run's files to {path}: {error.strerror}; "
        "set MANYEYES_HOME to another folder."
    )


def _prepare(place: LocalRun, recipe: Recipe, variants: Sequence[Recipe]) -> None:
    """Make the run's folder and remove what an earlier run of the name left.

    The pointers of earlier attempts stay until one ends well: they hold what ``gc`` must not take.

    Raises:
        UserError: the folder cannot be written, or kfp.local could not use its path.
    """
    if "python3" in str(place.home) or "{{" in str(place.home):
        raise UserError(
            f"kfp.local cannot work in {place.home}: it rewrites 'python3' and '{{{{' in paths; "
            "set MANYEYES_HOME to another folder."
        )
    try:
        place.directory.mkdir(parents=True, exist_ok=True)
        for path in (place.log, place.journal):
            path.unlink(missing_ok=True)
        shutil.rmtree(place.logs, ignore_errors=True)
        settings: dict[str, JsonValue] = {
            "recipe": recipe.model_dump_json(by_alias=True),
            "variants": [variant.model_dump_json(by_alias=True) for variant in variants],
            "artifacts": str(place.artifacts),
            "cores": available_cores(),
        }
        atomic_write_json(place.settings, settings)
    except OSError as error:
        raise _not_writable(place.directory, error) from None


def available_cores() -> int:
    """Cores the steps may use: ``OMP_NUM_THREADS`` if it is set, else those of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, min(len(os.sched_getaffinity(0)), _control_group_cores()))


def _control_group_cores() -> int:
    """Cores a container may use (cgroup v2 ``cpu.max``), rounded down; many when not limited."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if quota == "max" else max(1, int(quota) // int(period))


def _start(place: LocalRun, progress: Path, scratch: str, log: int) -> subprocess.Popen[bytes]:
    root = str(PACKAGE.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        HOME: str(place.home),
        RUN: place.name,
        PROGRESS_FILE: str(progress.absolute()),
        JOURNAL: str(place.journal),
        LOGS: str(place.logs),
        "TMPDIR": scratch,  # kfp.local leaves a folder per step behind
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "manyeyes.kubeflow.pipelines.orchestrate", str(place.settings)],
        stdin=subprocess.PIPE,  # its end tells the child that this process is gone
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )


@dataclass
class _Stop:
    """Signals that asked this run to stop."""

    count: int = 0
    asked: float = 0.0

    def ask(self) -> None:
        self.count += 1
        self.asked = self.asked or time.monotonic()

    @property
    def overdue(self) -> bool:
        return self.count > 1 or (self.count > 0 and time.monotonic() - self.asked > GRACE_SECONDS)


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Count SIGINT, SIGTERM and SIGHUP instead of dying of them; only the main thread gets any."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.ask()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], place: LocalRun, stop: _Stop) -> None:
    """Wait until the child ends; after a signal or a failure, tell the other steps to leave."""
    marked, told = False, set[int]()
    while process.poll() is None and not stop.overdue:
        if stop.count and not marked:
            write_event(place.journal, Event("run", "failed", exit_code=Interrupted.exit_code))
            marked = True
        events = read_journal(place.journal)
        if any(event.event == "failed" for event in events):
            for number in _running(events) - told:
                _ask_to_leave(number, process.pid)
                told.add(number)
        time.sleep(POLL_SECONDS)


def _running(events: list[Event]) -> set[int]:
    """Return the processes of the steps that go on and may be stopped."""
    ended = {event.process for event in events if event.event != "started"}
    return {event.process for event in events} - ended - {0}


def _ask_to_leave(process: int, group: int) -> None:
    """Send SIGTERM, unless the process is gone and its number belongs to another."""
    with suppress(ProcessLookupError):
        if os.getpgid(process) == group:
            os.kill(process, signal.SIGTERM)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, whatever happened."""
    with suppress(ProcessLookupError):  # it is gone already when all went well
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _raise_failure(code: int, stop: _Stop, events: list[Event], place: LocalRun) -> None:
    """Raise the error of a run that did not end well."""
    if stop.count:
        raise Interrupted("Stopped; run the same command again to continue.")
    if code == 0:
        return
    for event in events:
        if event.event == "failed" and event.step != "run":
            error = ERRORS.get(event.exit_code, ManyeyesError)
            raise error(f"{event.step}: {event.message}")
    ended = {event.step for event in events if event.event != "started"}
    lost = [event.step for event in events if event.step not in ended]
    if lost:
        log = place.logs / f"{slug_of(lost[0])}.log"
        raise ManyeyesError(
            f"{lost[0]} was killed from outside or crashed (out of memory?); "
            f"run the same command again to continue. Its log: {log}"
        )
    raise ManyeyesError(f"The pipeline could not be run by kfp.local. Its log: {place.log}")
