"""Processes that fail, stall or die, without any training: what the others learn, and their code.

No torchrun here: whoever starts the processes, nobody may wait for ever.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.training.distributed import joined
try:
    with joined() as world:
        assert world.gather([float(world.rank)]) == [[0.0], [1.0]]
        if world.rank == 1:
            {misdeed}
        world.gather([1.0])
except ManyeyesError as error:
    print(f"{{type(error).__name__}}: {{error}}", flush=True)
    os._exit(error.exit_code)
"""
LOST = (
    "ManyeyesError: Training lost process 1 of 2: it is gone, or did not answer for {seconds} s "
    "(MANYEYES_STALL_SECONDS); the same command continues from the last state.\n"
)
LONG, SHORT = 600, 20
"""Seconds without an answer after which a process counts as lost: short where that is waited for."""
MISDEEDS = [
    pytest.param(
        "raise UserError('The picture is broken.')",
        2,
        "Followed: Process 1 of the training: The picture is broken.\n",
        LONG,
        id="fails",
    ),
    pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, LOST, LONG, id="is-killed"),
    pytest.param("time.sleep(3600)", 1, LOST, SHORT, id="stalls"),
]


def start(rank, port, misdeed, seconds):
    environment = {
        **os.environ,
        **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        "MANYEYES_STALL_SECONDS": str(seconds),
    }
    command = [sys.executable, "-c", PROGRAM.format(misdeed=misdeed)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize(("misdeed", "code", "text", "seconds"), MISDEEDS)
def test_a_process_learns_what_became_of_the_other(misdeed, code, text, seconds):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, port, misdeed, seconds) for rank in (0, 1)]
    try:
        said, _ = processes[0].communicate()
        assert (processes[0].returncode, said) == (code, text.format(seconds=seconds))
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
