"""Watching one TrainJob: what it is now, and a wait that ends early when it changes.

A watch is a hint and never the truth. It goes on from the last ``resourceVersion``; after anything
odd (410 Gone, an error, a broken stream) the job is listed again. One watch at a time, in the
launcher's only thread and with an end of its own: a half-open connection can delay a look at the
job, but never hang the launcher, and tests of it are repeatable.
"""

from __future__ import annotations

from typing import Any

from manyeyes.pipeline.launch.api import GONE
from manyeyes.pipeline.launch.cluster import Cluster
from manyeyes.pipeline.launch.objects import TrainJobView

SHORTEST_WATCH_SECONDS = 1.0
"""A server that ends watches at once is not asked again sooner."""
GRACE_SECONDS = 15.0
"""How much longer than asked a watch may stay silent before its connection counts as dead."""


class JobWatch:
    """The latest known state of one TrainJob; ``job`` is None once it is gone."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Look at the job for the first time."""
        self.cluster = cluster
        self.name = name
        self.job: TrainJobView | None
        self._version: str | None
        self._failures = 0
        self._list()

    def wait(self, seconds: float) -> None:
        """Return when the job changed, at the latest after about so many seconds."""
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        if self._version is None:
            self._list()
            return
        clock = self.cluster.api.clock
        began = clock.now()
        try:
            changed = self._stream(seconds)
        except ApiException as error:
            self._version = None
            if error.status != GONE:
                self.cluster.api.check("watch", "trainjobs", error)
                self._back_off(seconds)
            return
        except (HTTPError, OSError, ValueError):  # ValueError: a line that was cut
            self._version = None
            self._back_off(seconds)
            return
        self._failures = 0
        passed = clock.now() - began
        if not changed and passed < SHORTEST_WATCH_SECONDS:
            clock.sleep(min(seconds, SHORTEST_WATCH_SECONDS))

    def _list(self) -> None:
        self.job, self._version = self.cluster.list_job(self.name)

    def _back_off(self, seconds: float) -> None:
        self._failures += 1
        api = self.cluster.api
        api.clock.sleep(min(api.policy.delay(self._failures + 1), seconds))

    def _stream(self, seconds: float) -> bool:
        """Watch until the first change; say whether there was one."""
        from kubernetes import watch

        stream = watch.Watch()
        for event in stream.stream(
            self.cluster.api.clients.custom.list_namespaced_custom_object,
            **self.cluster.trainjobs(),
            field_selector=f"metadata.name={self.name}",
            resource_version=self._version,
            timeout_seconds=max(1, round(seconds)),
            allow_watch_bookmarks=True,
            _request_timeout=(10, seconds + GRACE_SECONDS),
        ):
            if self._take(event):
                stream.stop()
                return True
        return False

    def _take(self, event: dict[str, Any]) -> bool:
        """Keep what an event says; a bookmark only moves the version on."""
        seen = TrainJobView.model_validate(event["raw_object"])
        self._version = seen.metadata.resource_version or self._version
        if event["type"] == "BOOKMARK":
            return False
        self.job = None if event["type"] == "DELETED" else seen
        return True
