"""Kills a small pipeline (prealign, pretrain, sft) at named moments and starts it again.

``python kill_kit.py FOLDER SEED NUM`` does it and prints a table; ``tests/faults/test_kills.py``
looks at what it leaves in ``FOLDER/kills.json``.

Every attempt is a process forked from one that has imported everything and computed nothing, so 30
of them cost seconds. The process that is to die watches itself: it counts what it passes (optimizer
steps, writes of files, by where the file lies) and sends itself SIGKILL at the moment it was given.
A moment that does not come before the pipeline ends, because there was little left to do, is tried
again in a fresh folder, so every moment is a kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STEPS, EVERY = 10, 3
STAGES = ("prealign", "pretrain", "sft")
PLACES = {
    "backward": 6,
    "step": 8,
    "state-tensors": 7,
    "state": 20,
    "curve": 12,
    "export-tensors": 3,
    "export": 28,
    "store": 50,
    "out": 30,
    "records": 25,
}
"""Where a process can die, and how often a stage passes there at least:

- ``backward``, ``step``: before that of a micro-batch, or the optimizer's;
- ``state-tensors``, ``export-tensors``: with half of a file of tensors written;
- ``state``, ``export``, ``curve``: before a change to a state, to the checkpoint and its manifest,
  to ``measurements/``;
- ``store``, ``out``, ``records``: before a change to the content store, to the folder that the next
  stage reads, to what is recorded of the run.
"""


@dataclass(frozen=True, order=True)
class Moment:
    """The ``count``-th passing of a place in a stage, counted since the process started."""

    stage: int
    place: str
    count: int

    def __str__(self) -> str:
        return f"{STAGES[self.stage]}-{self.place}-{self.count}"


def draw(seed: int, num: int) -> list[Moment]:
    """Return different random moments; every place comes up before one comes up again."""
    generator = random.Random(seed)
    places: list[str] = []
    found: list[Moment] = []
    while len(found) < num:
        places = places or generator.sample(list(PLACES), len(PLACES))
        place = places.pop()
        stage, count = generator.randrange(len(STAGES)), generator.randint(1, PLACES[place])
        if (moment := Moment(stage, place, count)) not in found:
            found.append(moment)
    return found


class Watch:
    """Counts what this process passes and kills it at its moment."""

    def __init__(
        self, folder: Path, moment: Moment | None, report: Path, home: Path | None = None
    ) -> None:
        self.home, self.folder = home or folder / "home", folder
        self.moment = moment
        self.report = report
        self.dying = False
        self.stage = -1
        self.counts: Counter[tuple[int, str]] = Counter()

    def due(self, place: str) -> bool:
        """Count a passing; say whether it is the moment."""
        self.counts[self.stage, place] += 1
        return self.moment == Moment(self.stage, place, self.counts[self.stage, place])

    def passing(self, place: str, what: str) -> None:
        """Count a passing, and die if it is the moment."""
        if self.due(place):
            self.die(what)

    def die(self, what: str) -> None:
        """Say where, and die."""
        self.dying = True  # saying where is a change to a file, too
        self.report.write_text(what)
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self, engine: type) -> None:
        """Watch this process, which trains with ``engine``, from now on."""
        from manyeyes.model import saving
        from manyeyes.training import checkpoint

        for name in ("backward", "step"):
            self._before(engine, name)
        self._within(checkpoint, "state-tensors")
        self._within(saving, "export-tensors")
        sys.addaudithook(self._audit)

    def _before(self, owner: type, name: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        def watched(*arguments: object, **options: object) -> object:
            self.passing(name, f"before {name}")
            return original(*arguments, **options)

        setattr(owner, name, watched)

    def _within(self, owner: object, place: str) -> None:
        write: Callable[..., None] = vars(owner)["save_file"]

        def watched(tensors: object, path: Path, **options: object) -> None:
            write(tensors, path, **options)
            if self.due(place):
                self.dying = True
                os.truncate(path, path.stat().st_size // 2)
                self.die(f"half of {self._shown(path)} written")

        vars(owner)["save_file"] = watched

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """See a change to a file before it is made; Python tells of each of them."""
        if event not in CHANGES or self.dying or self.stage < 0:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        if event == "open" and not _writes(arguments):
            return
        path = _absolute(arguments, CHANGES[event])
        place = self._place(path) if path else None
        if place and path:
            self.passing(place, f"before {event} {self._shown(path)}")

    def _place(self, path: Path) -> str | None:
        if path == self.folder or not path.is_relative_to(self.folder):
            return None
        if not path.is_relative_to(self.home):
            return "out"
        parts = path.relative_to(self.home).parts
        match parts:
            case ("work", _, "state", *_) | ("out", "state", *_):
                return "state"
            case ("work", _, "measurements", *_):
                return "curve"
            case ("work", *_):
                return "export"
            case ("store" | "index", *_):
                return "store"
            case ("runs", *_):
                return "records"
        return None

    def _shown(self, path: Path) -> str:
        parts = path.relative_to(self.folder).parts
        return "/".join(part[:6] + "…" if len(part) > 40 or _is_hex(part) else part
                        for part in parts[1 if parts[0] == "home" else 0 :])  # fmt: skip


CHANGES = {
    "open": 9, "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": 9,
    "os.chmod": 2, "os.link": 2, "os.symlink": 2,
}  # fmt: skip
"""Audit events, and where the descriptor of the folder stands that the path is relative to."""


def _writes(arguments: tuple[object, ...]) -> bool:
    mode, flags = arguments[1:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _absolute(arguments: tuple[object, ...], place: int) -> Path | None:
    given = arguments[0]
    if not isinstance(given, str | os.PathLike):
        return None
    path = Path(given)
    if path.is_absolute():
        return path
    folder = arguments[place] if len(arguments) > place else -1
    if isinstance(folder, int) and folder > 0:
        return Path(os.readlink(f"/proc/self/fd/{folder}")) / path
    return Path.cwd() / path


def _is_hex(text: str) -> bool:
    return len(text) > 20 and all(letter in "0123456789abcdef" for letter in text[:20])


def manifest(folder: Path, kind: str, stage: str, **parents: str) -> str:
    """Finish a folder as if a stage had made it."""
    from manyeyes.artifact.manifest import Header, write_manifest

    header = {"kind": kind, "stage": stage, "name": stage, "recipe_slice": "", "fingerprint": ""}
    rest = {"parents": parents, "code": "", "revision": "", "libraries": {}, "seed": 0}
    return write_manifest(folder, Header(**header, **rest)).digest


def prepare(folder: Path) -> None:
    """Write what all attempts share: a dataset, its report, a language model, a recipe."""
    from model_kit import WORDS, model_section, write_llama
    from pipeline_kit import TINY
    from training_kit import make_dataset, make_section

    from manyeyes.artifact.files import QUARANTINE_FILE
    from manyeyes.config.recipe import PrealignSection, load_recipe, recipe_yaml
    from manyeyes.data.dataset.quarantine import write_quarantine

    make_dataset(folder / "data", num=12)
    dataset = manifest(folder / "data", "dataset", "prepare")
    (folder / "report").mkdir()
    write_quarantine(folder / "report" / QUARANTINE_FILE, [])
    manifest(folder / "report", "report", "validate", dataset=dataset)
    llm = write_llama(folder / "llm", vocab_size=len(WORDS))
    first = make_section(steps=STEPS, checkpoint_every=EVERY, train=("projector.*", "encoders.*"))
    rest = first.model_copy(update={"train": ("*",)})
    recipe = load_recipe(TINY).model_copy(
        update={
            "model": model_section(llm, names=("clip",)),
            "prealign": PrealignSection(experts={"clip": first}),
            "pretrain": rest,
            "sft": rest.model_copy(update={"learning_rate": 2e-4}),
        }
    )
    (folder / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")


def warm() -> None:
    """Measure the machine once for all attempts."""
    import torch

    from manyeyes.training.peak import peak_of

    peak_of(torch.device("cpu"), torch.float32)


def pipeline(common: Path, folder: Path, watch: Watch) -> None:
    """Run the three stages; what is finished is taken from where it lies."""
    from manyeyes.config.recipe import load_recipe
    from manyeyes.config.recipe.slices import slice_json
    from manyeyes.pipeline.runner import run_stage

    os.environ["MANYEYES_HOME"] = str(folder / "home")
    recipe = load_recipe(common / "recipe.yaml")
    data = {"dataset": common / "data", "validation": common / "report"}
    before = {
        "prealign": {},
        "pretrain": {"experts": [folder / "prealign"]},
        "sft": {"checkpoint": folder / "pretrain"},
    }
    for number, stage in enumerate(STAGES):
        watch.stage = number
        expert = "clip" if stage == "prealign" else None
        text = slice_json(recipe, stage, expert)
        run_stage(stage, text, inputs={**data, **before[stage]}, out=folder / stage, expert=expert)


def attempt(common: Path, folder: Path, moment: Moment | None) -> str:
    """Run the pipeline in a process of its own; return where it died, or nothing."""
    from manyeyes.training.engine import SingleEngine

    folder.mkdir(exist_ok=True)
    report = common / "death.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            watch = Watch(folder, moment, report)
            watch.install(SingleEngine)
            pipeline(common, folder, watch)
            watch.dying = True
            counts = {f"{STAGES[s]}-{place}": n for (s, place), n in sorted(watch.counts.items())}
            (common / "counts.json").write_text(json.dumps(counts, indent=1))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"{moment}: an attempt ended with {status}")
    return report.read_text() if status else ""


def result(folder: Path) -> dict[str, object]:
    """Return what a finished pipeline left: digests of the stages, names of files, the curves."""
    from manyeyes.artifact.manifest import read_manifest

    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "runs" not in path.parts and "locks" not in path.parts
    }
    manifests = [read_manifest(folder / stage) for stage in STAGES]
    return {
        "digests": [found.digest for found in manifests],
        "listed": [sorted(found.files) for found in manifests],
        # Names in the store are digests, and manifests and measurements tell times.
        "files": sorted(name for name in files if not name.startswith("home/")),
        "unfinished": sorted(name for name in files if name.startswith("home/work")),
        "records": sorted(
            (record["stage"], record["status"])
            for record in map(_json, folder.glob("home/runs/*/track/*/record.json"))
        ),
        "losses": [
            [json.loads(line)["loss"] for line in _curve(folder / stage)] for stage in STAGES
        ],
    }


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def _curve(folder: Path) -> list[str]:
    return (folder / "measurements/metrics.jsonl").read_text().splitlines()


def kill_all(common: Path, moments: list[Moment]) -> dict[str, object]:
    """Bring every moment about; return each one's death and the result it led to."""
    attempt(common, common / "calm", None)
    calm = result(common / "calm")
    waiting, deaths, rounds = sorted(moments), {}, []
    while waiting:
        folder = common / f"round-{len(rounds)}"
        for moment in list(waiting):
            fresh = not folder.exists()
            died = attempt(common, folder, moment)
            if not died and fresh:
                raise SystemExit(f"{moment} never comes; lower its place's number in PLACES")
            if not died:
                break  # it ended before that moment
            waiting.remove(moment)
            deaths[str(moment)] = {"round": len(rounds), "at": died}
        else:
            attempt(common, folder, None)
        rounds.append(result(folder))
    return {"calm": calm, "deaths": deaths, "rounds": rounds}


def main() -> None:
    """Kill, write ``kills.json``, print."""
    folder, seed, num = Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3])
    import torch

    import manyeyes.model.vlm
    import manyeyes.pipeline.runner
    import manyeyes.pipeline.stages.sft
    import manyeyes.training.loop  # noqa: F401 - imported here once, for every attempt

    torch.set_num_threads(1)
    warm()
    prepare(folder)
    found = kill_all(folder, draw(seed, num))
    (folder / "kills.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, death in found["deaths"].items():
        same = found["rounds"][death["round"]]["digests"] == found["calm"]["digests"]
        sys.stdout.write(f"{name:28} {'same' if same else 'OTHER'}  {death['at']}\n")
    num = len(found["deaths"])
    sys.stdout.write(f"{num} kills in {len(found['rounds'])} runs of the pipeline\n")


if __name__ == "__main__":
    main()
