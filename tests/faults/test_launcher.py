"""What can happen to a TrainJob and its launcher, as a table, against a played Kubernetes API.

Each row says what happens when (seconds after the job's creation), how the launcher ends, with
which whole sentence, how many jobs it created, what it leaves behind, and by when it must have
ended. Hours pass in milliseconds: the clock is simulated.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launcher_kit import NAME, SECRET, TITLE, Action, World, played_cluster, settings

from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.launch.api import UnreachableError

POD = f"{NAME}-node-0-{{}}-{{}}"
START: tuple[Action, ...] = ((2, "pods"), (30, "running"))
FINISH: tuple[Action, ...] = ((40, "log", "step 1"), (50, "log", "step 2"), (60, "complete"))
WELL = (*START, *FINISH)
STEPS = ("step 1", "step 2")
CONTINUE = "run the same command again to continue"


@dataclass(frozen=True)
class Row:
    """One scenario."""

    name: str
    scripts: tuple[tuple[Action, ...], ...]
    ends: type[ManyeyesError] | None = None
    text: str = ""
    says: tuple[str, ...] = ()
    """Sentences of the launcher, in this order, among others."""
    lines: tuple[str, ...] | None = None
    """All lines of rank 0 that were written."""
    created: int = 1
    left: tuple[tuple[str, bool], ...] = ()
    """TrainJobs afterwards, each with its ``suspend``."""
    minutes: float = 30.0
    """The launcher must have ended by then."""
    scheduling: str = "none"
    settings: dict[str, object] = field(default_factory=dict)
    again: bool = False
    """Whether the same command is run once more after that, and ends well."""
    before: tuple[Action, ...] = ()
    """What happens before the launch; the seconds do not count."""


def restarted(sentence: str) -> tuple[str, ...]:
    return (sentence, "starting it again in 30 s (1 of 2)", f"{TITLE} created, attempt 2")


LOST = f"{TITLE} lost its pod {POD} on gpu-1: "
DRAINED = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
PREEMPTED = "Preempted to accommodate a workload (UID: 7) in the ClusterQueue"
QUOTA = "insufficient quota for nvidia.com/gpu in flavor a100, 8 more needed"
NO_NODE = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
BACK_OFF = 'Back-off pulling image "registry.example.org/trainer"'
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."

STATES = [
    Row(
        "a job goes through its states and is deleted",
        (WELL,),
        says=(
            f"{TITLE} created, attempt 1",
            f"{TITLE} is starting",
            f"{TITLE} is running (it was starting)",
            f"{TITLE} is done (it was running)",
            f"{TITLE} deleted",
        ),
        lines=STEPS,
        minutes=1.5,
    ),
    Row(
        "Kueue admits after an hour and a half in the queue",
        (((5400, "admitted"), (5402, "pods"), (5430, "running"), (5490, "complete")),),
        scheduling="kueue",
        settings={"queue_minutes": 120},
        says=(
            f"{TITLE} is queued",
            f"queued: {QUOTA}",
            f"{TITLE} is starting (it was queued)",
            f"{TITLE} is done (it was running)",
        ),
        minutes=93,
    ),
    Row(
        "Kueue admits after half a day when the profile sets no limit",
        (((43200, "admitted"), (43202, "pods"), (43230, "running"), (43290, "complete")),),
        scheduling="kueue",
        settings={"queue_minutes": None},
        minutes=60 * 13,
    ),
    Row(
        "quota is never admitted",
        ((),),
        scheduling="kueue",
        ends=ManyeyesError,
        text=f"{TITLE} was not admitted within 60 minutes: {QUOTA}. It was deleted; free quota, or "
        "raise train_jobs.queue_minutes.",
        minutes=61,
    ),
    Row(
        "Kueue preempts a running job and resumes it",
        (
            (
                (60, "admitted"),
                (62, "pods"),
                (90, "running"),
                (100, "log", "step 1"),
                (200, "suspended", PREEMPTED),
                (900, "admitted"),
                (902, "pods_again"),
                (930, "running"),
                (960, "log", "step 1"),
                (980, "complete"),
            ),
        ),
        scheduling="kueue",
        says=(
            f"{TITLE} is running (it was starting)",
            f"{TITLE} is queued (it was running)",
            f"queued: it was preempted: {PREEMPTED}; {QUOTA}",
            f"{TITLE} is starting (it was queued)",
            f"{TITLE} is done (it was running)",
        ),
        lines=("step 1", "step 1"),
        minutes=17,
    ),
    Row(
        "an image is pulled slowly",
        (
            (
                (2, "pods"),
                (5, "event", POD.format(0, 1), "Normal", "Pulling", "Pulling image"),
                (600, "running"),
                (660, "complete"),
            ),
        ),
        says=(f"starting: {POD.format(0, 1)} pulls its image",),
        minutes=12,
    ),
    Row(
        "an image cannot be pulled",
        (((2, "pods"), (20, "waiting", 1, "ImagePullBackOff", BACK_OFF)),),
        ends=ManyeyesError,
        text=f"{TITLE} did not start within 15 minutes: the image of {POD.format(1, 1)} cannot be "
        f"pulled (ImagePullBackOff): {BACK_OFF}. It was deleted; mend that, or raise "
        "train_jobs.start_minutes.",
        minutes=16,
    ),
    Row(
        "an image that is pulled at the second try is no failure",
        (
            (
                (2, "pods"),
                (20, "waiting", 0, "ErrImagePull", "i/o timeout"),
                (80, "running"),
                (90, "complete"),
            ),
        ),
        says=(
            f"starting: the image of {POD.format(0, 1)} cannot be pulled (ErrImagePull): i/o timeout",
        ),
        minutes=2,
    ),
    Row(
        "an image's name is wrong",
        (((2, "pods"), (9, "waiting", 0, "InvalidImageName", "couldn't parse image")),),
        ends=UserError,
        text=f"{TITLE} cannot start: {POD.format(0, 1)} cannot start (InvalidImageName): couldn't "
        "parse image. Mend the profile's images.",
        minutes=1,
    ),
    Row(
        "a secret is missing",
        (
            (
                (2, "pods"),
                (9, "waiting", 0, "CreateContainerConfigError", 'secret "store" not found'),
            ),
        ),
        ends=ManyeyesError,
        text=f"{TITLE} did not start within 15 minutes: {POD.format(0, 1)} cannot start "
        '(CreateContainerConfigError): secret "store" not found. It was deleted; mend that, or '
        "raise train_jobs.start_minutes.",
        minutes=16,
    ),
    Row(
        "no node fits",
        (((2, "pods"), (5, "unschedulable", NO_NODE)),),
        ends=ManyeyesError,
        text=f"{TITLE} did not start within 15 minutes: no node fits {POD.format(0, 1)}: {NO_NODE[:-1]}"
        f".; no node fits {POD.format(1, 1)}: {NO_NODE[:-1]}. It was deleted; mend that, or raise "
        "train_jobs.start_minutes.",
        minutes=16,
    ),
    Row(
        "a quota of the namespace forbids the pods",
        (((5, "event", f"{NAME}-node-0", "Warning", "FailedCreate", "exceeded quota: gpus"),),),
        ends=ManyeyesError,
        text=f"{TITLE} did not start within 15 minutes: FailedCreate: exceeded quota: gpus. It was "
        "deleted; mend that, or raise train_jobs.start_minutes.",
        minutes=16,
    ),
]

FAILURES = [
    Row(
        "a drained node costs a restart",
        ((*START, (60, "disrupted", *DRAINED)), WELL),
        says=restarted(LOST.format(1, 1) + ": ".join(DRAINED) + "."),
        created=2,
        minutes=5,
    ),
    Row(
        "a preempting scheduler costs a restart",
        ((*START, (60, "disrupted", "PreemptionByScheduler", "preempted by pod x")), WELL),
        says=restarted(LOST.format(1, 1) + "PreemptionByScheduler: preempted by pod x."),
        created=2,
        minutes=5,
    ),
    Row(
        "pods that vanish with their nodes cost a restart",
        ((*START, (60, "pods_gone")), WELL),
        says=restarted(
            f"{TITLE} failed, and its pods are gone (JobsFailed: jobset failed due to one or more "
            "jobs)."
        ),
        created=2,
        minutes=5,
    ),
    Row(
        "a lost connection between the GPUs costs a restart",
        ((*START, (60, "failed", 1, 1, "x: ncclRemoteError: remote process exited")), WELL),
        says=restarted(
            f"{TITLE} lost a connection or a GPU in {POD.format(1, 1)}: x: ncclRemoteError: remote "
            "process exited."
        ),
        created=2,
        minutes=5,
    ),
    Row(
        "a lost node whose pods hang is noticed by its silence",
        ((*START, (40, "log", "step 1"), (41, "fault", "log", "pods", 500, 999)), ()),
        ends=ManyeyesError,
        settings={"restarts": 0},
        text=f"{TITLE} gave no sign of life for 10 minutes: rank 0 hangs or its node is lost. The profile "
        "allows no restart (train_jobs.restarts). Its newest whole checkpoint is "
        f"kept; {CONTINUE}.",
        lines=("step 1",),
        minutes=12,
    ),
    Row(
        "a stall costs a restart",
        ((*START, (40, "log", "step 1")), WELL),
        says=restarted(
            f"{TITLE} gave no sign of life for 10 minutes: rank 0 hangs or its node is lost."
        ),
        created=2,
        lines=("step 1", *STEPS),
        minutes=15,
    ),
    Row(
        "a slow training that speaks every nine minutes is no stall",
        (
            (
                *START,
                *((30 + 540 * at, "log", f"step {at}") for at in range(1, 7)),
                (3400, "complete"),
            ),
        ),
        lines=tuple(f"step {at}" for at in range(1, 7)),
        minutes=58,
    ),
    Row(
        "a failed job that is slow to go is waited for",
        ((*START, (60, "disrupted", *DRAINED)), WELL),
        before=((0, "slow_deletion"),),
        created=2,
        lines=("RuntimeError: NCCL error: remote process exited", *STEPS),
        left=((NAME, False),),
        minutes=6,
    ),
    Row(
        "a launcher terminated between two attempts leaves no job",
        ((*START, (60, "disrupted", *DRAINED)), ((0, "sigterm"),)),
        ends=Interrupted,
        text="Stopped; run the same command again to continue.",
        created=2,
        minutes=5,
    ),
    Row(
        "restarts are counted",
        tuple((*START, (60, "disrupted", *DRAINED)) for _ in range(3)),
        ends=ManyeyesError,
        text=LOST.format(1, 3)
        + ": ".join(DRAINED)
        + ". It was started again 2 times, and may not be again (train_jobs.restarts). Its newest whole "
        f"checkpoint is kept; {CONTINUE}.",
        created=3,
        minutes=8,
    ),
    Row(
        "CUDA runs out of memory",
        ((*START, (60, "failed", 1, 1, "Traceback", OOM)),),
        ends=ManyeyesError,
        text=f"{TITLE} ran out of GPU memory in {POD.format(1, 1)}: lower batch.per_device of the "
        "stage (accumulation makes up for it), shorten max_length, or choose a higher zero or a "
        "pool with larger GPUs. It was not started again.",
        minutes=2,
    ),
    Row(
        "a pod needs more memory than it may have",
        ((*START, (60, "killed_for_memory")),),
        ends=ManyeyesError,
        text=f"{TITLE} needed more memory than {POD.format(1, 1)} may have, and was killed: raise "
        "train_jobs.stages.*.memory of the profile, or use fewer loader workers. It was not "
        "started again.",
        minutes=2,
    ),
    Row(
        "the user's code fails",
        ((*START, (60, "failed", 0, 1, "Traceback", "  File x", "KeyError: 'llm'")),),
        ends=ManyeyesError,
        text=f"{TITLE} failed in {POD.format(0, 1)} with exit code 1: KeyError: 'llm'.\n"
        "  Traceback\n    File x\n  KeyError: 'llm'",
        lines=("Traceback", "  File x", "KeyError: 'llm'"),
        minutes=2,
    ),
    Row(
        "the user's input is wrong",
        ((*START, (60, "failed", 0, 2, "Batch size 7 is not a multiple of 2.")),),
        ends=UserError,
        text=f"{TITLE} failed in {POD.format(0, 1)} with exit code 2: Batch size 7 is not a multiple of "
        "2.\n  Batch size 7 is not a multiple of 2.",
        minutes=2,
    ),
    Row(
        "a training that stopped and saved goes on",
        ((*START, (60, "failed", 0, 75, "Stopped")), WELL),
        says=restarted(f"{TITLE} was stopped in {POD.format(0, 1)} after it had saved its state."),
        created=2,
        minutes=5,
    ),
    Row(
        "a training that stops too often is left resumable",
        ((*START, (60, "failed", 0, 75, "Stopped")),),
        ends=Interrupted,
        settings={"restarts": 0},
        text=f"{TITLE} was stopped in {POD.format(0, 1)} after it had saved its state. The profile "
        "allows no restart (train_jobs.restarts). Run the same command again to continue.",
        minutes=2,
    ),
    Row(
        "a killed pod without a reason costs a restart",
        ((*START, (60, "failed", 1, 137)), WELL),
        says=restarted(f"{TITLE}: {POD.format(1, 1)} was killed (exit 137)."),
        created=2,
        minutes=5,
    ),
    Row(
        "the trainer does not support the runtime",
        (((5, "refused", "runtime has no ml policy"),),),
        ends=UserError,
        text=f"{TITLE} was refused: runtime has no ml policy.",
        minutes=1,
    ),
]

PEOPLE = [
    Row(
        "somebody deletes the job while it runs",
        ((*START, (60, "somebody_deletes")),),
        ends=Interrupted,
        text=f"{TITLE} was deleted by somebody else while it was running; {CONTINUE} from the newest "
        "whole checkpoint.",
        minutes=2,
    ),
    Row(
        "a terminated launcher deletes its job",
        ((*START, (60, "sigterm")),),
        ends=Interrupted,
        text="Stopped; run the same command again to continue.",
        says=(f"{TITLE} deleted",),
        minutes=2,
    ),
    Row(
        "a terminated launcher suspends its job",
        ((*START, (60, "sigterm")),),
        ends=Interrupted,
        settings={"on_terminate": "suspend"},
        text="Stopped; run the same command again to continue.",
        says=(f"{TITLE} suspended; {CONTINUE}",),
        left=((NAME, True),),
        minutes=2,
    ),
    Row(
        "a launcher terminated in the queue leaves nothing there",
        (((600, "sigterm"),),),
        ends=Interrupted,
        scheduling="kueue",
        text="Stopped; run the same command again to continue.",
        minutes=13,
    ),
    Row(
        "a terminated launcher lets Kueue suspend the job",
        (((5, "admitted"), (6, "pods"), (30, "running"), (60, "sigterm")),),
        ends=Interrupted,
        scheduling="kueue",
        settings={"on_terminate": "suspend"},
        text="Stopped; run the same command again to continue.",
        left=((NAME, True),),
        minutes=2,
    ),
    Row(
        "the next launcher resumes what the last one suspended",
        ((*START, (60, "sigterm")),),
        ends=Interrupted,
        settings={"on_terminate": "suspend"},
        text="Stopped; run the same command again to continue.",
        again=True,
        says=(
            f"{TITLE} exists already, attempt 1: taking it up",
            "resumed what the last launcher had suspended",
            f"{TITLE} is done (it was running)",
        ),
        minutes=3,
    ),
    Row(
        "the next launcher lets Kueue queue the suspended job again",
        (((5, "admitted"), (6, "pods"), (30, "running"), (60, "sigterm")),),
        ends=Interrupted,
        scheduling="kueue",
        settings={"on_terminate": "suspend"},
        text="Stopped; run the same command again to continue.",
        again=True,
        says=("resumed what the last launcher had suspended", f"{TITLE} deleted"),
        minutes=3,
    ),
    Row(
        "a job that failed while no launcher watched is judged by the next one",
        ((*START, (40, "kill_for_good"), (60, "failed", 0, 1, "KeyError: 'llm'")),),
        ends=ManyeyesError,
        text=f"{TITLE} failed in {POD.format(0, 1)} with exit code 1: KeyError: 'llm'.\n"
        "  KeyError: 'llm'",
        minutes=4,
    ),
    Row(
        "a launcher that is killed and started again follows the same job",
        ((*START, (40, "log", "step 1"), (45, "kill"), (70, "log", "step 2"), (80, "complete")),),
        says=(f"{TITLE} exists already, attempt 1: taking it up", f"{TITLE} deleted"),
        minutes=2,
    ),
    Row(
        "a launcher killed before its job started does not make a second one",
        (((1, "kill"), *WELL),),
        says=(f"{TITLE} exists already, attempt 1: taking it up",),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "a killed launcher remembers how often the job was started",
        (
            (*START, (60, "disrupted", *DRAINED)),
            (*START, (50, "kill"), (75, "disrupted", *DRAINED)),
            WELL,
        ),
        says=(
            f"{TITLE} exists already, attempt 2: taking it up",
            "starting it again in 60 s (2 of 2)",
            f"{TITLE} created, attempt 3",
        ),
        created=3,
        minutes=8,
    ),
    Row(
        "a job of the same name belongs to somebody else",
        (),
        before=((0, "foreign_job"),),
        ends=UserError,
        text=f"{TITLE} exists already and is not ours: its label manyeyes/fingerprint is 'none'. Delete "
        "it or rename it, and run the same command again.",
        created=1,
        left=((NAME, False),),
        minutes=1,
    ),
    Row(
        "an old job of the same name is still being deleted",
        ((), WELL),
        before=((0, "dying_job"),),
        created=2,
        lines=STEPS,
        minutes=4,
    ),
    Row(
        "the runtime is missing",
        (),
        before=((0, "no_runtime"),),
        ends=UserError,
        text="Namespace research has no TrainingRuntime 'manyeyes-torch': apply infra/kubernetes, or "
        "name another one in train_jobs.runtime of the profile.",
        created=0,
        minutes=1,
    ),
    Row(
        "the runtime does not schedule as the profile says",
        (),
        scheduling="volcano",
        before=((0, "plain_runtime"),),
        ends=UserError,
        text="The profile schedules with volcano, but the TrainingRuntime 'manyeyes-torch' has no "
        "podGroupPolicy.volcano: without it pods would start one by one; add it there.",
        created=0,
        minutes=1,
    ),
    Row(
        "the admission webhook refuses the job",
        (),
        before=((0, "refusing_webhook"),),
        ends=UserError,
        text=f"The cluster refused {TITLE}: spec.trainer: too many GPUs",
        created=0,
        minutes=1,
    ),
    Row(
        "the service account may not create jobs",
        (),
        before=((0, "deny", "create", "trainer.kubeflow.org", "trainjobs"),),
        ends=UserError,
        text="This service account may not create trainjobs in namespace research; apply the Role of "
        "infra/kubernetes, and see 'manyeyes doctor'.",
        created=0,
        minutes=1,
    ),
    Row(
        "the service account may not read logs",
        (WELL,),
        before=((0, "deny", "get", "", "pods/log"),),
        ends=UserError,
        text="This service account may not get pods/log in namespace research; apply the Role of "
        "infra/kubernetes, and see 'manyeyes doctor'.",
        minutes=1,
    ),
]

NETWORK = [
    Row(
        "a version is forgotten between watches",
        ((*WELL, (45, "forget_history")),),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "a watch is told that its version is gone",
        ((*WELL, (45, "fault", "watch", "trainjobs", "gone")),),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "a watch is refused with 410",
        ((*WELL, (45, "fault", "watch", "trainjobs", 410)),),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "a watch breaks amid an event",
        ((*WELL, (45, "fault", "watch", "trainjobs", "cut", 3)),),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "a watch is dropped again and again",
        ((*WELL, (35, "fault", "watch", "trainjobs", "drop", 5)),),
        lines=STEPS,
        minutes=3,
    ),
    Row(
        "the API is too busy for a while",
        ((*WELL, (35, "busy", "list", "pods", 20)),),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "the API fails for a while",
        ((*WELL, (35, "fault", "*", "*", 500, 8)),),
        lines=STEPS,
        minutes=4,
    ),
    Row(
        "the connection to the API breaks",
        ((*WELL, (35, "fault", "*", "*", "drop", 6)),),
        lines=STEPS,
        minutes=4,
    ),
    Row(
        "the answer to the creation is lost",
        (WELL,),
        before=((0, "fault", "create", "trainjobs", "lost"),),
        says=(f"{TITLE} exists already, attempt 1: taking it up",),
        lines=STEPS,
        minutes=2,
    ),
    Row(
        "the answer to the deletion is lost",
        ((*WELL, (55, "fault", "delete", "trainjobs", "lost")),),
        lines=STEPS,
        minutes=2,
    ),
    Row("a token expires and is renewed", ((*WELL, (35, "expire")),), lines=STEPS, minutes=2),
    Row(
        "a log breaks off and is read on without a line twice",
        (
            (
                *START,
                (40, "log", "step 1"),
                (41, "fault", "log", "pods", "drop", 2),
                (41, "log", "step 2"),
                (70, "log", "step 3"),
                (90, "complete"),
            ),
        ),
        lines=("step 1", "step 2", "step 3"),
        minutes=3,
    ),
    Row(
        "lines of one moment are written once",
        ((*START, (40, "log", "a", "a"), (40, "log", "b"), (49.5, "log", "c"), (80, "complete")),),
        lines=("a", "a", "b", "c"),
        minutes=3,
    ),
    Row(
        "secrets in a log are hidden",
        ((*START, (40, "log", f"key {SECRET}", "https://me:pw@host/x"), (80, "complete")),),
        lines=("key [hidden]", "https://[hidden]@host/x"),
        minutes=3,
    ),
    Row(
        "the API stays away",
        ((*START, (35, "fault", "*", "*", 503, 9999)),),
        ends=UnreachableError,
        text="The Kubernetes API did not answer for 600 s (503 Service Unavailable, to list pods); what "
        f"runs in namespace research goes on, {'run the same command again to take it up'}.",
        left=((NAME, False),),
        minutes=22,
    ),
    Row(
        "a token expires for good",
        ((*START, (35, "expire_for_good")),),
        ends=UnreachableError,
        text="The Kubernetes API did not answer for 600 s (401 Unauthorized, to list pods); what runs "
        "in namespace research goes on, run the same command again to take it up.",
        left=((NAME, False),),
        minutes=22,
    ),
]


@pytest.mark.faults
@pytest.mark.parametrize("row", [*STATES, *FAILURES, *PEOPLE, *NETWORK], ids=lambda row: row.name)
def test_a_launcher_survives_or_says_why(row: Row, tmp_path: Path) -> None:
    with played_cluster(tmp_path, row.scripts) as world:
        for _, name, *arguments in row.before:
            getattr(world, name)(*arguments)
        given = settings(row.scheduling, **row.settings)
        if row.ends is None:
            world.launch(given)
        else:
            with pytest.raises(ManyeyesError) as caught:
                world.launch(given)
            assert (type(caught.value), str(caught.value)) == (row.ends, row.text)
        if row.again:
            world.launch(given)
        check(row, world)


def check(row: Row, world: World) -> None:
    said = [line.removeprefix("[launch] ") for line in world.written if line.startswith("[launch]")]
    heard = iter(said)
    assert [text for text in row.says if text not in heard] == [], said
    if row.lines is not None:
        assert tuple(one for one in world.written if not one.startswith("[launch]")) == row.lines
    jobs = world.server.all("trainjobs")
    assert (
        tuple((one["metadata"]["name"], one["spec"].get("suspend", False)) for one in jobs)
        == row.left
    )
    if row.scheduling == "kueue" and jobs and row.says == ():
        managers = [patch["manager"] for patch in jobs[0]["spec"]["runtimePatches"]]
        assert managers == ["manyeyes/launcher", "kueue.x-k8s.io/manager"]
    assert world.created == row.created
    assert world.server.clock.now() <= row.minutes * 60
    assert SECRET not in "\n".join(world.written)
