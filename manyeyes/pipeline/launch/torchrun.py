"""Starting the processes of one node: torchrun, as a child whose end keeps its meaning.

torchrun ends with 1 whatever its processes ended with. They write into a journal how each of them
ended; from it this module takes the exit code and the sentence. In a step it is called as a
function. In the pods of a TrainJob it is the program (``python -m
manyeyes.pipeline.launch.torchrun``): Kubernetes keeps its exit code and termination message, and
torchrun reads the rendezvous from the ``PET_`` variables that Kubeflow Trainer sets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from manyeyes.errors import GateRefused, Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.launch.reference import STAGE_CALL, StageReference, read_stage_reference
from manyeyes.pipeline.launch.settings import LAUNCH
from manyeyes.runtime.journal import JOURNAL, read_journal
from manyeyes.runtime.locks import temporary

PROCESS = "manyeyes.pipeline.step_process"
"""The program of each process."""
SHUTDOWN_SECONDS = 270
"""For the processes to save their state after SIGTERM; less than a pod's grace period."""
TERMINATION_LOG = Path("/dev/termination-log")
MAX_MESSAGE_BYTES = 2048
"""More of a termination message Kubernetes may cut."""
_ERRORS = {error.exit_code: error for error in (UserError, GateRefused, Interrupted)}


def train_under_torchrun(
    call: StageReference, processes: int | None, program: str = PROCESS
) -> None:
    """Train a stage in several processes of this machine and return when all have ended well.

    Args:
        call: what they train.
        processes: how many; None for a node of a TrainJob, where the environment says it.
        program: module that each process runs.

    Raises:
        ManyeyesError: one of them failed; the class is that of its exit code.
    """
    alone = ["--standalone", f"--nproc-per-node={processes}"] if processes else []
    with temporary() as folder:
        journal = folder / "journal.jsonl"
        environment = {
            **{name: value for name, value in os.environ.items() if name != LAUNCH},
            STAGE_CALL: call.text(),
            JOURNAL: str(journal),
        }
        shutdown = f"--shutdown-timeout={SHUTDOWN_SECONDS}"
        command = [sys.executable, "-m", "torch.distributed.run", *alone, shutdown, "-m", program]
        code = _run(command, environment)
        if code:
            raise _error(journal, code)


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run torchrun; when this process is told to stop, let it and its processes stop first."""
    sys.stdout.flush()
    # A session of its own: Ctrl-C reaches it once, through us, and not every process at once.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(SHUTDOWN_SECONDS + 20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        raise


def _error(journal: Path, code: int) -> ManyeyesError:
    """Return the error of the process that failed first."""
    for event in read_journal(journal):
        if event.event == "failed":
            kind = _ERRORS.get(event.exit_code, ManyeyesError)
            return kind(event.message)
    return ManyeyesError(
        f"The training processes ended without saying why (torchrun's exit code is {code}); one "
        "may have been killed, for instance for its memory: see the lines above."
    )


def main() -> int:
    """Run as the program of a pod: train, then end as the training did."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        train_under_torchrun(read_stage_reference(), None)
    except ManyeyesError as error:
        sys.stderr.write(f"{error}\n")
        _leave_message(str(error))
        return error.exit_code
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted("The pod was told to stop; the training saved its state.")


def _leave_message(text: str) -> None:
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_bytes(text.encode()[:MAX_MESSAGE_BYTES])


if __name__ == "__main__":
    raise SystemExit(main())
