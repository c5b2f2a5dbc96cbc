"""Samples of the machine while a stage runs, taken by a thread and written to the spool.

The names are those of MLflow's own system metrics where it has them, so that its page shows them
under "System metrics". The step is the number of the sample and goes on counting after a resume.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

MEBIBYTE = 2**20


class SystemSampler:
    """Writes one row every ``seconds`` until it is stopped; a full disk only ends the sampling."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, so that a stage of two seconds has one too, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        process = psutil.Process()
        # The first call of each only sets the reference point of the next.
        psutil.cpu_percent()
        process.cpu_percent()
        step = _num_lines(self._path)
        stopping = False
        while not stopping:
            stopping = self._stop.wait(self._seconds)
            try:
                row = {"step": step, "time": time.time(), **sample(process, self._path.parent)}
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except (OSError, psutil.Error):
                return
            step += 1


def sample(process: psutil.Process, folder: Path) -> dict[str, float]:
    """Measure the machine and ``process`` now; memory and disk in MiB, shares in percent."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/process_cpu_percentage": process.cpu_percent(),
        "system/process_memory_megabytes": process.memory_info().rss / MEBIBYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / MEBIBYTE,
    }


def _num_lines(path: Path) -> int:
    try:
        return len(path.read_bytes().splitlines())
    except OSError:
        return 0
