"""Does a run of a real recipe survive kill -9, at any moment?

Everything that a run started is killed at once, as when a machine goes away, at random moments of
four kinds (``KINDS``); then the same command is given again. In the end every checkpoint must have
the content digest that it has in a run nobody disturbed. Prints tables; ends with 1 if one differs.

    python -m benchmarks.kills recipes/tiny/eagle-x5.yaml --kills 30 --out runs/kills
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from manyeyes.artifact.destination import claim_folder
from manyeyes.artifact.manifest import read_manifest
from manyeyes.cli.output import print_table
from manyeyes.errors import GateRefused, UserError
from manyeyes.runtime.home import HOME
from manyeyes.runtime.journal import read_journal

LOOK_SECONDS = 0.002
LATEST_SECONDS = 1.0
"""After its moment a kill waits for a random time up to this, every second time for none."""


@dataclass(frozen=True)
class Seen:
    """What of a run can be seen on disk."""

    lines: int
    """Lines of progress about steps."""
    ended: frozenset[str]
    """Steps of the pipeline that ended; one that was taken from the store had ended before."""
    states: frozenset[str]
    """Folders of states, those half written, too."""
    exports: frozenset[str]
    """Files of weights in work directories."""

    @classmethod
    def of(cls, home: Path) -> Seen:
        """Look."""
        return cls(
            lines=_count(home, "runs/*/progress.jsonl", '"event": "step"'),
            ended=frozenset(
                event.step
                for path in home.glob("runs/*/journal.jsonl")
                for event in read_journal(path)
                if event.event == "finished"
            ),
            states=frozenset(map(str, home.glob("work/*/state/step-*"))),
            exports=frozenset(map(str, home.glob("work/*/*.safetensors"))),
        )


Test = Callable[[Seen, Seen], bool]
KINDS: dict[str, Test] = {
    "in the steps": lambda first, now: now.lines > first.lines,
    "in a save": lambda first, now: bool(now.states - first.states),
    "in an export": lambda first, now: bool(now.exports - first.exports),
    "in a hand-over": lambda first, now: bool(now.ended - first.ended),
}
"""Names of moments, and how each is noticed, from what was seen at the start and what is now."""


def run_once(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the recipe in ``folder``; its state lies there, too."""
    environment = {**os.environ, HOME: str(folder / "home"), "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "manyeyes", "run", str(recipe), "--out", str(folder / "out")]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def kill_when(process: subprocess.Popen[bytes], home: Path, test: Test, wait: float) -> bool:
    """Kill a run and all it started at a moment; return False if it ended before."""
    first = Seen.of(home)
    while process.poll() is None:
        if test(first, Seen.of(home)):
            time.sleep(wait)
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
            return True
        time.sleep(LOOK_SECONDS)
    if process.returncode not in (0, GateRefused.exit_code):
        raise SystemExit(f"The run ended with {process.returncode}; see {home.parent}/log.txt.")
    return False


def digests(out: Path) -> dict[str, str]:
    """Return the content digest of every checkpoint a run delivered."""
    folders = sorted(path.parent for path in out.rglob("manifest.json"))
    found = {folder.relative_to(out).as_posix(): read_manifest(folder) for folder in folders}
    return {name: one.digest for name, one in found.items() if one.kind == "checkpoint"}


def finish(recipe: Path, folder: Path) -> dict[str, str]:
    """Run the recipe to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    if run_once(recipe, folder).wait() not in (0, GateRefused.exit_code):
        raise SystemExit(f"The run failed; see {folder / 'log.txt'}.")
    return digests(folder / "out")


def kill_often(recipe: Path, out: Path, num: int, seed: int) -> list[tuple[str, Path]]:
    """Kill runs ``num`` times and finish each; return the kinds of kills with the folders.

    A run that ends before its next kill is followed by a fresh one.
    """
    generator = random.Random(seed)  # noqa: S311 - no secret depends on it
    kills: list[tuple[str, Path]] = []
    folder = out / "killed-0"
    while len(kills) < num:
        folder.mkdir(parents=True, exist_ok=True)
        kind = generator.choice(list(KINDS))
        wait = max(0.0, generator.uniform(-LATEST_SECONDS, LATEST_SECONDS))
        if kill_when(run_once(recipe, folder), folder / "home", KINDS[kind], wait):
            kills.append((kind, folder))
        else:
            folder = out / f"killed-{int(folder.name.split('-')[1]) + 1}"
    finish(recipe, folder)
    return kills


def main() -> int:
    """Run, kill, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"), help="a fresh folder")
    arguments = parser.parse_args()
    try:
        out = claim_folder(arguments.out, inputs=[arguments.recipe], replace=False)
    except UserError as error:
        raise SystemExit(str(error)) from None
    calm = finish(arguments.recipe, out / "calm")
    kills = kill_often(arguments.recipe, out, arguments.kills, arguments.seed)
    ends = {folder: digests(folder / "out") for _, folder in kills}
    rows = []
    for name in sorted(calm):
        same = all(end.get(name) == calm[name] for end in ends.values())
        rows.append((name, calm[name][:12], "the same" if same else "ANOTHER"))
    print_table(
        f"after {len(kills)} kills in {len(ends)} runs", ("checkpoint", "digest", "is"), rows
    )
    counted = {kind: sum(kind == found for found, _ in kills) for kind in KINDS}
    print_table("kills", ("moment", "times"), [(kind, str(n)) for kind, n in counted.items()])
    (out / "kills.json").write_text(json.dumps({"kills": counted, "rows": rows}, indent=2) + "\n")
    return int(any(row[-1] != "the same" for row in rows))


def _count(home: Path, pattern: str, text: str) -> int:
    return sum(path.read_text(errors="replace").count(text) for path in home.glob(pattern))


if __name__ == "__main__":
    sys.exit(main())
