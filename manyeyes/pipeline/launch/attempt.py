"""Following one TrainJob through its states until it ends, each state with its own patience."""

from __future__ import annotations

from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.pipeline.launch.cluster import Cluster
from manyeyes.pipeline.launch.failure import TAIL_LINES, Failure, classify
from manyeyes.pipeline.launch.logs import LogFollower
from manyeyes.pipeline.launch.objects import PodView, TrainJobView
from manyeyes.pipeline.launch.redact import Voice
from manyeyes.pipeline.launch.settings import TrainJob
from manyeyes.pipeline.launch.state import State, is_hopeless, state_of, why_queued, why_starting
from manyeyes.pipeline.launch.watching import JobWatch

LOOK_SECONDS: dict[State, float] = {"queued": 300.0, "starting": 10.0, "running": 10.0}
"""The longest time between two looks; a change of the job itself is noticed at once."""


class Attempt:
    """Follows one TrainJob until it ends."""

    def __init__(
        self, settings: TrainJob, cluster: Cluster, job: TrainJobView, title: str, voice: Voice
    ) -> None:
        """Begin to watch.

        Args:
            settings: what the profile says.
            cluster: where the job is.
            job: as it was created or found.
            title: the job, as sentences call it.
            voice: gets sentences, and the lines of rank 0.
        """
        self.settings = settings
        self.cluster = cluster
        self.title = title
        self.voice = voice
        self.clock = cluster.api.clock
        self.name, self.uid = job.metadata.name, job.metadata.uid
        self.watch = JobWatch(cluster, self.name)
        self.follower = LogFollower(cluster, voice.line)
        self.state: State | None = None
        self.entered = self.alive = self.clock.now()
        self.reason = ""
        self.reported: object = None

    def follow(self) -> Failure | None:
        """Return why the job failed, or None when it is done.

        Raises:
            ManyeyesError: it waited too long in a queue or for its pods.
            Interrupted: somebody else deleted it.
        """
        while True:
            job = self._job()
            pods = [] if job.spec.suspend else self.cluster.pods(self.name)
            state = state_of(job, pods, self.settings.nodes)
            self._enter(state)
            self._read_logs(job, pods)
            if state == "done":
                return None
            if state == "failed":
                return classify(self.title, job, pods, self._tail)
            self._explain(state, job, pods)
            stalled = self._check_limits(state)
            if stalled is not None:
                return stalled
            self.watch.wait(self._patience(state))

    def _job(self) -> TrainJobView:
        job = self.watch.job
        title = self.title
        if job is None or job.metadata.uid != self.uid or job.metadata.deletion_timestamp:
            raise Interrupted(
                f"{title} was deleted by somebody else while it was {self.state or 'new'}; "
                "run the same command again to continue from the newest whole checkpoint."
            )
        return job

    def _enter(self, state: State) -> None:
        if state != self.state:
            was = f" (it was {self.state})" if self.state else ""
            self.voice.say(f"{self.title} is {state}{was}")
            self.state, self.reason = state, ""
            self.entered = self.alive = self.clock.now()

    def _read_logs(self, job: TrainJobView, pods: list[PodView]) -> None:
        """Write the new lines of rank 0; they are its signs of life."""
        first = next((pod for pod in pods if pod.is_rank_zero), None)
        lines = 0
        if first is not None and first.status.phase != "Pending":
            lines = self.follower.poll(first)
        report = job.status.trainer_status
        if lines or report != self.reported:
            self.alive, self.reported = self.clock.now(), report

    def _explain(self, state: State, job: TrainJobView, pods: list[PodView]) -> None:
        reason = ""
        if state == "queued":
            reason = why_queued(self.cluster, job, kueue=self.settings.scheduling.kind == "kueue")
        elif state == "starting":
            reason = why_starting(self.cluster, job, pods)
        if reason and reason != self.reason:
            self.voice.say(f"{state}: {reason}")
            self.reason = reason
        if state == "starting" and is_hopeless(pods):
            raise UserError(f"{self.title} cannot start: {self.reason}. Mend the profile's images.")

    def _check_limits(self, state: State) -> Failure | None:
        waited = self.clock.now() - (self.alive if state == "running" else self.entered)
        limit = self._limit(state)
        if limit is None or waited < limit * 60:
            return None
        title, minutes = self.title, "minute" if limit == 1 else "minutes"
        if state == "queued":
            raise ManyeyesError(
                f"{title} was not admitted within {limit} {minutes}: {self.reason}. It was "
                "deleted; free quota, or raise train_jobs.queue_minutes."
            )
        if state == "starting":
            raise ManyeyesError(
                f"{title} did not start within {limit} {minutes}: {self.reason}. It was deleted; "
                "mend that, or raise train_jobs.start_minutes."
            )
        return Failure(
            "infrastructure",
            f"{title} gave no sign of life for {limit} {minutes}: rank 0 hangs or its node is "
            "lost.",
        )

    def _limit(self, state: State) -> int | None:
        match state:
            case "queued":
                return self.settings.queue_minutes
            case "starting":
                return self.settings.start_minutes
            case _:
                return self.settings.stall_minutes

    def _patience(self, state: State) -> float:
        """Return how long to watch: not beyond the state's limit."""
        limit = self._limit(state)
        longest = LOOK_SECONDS[state]
        if limit is None:
            return longest
        since = self.alive if state == "running" else self.entered
        return max(1.0, min(longest, since + limit * 60 - self.clock.now()))

    def _tail(self, pod: PodView) -> list[str]:
        """Return the last lines of a pod; of rank 0 they were seen already."""
        text = self.cluster.log(pod.metadata.name, tail=TAIL_LINES)
        lines = [line.partition(" ")[2] for line in (text or "").splitlines()]
        if not lines and pod.is_rank_zero:
            lines = list(self.follower.last_lines)
        if not pod.is_rank_zero:
            self.voice.say(f"the last lines of {pod.metadata.name}:")
            for line in lines:
                self.voice.line(f"  {line}")
        return [self.voice.redact(line) for line in lines]
