"""Why a training job failed, and so whether to start it again.

Looked for in this order, because one cause leaves traces of the next: a pod that the cluster took
away makes the others fail in NCCL, and so does one that ran out of memory. What remains is an error
of the user, which a second run would only repeat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.launch.objects import PodView, TrainJobView

Kind = Literal["infrastructure", "stopped", "gpu memory", "host memory", "user"]

RESTARTED: tuple[Kind, ...] = ("infrastructure", "stopped")
TAIL_LINES = 50
SHOWN_LINES = 12
_MAX_PODS = 4
_KILLED = (137, 143)
_DISRUPTED = ("Evicted", "NodeLost", "NodeShutdown", "Terminated", "Preempting", "NodeAffinity")
_GPU_MEMORY = re.compile(r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory")
_NETWORK = re.compile(
    r"ncclSystemError|ncclRemoteError|ncclInternalError|Watchdog caught collective operation "
    r"timeout|RendezvousTimeoutError|RendezvousConnectionError|DistNetworkError|DistStoreError"
    r"|Connection closed by remote peer|uncorrectable ECC error|NVLink error"
)


@dataclass(frozen=True)
class Failure:
    """How an attempt ended, in words a person can act on."""

    kind: Kind
    sentence: str
    lines: tuple[str, ...] = ()
    """The last lines of the log of the pod that failed first."""
    exit_code: int = 1

    def error(self, *, restarts: int) -> ManyeyesError:
        """Return the error that ends the stage.

        Args:
            restarts: how often the job had been started again.
        """
        text = self.sentence
        if self.kind in RESTARTED:
            text += f" {_restarted(restarts)} (train_jobs.restarts)."
        if self.kind == "stopped":
            return Interrupted(f"{text} Run the same command again to continue.")
        if self.kind == "infrastructure":
            text += " Its newest whole checkpoint is kept; run the same command again to continue."
        if self.lines and self.kind == "user":
            text += "\n" + "\n".join(f"  {line}" for line in self.lines[-SHOWN_LINES:])
        code = UserError.exit_code
        return UserError(text) if self.exit_code == code else ManyeyesError(text)


def classify(
    name: str,
    job: TrainJobView,
    pods: Sequence[PodView],
    tail: Callable[[PodView], list[str]],
) -> Failure:
    """Say why a failed job failed.

    Args:
        name: the job, as sentences call it.
        job: with the condition ``Failed``.
        pods: what is left of its pods.
        tail: reads the last lines of a pod's log.
    """
    condition = job.condition("Failed")
    said = f"{condition.reason}: {condition.message}" if condition else "it failed"
    if condition is not None and condition.reason == "TrainingRuntimeNotSupported":
        return Failure("user", f"{name} was refused: {condition.message}.", exit_code=2)
    failed = sorted(
        (pod for pod in pods if pod.status.phase == "Failed"),
        key=lambda pod: _finished(pod) or "~",
    )
    taken = next((pod for pod in pods if _disruption(pod)), None)
    if taken is not None:
        where = f" on {taken.spec.node_name}" if taken.spec.node_name else ""
        pod = taken.metadata.name
        return Failure("infrastructure", f"{name} lost its pod {pod}{where}: {_disruption(taken)}.")
    if not failed:
        return Failure("infrastructure", f"{name} failed, and its pods are gone ({said}).")
    return _by_pods(name, failed[:_MAX_PODS], tail)


def _by_pods(name: str, failed: Sequence[PodView], tail: Callable[[PodView], list[str]]) -> Failure:
    """Judge the pods in the order in which they failed."""
    tails = [tail(pod) for pod in failed]
    for pod, lines in zip(failed, tails, strict=True):
        if any(_GPU_MEMORY.search(line) for line in lines):
            return Failure(
                "gpu memory",
                f"{name} ran out of GPU memory in {pod.metadata.name}: lower batch.per_device of "
                "the stage (accumulation makes up for it), shorten max_length, or choose a higher "
                "zero or a pool with larger GPUs. It was not started again.",
                tuple(lines),
            )
    ends = [pod.terminated for pod in failed]
    codes = [end.exit_code if end else 1 for end in ends]
    for pod, end in zip(failed, ends, strict=True):
        if end is not None and end.reason == "OOMKilled":
            return Failure(
                "host memory",
                f"{name} needed more memory than {pod.metadata.name} may have, and was killed: "
                "raise train_jobs.stages.*.memory of the profile, or use fewer loader workers. "
                "It was not started again.",
            )
    if Interrupted.exit_code in codes:
        pod = failed[codes.index(Interrupted.exit_code)]
        return Failure(
            "stopped",
            f"{name} was stopped in {pod.metadata.name} after it had saved its state.",
            exit_code=Interrupted.exit_code,
        )
    for pod, lines in zip(failed, tails, strict=True):
        trouble = next((line for line in lines if _NETWORK.search(line)), None)
        if trouble is not None:
            where = f"{name} lost a connection or a GPU in {pod.metadata.name}"
            return Failure("infrastructure", f"{where}: {trouble.strip()[:200]}.", tuple(lines))
    if all(code in _KILLED for code in codes):
        return Failure(
            "infrastructure", f"{name}: {failed[0].metadata.name} was killed (exit {codes[0]})."
        )
    return _by_user(name, failed[0], tails[0], codes[0])


def _by_user(name: str, pod: PodView, lines: Sequence[str], code: int) -> Failure:
    end = pod.terminated
    message = " ".join(end.message.split()) if end and end.message else ""
    said = message or next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    text = f"{name} failed in {pod.metadata.name} with exit code {code}: {said}"
    return Failure(
        "user", text if text.endswith((".", "!", "?")) else f"{text}.", tuple(lines), code
    )


def _restarted(times: int) -> str:
    match times:
        case 0:
            return "The profile allows no restart"
        case 1:
            return "It was started again once, and may not be again"
        case _:
            return f"It was started again {times} times, and may not be again"


def _disruption(pod: PodView) -> str:
    target = pod.condition("DisruptionTarget")
    if target is not None:
        return " ".join(f"{target.reason}: {target.message}".split()).rstrip(".: ")
    if pod.status.reason in _DISRUPTED:
        return " ".join(f"{pod.status.reason}: {pod.status.message}".split()).rstrip(".: ")
    return ""


def _finished(pod: PodView) -> str:
    end = pod.terminated
    return end.finished_at.isoformat() if end and end.finished_at else ""
