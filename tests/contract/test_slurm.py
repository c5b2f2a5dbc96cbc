"""The Slurm script starts the right processes on the right machines, and passes a stop on.

``srun``, ``scontrol`` and ``ssh`` are stand-ins on the PATH: they write down how they were called
and run the command here, once for each machine. torchrun is the real one where its processes count.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from image_kit import ROOT
from pause_kit import until

SCRIPT = ROOT / "infra" / "slurm" / "stage.sbatch"
SRUN = """\
#!{python}
import json, os, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
open({log!r}, "a").write(json.dumps(["srun", sys.argv[1:]]) + "\\n")
nodes = int(dict(option[2:].split("=", 1) for option in options if "=" in option)["nodes"])
import signal
signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
children = [subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(n)}}) for n in range(nodes)]
sys.exit(max(child.wait() for child in children))
"""
SSH = """\
#!{python}
import json, os, subprocess, sys
text = sys.stdin.read()
open({log!r}, "a").write(json.dumps(["ssh", sys.argv[1:], text]) + "\\n")
command = sys.argv[2:]
child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
child.communicate(text)
sys.exit(child.returncode)
"""
SCONTROL = """\
#!{python}
import json, sys
open({log!r}, "a").write(json.dumps(["scontrol", sys.argv[1:]]) + "\\n")
if sys.argv[1:3] == ["show", "hostnames"]:
    print("localhost\\nsecond")
"""
PYTHON = """\
#!{python}
import json, os, signal, sys, time
names = ("CUDA_VISIBLE_DEVICES", "SLURM_NODEID", "AWS_SECRET_ACCESS_KEY")
given = {{name: os.environ[name] for name in names if name in os.environ}}
line = json.dumps(["python", sys.argv[1:], given, os.getcwd()])
if os.environ.get("STAND_IN") == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
open({log!r}, "a").write(line + "\\n")
if os.environ.get("STAND_IN") == "wait":
    time.sleep(3600)
sys.exit(int(os.environ.get("STAND_IN", "0")))
"""
MODULE = """\
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
line = json.dumps(["module", sys.argv[1:], [int(os.environ[name]) for name in names]])
descriptor = os.open({log!r}, os.O_WRONLY | os.O_APPEND)
os.write(descriptor, (line + "\\n").encode())
"""
SLURM = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_GPUS_ON_NODE": "8",
}
FLAGS = ["--dataset", "my data", "--out", "o"]


class Machine:
    """A machine with stand-ins for what a cluster has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.jsonl"
        self.log.touch()
        tools = folder / "bin"
        tools.mkdir()
        for name, text in {
            "srun": SRUN,
            "ssh": SSH,
            "scontrol": SCONTROL,
            "python": PYTHON,
        }.items():
            path = tools / name
            path.write_text(text.format(python=sys.executable, log=str(self.log)))
            path.chmod(0o755)
        (folder / "recipe.yaml").write_text("name: x\n")
        self.environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        output, _ = process.communicate()
        return process.returncode, output

    def calls(self, tool: str) -> list[list[object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == tool]

    def wait_for(self, tool: str, count: int) -> None:
        until(lambda: len(self.calls(tool)) >= count)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def torchrun(*rendezvous: str, nodes: int, gpus: int) -> list[str]:
    return [
        *["-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={gpus}"],
        *rendezvous,
        *["--shutdown-timeout=270", "-m", "manyeyes"],
    ]


def test_training_under_srun_is_one_torchrun_a_machine(machine: Machine) -> None:
    code, output = machine.run(
        "sft", "recipe.yaml", *FLAGS, **SLURM, SRUN_OPTIONS="--container-image=x"
    )
    assert (code, output) == (0, "")
    expected = torchrun(
        *["--rdzv-id=41", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:20041"],
        "--rdzv-conf=join_timeout=1800",
        nodes=2,
        gpus=8,
    )
    ((arguments,),) = machine.calls("srun")
    assert arguments == [
        *["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=300"],
        "--container-image=x",
        *["python", *expected, "sft", "recipe.yaml", *FLAGS],
    ]
    started = machine.calls("python")
    assert [call[0] for call in started] == [[*expected, "sft", "recipe.yaml", *FLAGS]] * 2
    assert sorted(call[1]["SLURM_NODEID"] for call in started) == ["0", "1"]


@pytest.mark.parametrize("stage", ["prepare", "validate", "eval", "register"])
def test_a_stage_that_does_not_train_is_one_process(machine: Machine, stage: str) -> None:
    code, _ = machine.run(stage, "recipe.yaml", *FLAGS, **SLURM)
    assert code == 0
    (call,) = machine.calls("python")
    assert call[0] == ["-m", "manyeyes", stage, "recipe.yaml", *FLAGS]
    ((arguments,),) = machine.calls("srun")
    assert arguments[:2] == ["--nodes=1", "--ntasks=1"]


def test_a_hostfile_starts_torchrun_on_each_machine_over_ssh(machine: Machine) -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "it's secret"}
    (machine.folder / "hosts").write_text("# MGM's two machines\nfirst slots=8\n\nsecond slots=4\n")
    code, output = machine.run("pretrain", "recipe.yaml", *FLAGS, **{"HOSTFILE": "hosts", **secret})
    assert (code, output) == (0, "")
    ranks = {call[0][4]: call for call in machine.calls("python")}
    for number, gpus in enumerate([8, 4]):
        expected = torchrun(
            *[f"--node-rank={number}", "--master-addr=first", "--master-port=29500"],
            "--rdzv-conf=timeout=1800",
            nodes=2,
            gpus=gpus,
        )
        arguments, variables, folder = ranks[f"--node-rank={number}"]
        assert arguments == [*expected, "pretrain", "recipe.yaml", *FLAGS]
        assert variables == secret
        assert folder == str(machine.folder)
    sent = {call[0][0]: call for call in machine.calls("ssh")}
    assert set(sent) == {"first", "second"}
    assert all("secret" not in " ".join(call[0]) for call in sent.values())


def test_a_machine_alone_starts_torchrun_for_its_gpus(machine: Machine) -> None:
    machine.run("sft", "recipe.yaml", *FLAGS, GPUS="4")
    machine.run("sft", "recipe.yaml", *FLAGS, GPUS="1")
    many, one = [call[0] for call in machine.calls("python")]
    assert many == [*torchrun("--standalone", nodes=1, gpus=4), "sft", "recipe.yaml", *FLAGS]
    assert one == ["-m", "manyeyes", "sft", "recipe.yaml", *FLAGS]


@pytest.mark.parametrize("restarts", [{}, {"SLURM_RESTART_COUNT": "2"}], ids=["first", "third"])
def test_a_stopped_job_goes_back_to_the_queue(machine: Machine, restarts: dict[str, str]) -> None:
    process = machine.start("sft", "recipe.yaml", *FLAGS, **SLURM, STAND_IN="wait", **restarts)
    machine.wait_for("python", 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75
    assert output == "Stopped with its state saved; back to the queue.\n"
    assert machine.calls("scontrol")[-1] == [["requeue", "41"]]


def test_a_job_is_not_queued_for_ever(machine: Machine) -> None:
    process = machine.start(
        *["sft", "recipe.yaml", *FLAGS],
        **SLURM,
        STAND_IN="wait",
        SLURM_RESTART_COUNT="3",
        REQUEUES="3",
    )
    machine.wait_for("python", 2)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    assert ["requeue", "41"] not in [call[0] for call in machine.calls("scontrol")]


def test_a_stop_reaches_the_machines_of_a_hostfile(machine: Machine) -> None:
    (machine.folder / "hosts").write_text("first slots=1\nsecond slots=1\n")
    process = machine.start("sft", "recipe.yaml", *FLAGS, HOSTFILE="hosts", STAND_IN="wait")
    machine.wait_for("python", 2)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    asked = [call[0] for call in machine.calls("ssh") if call[0][1:3] == ["kill", "-TERM"]]
    assert sorted(call[0] for call in asked) == ["first", "second"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_ends_the_job_with_its_code(machine: Machine, code: int) -> None:
    given, _ = machine.run("eval", "recipe.yaml", *FLAGS, **SLURM, STAND_IN=str(code))
    assert given == code
    assert machine.calls("scontrol") == []


@pytest.mark.parametrize(
    ("arguments", "hosts", "answer"),
    [
        (["sft"], "", "Usage: stage.sbatch STAGE RECIPE [flags of manyeyes STAGE]\n"),
        (
            ["tune", "recipe.yaml"],
            "",
            "Unknown stage 'tune': known are prepare, validate, prealign, pretrain, sft, eval, "
            "register.\n",
        ),
        (["sft", "none.yaml"], "", "There is no recipe none.yaml.\n"),
        (
            ["sft", "recipe.yaml"],
            "first\n",
            "hosts has the line 'first', but a line must look like: node1 slots=8\n",
        ),
        (
            ["sft", "recipe.yaml"],
            "# none\n",
            "hosts names no machine; a line must look like: node1 slots=8\n",
        ),
    ],
    ids=["nothing", "stage", "recipe", "line", "empty"],
)
def test_a_wrong_call_is_one_sentence(
    machine: Machine, arguments: list[str], hosts: str, answer: str
) -> None:
    (machine.folder / "hosts").write_text(hosts)
    given = {"HOSTFILE": "hosts"} if hosts else {}
    assert machine.run(*arguments, **given) == (2, answer)
    assert machine.calls("python") == []


def test_real_torchruns_meet_and_number_their_processes(machine: Machine) -> None:
    stub = machine.folder / "manyeyes"
    stub.mkdir()
    (stub / "__init__.py").touch()  # or another package of the name would go before
    (stub / "__main__.py").write_text(MODULE.format(log=str(machine.log)))
    given = SLURM | {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": str(os.getpid())}
    code, output = machine.run("sft", "recipe.yaml", *FLAGS, **given, PYTHON=sys.executable)
    assert code == 0, output
    calls = machine.calls("module")
    assert sorted(call[1] for call in calls) == [[0, 0, 4], [1, 1, 4], [2, 0, 4], [3, 1, 4]]
    assert all(call[0] == ["sft", "recipe.yaml", *FLAGS] for call in calls)
