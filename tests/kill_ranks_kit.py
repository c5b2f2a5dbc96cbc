"""Kills one of two processes that train together with ZeRO-2, and starts both again.

``python kill_ranks_kit.py FOLDER``; ``tests/faults/test_kills.py`` looks at ``FOLDER/kills.json``.
Like ``kill_kit`` it forks its processes from one that has imported everything; no torchrun, so what
is seen is what the processes do by themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from kill_kit import Moment, Watch, warm

STEPS, EVERY = 8, 2
MOMENTS = (
    (1, Moment(0, "backward", 7)),
    (0, Moment(0, "state-tensors", 3)),
    (0, Moment(0, "state", 4)),
)
"""Which process dies, and when; counted since its start, so what is left must reach it."""


def train(common: Path, folder: Path) -> None:
    """Train in this process, one of two; process 0 writes the weights."""
    import torch
    from safetensors.torch import save_file
    from training_kit import constant, deepspeed, make_model, make_section, run

    from manyeyes.config.recipe import Batch
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.runtime import ranks
    from manyeyes.training.distributed import joined

    torch.set_num_threads(1)
    section = make_section(
        steps=STEPS,
        checkpoint_every=EVERY,
        schedule=constant(),
        batch=Batch(size=4, per_device=1, accumulation="auto"),
        engine=deepspeed(2),
    )
    place = folder if not ranks.rank() else folder / "process-1"
    with joined():
        model, _ = run(
            place,
            model=make_model(experts=("clip",), dropout=0.1),
            dataset=Dataset.open(common / "data"),
            section=section,
        )
        if not ranks.rank():
            weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
            save_file(weights, folder / "final.safetensors")


def start(common: Path, folder: Path, rank: int, port: int, watch: Watch) -> int:
    """Fork one of the two processes; return its number."""
    from manyeyes.errors import ManyeyesError
    from manyeyes.training.zero import DeepSpeedEngine

    child = os.fork()
    if child:
        return child
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    )
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    code, said = 1, ""
    try:
        watch.install(DeepSpeedEngine)
        watch.stage = 0
        train(common, folder)
        code = 0
    except ManyeyesError as error:
        code, said = error.exit_code, f"{type(error).__name__}: {error}"
    except BaseException:
        said = traceback.format_exc()
    finally:
        watch.dying = True
        (common / f"said-{rank}.txt").write_text(said)
        os._exit(code)


def attempt(common: Path, folder: Path, kill: tuple[int, Moment] | None) -> dict[str, object]:
    """Train in two processes; say where one was killed, and how the other ended."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    report = common / "death.txt"
    report.unlink(missing_ok=True)
    children = [
        start(common, folder, rank, port,
              Watch(folder, kill[1] if kill and kill[0] == rank else None, report, home=folder))
        for rank in (0, 1)
    ]  # fmt: skip
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [path.read_text() if path.exists() else "" for path in
            (common / "said-0.txt", common / "said-1.txt")]  # fmt: skip
    if kill is None:
        if codes != [0, 0]:
            raise SystemExit("\n".join(said))
        return {}
    if codes[kill[0]] != -signal.SIGKILL:
        raise SystemExit(f"{kill}: the processes ended with {codes}\n" + "\n".join(said))
    other = 1 - kill[0]
    return {"at": report.read_text(), "code": codes[other], "said": said[other]}


def result(folder: Path) -> dict[str, object]:
    """Return what the two processes came to."""
    weights = (folder / "final.safetensors").read_bytes()
    curve = (folder / "out/measurements/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in curve]
    return {
        "digest": hashlib.sha256(weights).hexdigest(),
        "losses": [row["loss"] for row in rows],
        "norms": [row["grad_norm"] for row in rows],
    }


def main() -> None:
    """Kill, write ``kills.json``, print."""
    common = Path(sys.argv[1]).absolute()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401 - imported here once, for every process
    import torch
    from training_kit import make_dataset

    import manyeyes.model.vlm
    import manyeyes.training.loop
    import manyeyes.training.zero  # noqa: F401 - likewise

    torch.set_num_threads(1)
    warm()
    make_dataset(common / "data", num=12)
    attempt(common, common / "calm", None)
    deaths = {}
    for rank, moment in MOMENTS:
        name = f"process-{rank}-{moment.place}-{moment.count}"
        deaths[name] = attempt(common, common / "killed", (rank, moment))
        sys.stdout.write(f"{name:28} {deaths[name]['at']}\n")
        sys.stdout.write(f"{'':28} the other: {deaths[name]['said']}\n")
    attempt(common, common / "killed", None)
    found = {
        "calm": result(common / "calm"),
        "killed": result(common / "killed"),
        "deaths": deaths,
    }
    (common / "kills.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    same = found["calm"] == found["killed"]
    sys.stdout.write(f"{len(deaths)} kills; {'the same bits' if same else 'OTHER weights'}\n")


if __name__ == "__main__":
    main()
