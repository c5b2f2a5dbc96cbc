"""Draws the progress of a run: a live table on a terminal, plain lines elsewhere.

The stages run in processes of their own and append JSON lines to one file; this reads the file.
On a terminal every stage has a row that is updated in place. In a log, a stage is reported when it
starts, every few seconds while it runs, and when it ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from manyeyes.runtime.progress import Value, describe, seconds_left

if TYPE_CHECKING:
    from rich.table import Table

Line = dict[str, Value]
LOG_INTERVAL = 10.0
"""Seconds between two lines of one stage in a log."""


class Watcher:
    """Follows one progress file until told to stop."""

    def __init__(self, path: Path, stages: Sequence[str]) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._latest: dict[str, Line] = {stage: {} for stage in stages}
        self._ended: dict[str, Line] = {}
        self._last_printed: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        if sys.stderr.isatty():
            self._draw_live()
        else:
            self._print_lines()

    def _print_lines(self) -> None:
        while not self._stop.is_set():
            self._print_new()
            self._stop.wait(0.3)
        self._print_new()

    def _print_new(self) -> None:
        for line in self._read():
            stage, now = str(line["stage"]), time.monotonic()
            recent = now - self._last_printed.get(stage, 0.0) < LOG_INTERVAL
            if line["event"] == "step" and recent:
                continue
            if line["event"] == "step":
                self._last_printed[stage] = now
            sys.stderr.write(_log_line(line) + "\n")
            sys.stderr.flush()

    def _draw_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(self._table(), console=console, refresh_per_second=4) as live:
            while not self._stop.is_set():
                for line in self._read():
                    if line["event"] == "note":
                        console.print(describe(line), style="dim", markup=False, highlight=False)
                live.update(self._table())
                self._stop.wait(0.25)
            list(self._read())
            live.update(self._table())

    def _read(self) -> Iterator[Line]:
        """Yield the lines that were appended since the last call; half lines wait."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            line: Line = json.loads(text)
            stage = str(line["stage"])
            if line["event"] == "end":
                self._ended[stage] = line
            elif line["event"] != "note":
                self._latest[stage] = line
                self._ended.pop(stage, None)
            yield line

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("stage", "state", "step", "loss", "tokens/s", "time", "left"):
            justify = "left" if name in ("stage", "state") else "right"
            table.add_column(name, justify=justify, min_width=8 if name != "stage" else 18)  # type: ignore[arg-type]  # rich's Literal
        for stage, line in self._latest.items():
            table.add_row(stage, *_cells(line, self._ended.get(stage)))
        return table


@contextmanager
def watching(path: Path, stages: Sequence[str], *, quiet: bool = False) -> Iterator[None]:
    """Draw the progress of a run while the body runs."""
    if quiet:
        yield
        return
    with Watcher(path, stages):
        yield


def _cells(line: Line, ended: Line | None) -> list[str]:
    if not line and ended is None:
        return ["[dim]waiting[/dim]", "", "", "", "", ""]
    state = str(ended["state"]) if ended else "running"
    colour = {"running": "yellow", "failed": "red", "refused": "red", "stopped": "red"}.get(
        state, "green"
    )
    step = f"{line['step']}/{line['total']}" if line.get("total") else ""
    loss, rate = line.get("loss"), line.get("tokens_per_second")
    elapsed = (ended or line).get("elapsed")
    left = None if ended else seconds_left(line)
    return [
        f"[{colour}]{state}[/{colour}]",
        step,
        f"{loss:.3f}" if isinstance(loss, int | float) else "",
        f"{rate:,.0f}" if isinstance(rate, int | float) else "",
        f"{elapsed:.0f} s" if isinstance(elapsed, int | float) else "",
        f"{left:.0f} s" if left is not None else "",
    ]


def _log_line(line: Line) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(float(line["time"] or 0)))
    text = describe(line)
    if line["event"] == "end":
        text += f" in {float(line['elapsed'] or 0):.1f} s"
    return f"{clock}  {text}"
