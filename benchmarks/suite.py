"""``make bench``: the product beside the trainer its seed systems share, on this machine.

    python -m benchmarks.suite [--quick] [--docs FILE] [--only TEXT]

Prints each row as it is found, writes ``benchmarks/results.json``, the tables between the marks of
``docs/performance.md`` and the summary in the README; stopped by Ctrl-C it writes what it has and
says what is missing. A whole run takes half an hour on two quiet cores; ``--quick`` is for
those who work on the suite: it is small, writes nothing, and its numbers mean nothing.

Whoever trains has one thread, and the other core for its data; two shapes also train on two. The
language model's MFU is measured with all cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

# Said before the libraries that read it are imported: whoever looks for an accelerator finds none.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import transformers

from benchmarks import arithmetic, cached, data_path, sampling, stages, summary
from benchmarks.parts import DOCUMENT, Part, PartFunction, llm_section, run, stage_part
from benchmarks.results import Findings, write_between
from benchmarks.shapes import DEEP_TOWERS, FEW_WORDS, MANY_WORDS, Shape
from benchmarks.stages import Scale, Stage
from benchmarks.starter import starter_lengths
from benchmarks.summary import RESULTS
from manyeyes.errors import ManyeyesError
from manyeyes.training.loop import has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKER = "bench-cpu"


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and writes nothing")
    parser.add_argument("--only", default="", help="run the parts whose name contains this")
    parser.add_argument("--docs", type=Path, default=DOCUMENT, help="document with the marks")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped there
    findings = Findings()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(Path(folder), quick=chosen.quick)
        try:
            left = run([part for part in parts if chosen.only in part[0]], findings)
        except ManyeyesError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    behind = [row.name for row in findings.rows if not row.ahead]
    print(f"{len(findings.rows)} rows, {len(behind)} behind, {time.perf_counter() - began:.0f} s")
    if not chosen.quick and not chosen.only:
        findings.write_json(RESULTS)
        write_between(chosen.docs, MARKER, findings.markdown(settings(left)))
        if chosen.docs == DOCUMENT:
            summary.main()
        print(f"written: {RESULTS}, {chosen.docs}")
    return 0


def parts_of(folder: Path, *, quick: bool) -> list[Part]:
    """Return the suite, part by part."""
    rounds = 2 if quick else 5
    one = Scale(8 if quick else 48, batch_size=4, rounds=rounds)
    return [
        *data_parts(folder, rounds, quick=quick),
        *(
            (f"memory {vocabulary}", _memory(vocabulary, quick=quick))
            for vocabulary in (4096, 32000)
        ),
        *((f"mfu {kind}", _utilisation(kind, quick=quick)) for kind in _precisions()),
        *training_parts(folder, one, quick=quick),
        *(
            (
                f"ladder {stage.name}",
                stage_part(stage, FEW_WORDS, one, folder / f"ladder-{i}", stages.climb),
            )
            for i, stage in enumerate((stages.PRETRAIN, stages.SFT))
        ),
    ]


def training_parts(folder: Path, one: Scale, *, quick: bool) -> list[Part]:
    """Return the stages of all shapes on one thread, and of two of them on two.

    One thread shows what work costs. Two show what a user of two cores gets, where threads that
    train, wait for each other and make batches share them.
    """
    shapes = [FEW_WORDS] if quick else [FEW_WORDS, MANY_WORDS, DEEP_TOWERS]
    two = replace(one, threads=2)
    most = (stages.PREALIGN, stages.PRETRAIN, stages.SFT)
    runs: list[tuple[Shape, Scale, tuple[Stage, ...]]] = [
        *((shape, one, stages.STAGES) for shape in shapes),
        *((shape, two, most) for shape in shapes[:2]),
    ]
    return [
        *(
            (f"{stage.name} {number}", stage_part(stage, shape, scale, folder / f"{i}-{number}"))
            for number, (shape, scale, chosen) in enumerate(runs)
            for i, stage in enumerate(chosen)
        ),
        *(
            (
                f"features {number}",
                stage_part(
                    stages.PRETRAIN, shape, scale, folder / f"features-{number}", cached.measure
                ),
            )
            for number, (shape, scale, _) in enumerate(runs)
        ),
    ]


def data_parts(folder: Path, rounds: int, *, quick: bool) -> list[Part]:
    """Return the parts that need no model."""
    num = 512 if quick else 8192

    def sampler(findings: Findings) -> None:
        starter = starter_lengths(folder, 0.03 if quick else 0.25)
        findings.rows += sampling.rows_of("starter data", starter)
        for shape in ("llava", "eagle", "eve"):
            lengths = sampling.synthetic(shape, num, 0)
            findings.rows += sampling.rows_of(f"{shape}-shaped lengths", lengths)

    def data(findings: Findings) -> None:
        findings.rows += [data_path.picture_row(size, rounds) for size in (1024, 448)]
        findings.rows.append(data_path.tokenise_row(50 if quick else 1000, rounds))
        findings.rows.append(data_path.splice_row(64, rounds))
        findings.rows.append(data_path.index_row(folder, 500 if quick else 20_000, rounds))

    return [("sampler", sampler), ("data", data)]


def _memory(vocabulary: int, *, quick: bool) -> PartFunction:
    def part(findings: Findings) -> None:
        length = 128 if quick else 512
        findings.rows.append(arithmetic.loss_memory_row(vocabulary, 0.15, length=length))

    return part


def _utilisation(kind: str, *, quick: bool) -> PartFunction:
    def part(findings: Findings) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        tiny = arithmetic.Load(shape=Shape(), rows=2, length=32)
        load = tiny if quick else arithmetic.Load()
        device = torch.device("cpu")
        rounds = 2 if quick else 5
        row = arithmetic.utilisation_row(load, llm_section(kind, load.rows), rounds, device)
        findings.rows.append(row)

    return part


def _precisions() -> list[str]:
    """Return the types this processor has arithmetic for: emulated, a step takes minutes."""
    native = has_bfloat16(torch.device("cpu"))
    return ["float32", "bfloat16"] if native else ["float32"]


def settings(left: Sequence[str] = ()) -> str:
    """Say on what machine and with what the numbers were made, and which parts were not."""
    load = os.getloadavg()[0]
    stopped = f" Stopped before: {', '.join(left)}." if left else ""
    return (
        f"{os.cpu_count()} cores, {_processor()}, load {load:.1f} at the end; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; one process or thread makes batches."
        f"{'' if 'bfloat16' in _precisions() else ' No bfloat16 arithmetic here.'}{stopped}"
    )


def _processor() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
