"""Progress: stages say where they are in one JSON line; whoever watches draws it.

The lines go to the file named by ``MANYEYES_PROGRESS`` (appended, so that several processes of one
run can share it). Without that variable a stage draws on the terminal itself, and stays silent
when standard error is not one. A stage never depends on being watched.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manyeyes.runtime import ranks

PROGRESS_FILE = "MANYEYES_PROGRESS"
WORTH_SAYING = 0.05
"""Share of a step's time spent waiting for data that a line mentions."""
VARIANT = "MANYEYES_VARIANT"
"""Where one run trains several models: names the one that this process works for."""
Value = str | int | float | None


@dataclass
class Progress:
    """Reports the progress of one stage."""

    stage: str
    """Name of the stage, with the expert's behind a colon: ``prealign:clip``."""
    interval: float = 0.5
    """Seconds between two ``step`` lines; the last step is always reported."""
    notes: list[str] = field(default_factory=list)
    """What a person should read of this stage, each thing once."""
    _last: float = field(default=0.0, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)

    def start(self, state: str = "running") -> None:
        """Say that the stage has begun (or is ``cached``)."""
        self._emit({"event": "start", "state": state})

    def step(
        self,
        step: int,
        total: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        utilisation: float | None = None,
        data_wait: float | None = None,
        unit: str = "steps",
    ) -> None:
        """Report one step of ``total``; lines closer than ``interval`` are left out.

        Args:
            step: steps done.
            total: steps in all.
            loss: of the step.
            tokens_per_second: of the step.
            utilisation: share of the device's matrix rate that was used (0 to 1).
            data_wait: share of the step's time that was spent waiting for data (0 to 1).
            unit: what is counted.
        """
        now = time.monotonic()
        if step < total and now - self._last < self.interval:
            return
        self._last = now
        self._emit(
            {
                "event": "step",
                "step": step,
                "total": total,
                "loss": loss,
                "tokens_per_second": tokens_per_second,
                "utilisation": utilisation,
                "data_wait": data_wait,
                "unit": unit,
            }
        )

    def note(self, text: str) -> None:
        """Say something a person should read."""
        if text not in self.notes:
            self.notes.append(text)
        self._emit({"event": "note", "text": text})

    def done(self, state: str = "done") -> None:
        """Say that the stage has ended: ``done``, ``cached``, ``failed`` or ``stopped``."""
        self._emit({"event": "end", "state": state})

    def _emit(self, fields: Mapping[str, Value]) -> None:
        if ranks.rank():
            return  # process 0 speaks for all that train together
        line = {
            "time": round(time.time(), 3),
            "stage": labelled(self.stage),
            "elapsed": round(time.monotonic() - self._started, 2),
            **fields,
        }
        target = os.environ.get(PROGRESS_FILE)
        if target:
            _append(Path(target), json.dumps(line))
        elif sys.stderr.isatty():
            _draw(line)


def labelled(stage: str) -> str:
    """Return a stage's name in a run's logs and progress: ``sft``, with a variant ``sft:name``."""
    variant = os.environ.get(VARIANT)
    return f"{stage}:{variant}" if variant else stage


def _append(path: Path, line: str) -> None:
    """Append one line in one write, so that lines of concurrent processes do not mix."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return
    try:
        os.write(descriptor, (line + "\n").encode())
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _draw(line: Mapping[str, Value]) -> None:
    """Write one status line to a terminal, in place."""
    end = "\n" if line["event"] in ("end", "note") else ""
    sys.stderr.write("\r\x1b[2K" + describe(line) + end)
    sys.stderr.flush()


def describe(line: Mapping[str, Value]) -> str:
    """Return a progress line as a short text: ``sft  120/450  loss 1.24  5,310 tokens/s``."""
    stage = str(line["stage"])
    match line["event"]:
        case "step":
            parts = [f"{stage}  {line['step']}/{line['total']} {line.get('unit') or 'steps'}"]
            loss, rate = line.get("loss"), line.get("tokens_per_second")
            if isinstance(loss, int | float):
                parts.append(f"loss {loss:.3f}")
            if isinstance(rate, int | float):
                parts.append(f"{rate:,.0f} tokens/s")
            used, waited = line.get("utilisation"), line.get("data_wait")
            if isinstance(used, int | float):
                parts.append(f"MFU {used:.0%}")
            if isinstance(waited, int | float) and waited >= WORTH_SAYING:
                parts.append(f"waits {waited:.0%} for data")
            remaining = seconds_left(line)
            if remaining is not None:
                parts.append(f"{remaining:.0f} s left")
            return "  ".join(parts)
        case "note":
            return f"{stage}: {line['text']}"
        case event:
            return f"{stage}  {line.get('state', event)}"


def seconds_left(line: Mapping[str, Value]) -> float | None:
    """Estimate the rest of a stage from the mean time of its steps so far."""
    step, total, elapsed = line.get("step"), line.get("total"), line.get("elapsed")
    if not (isinstance(step, int) and isinstance(total, int) and isinstance(elapsed, int | float)):
        return None
    return (total - step) * elapsed / step if step else None
