"""``make bench-gpu``: the same pairs on one card of the H200's class, in bfloat16.

    python -m benchmarks.gpu [--quick] [--docs FILE]

Stages of a 1.4 billion parameter language model behind real-sized towers (CLIP-L at 336 px, SAM-L
at 1,024 px), all weights random, in about half an hour; then the language model's MFU against the
measured rate of a matrix product (the vendor's is printed beside it), and the memory of the loss.
Prints rows as they are found, writes ``benchmarks/results-gpu.json`` and the tables between the
``bench-gpu`` marks of ``docs/performance.md``. Without a card it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from benchmarks import arithmetic, parts, stages
from benchmarks.results import Findings, write_between
from benchmarks.shapes import Shape
from benchmarks.stages import Scale, Stage
from manyeyes.errors import ManyeyesError, UserError

RESULTS = Path(__file__).parent / "results-gpu.json"
MARKER = "bench-gpu"
LARGE = Shape(
    vocabulary=32000,
    width=2048,
    layers=24,
    mlp=5632,
    heads=16,
    key_heads=16,
    towers=("clip-vit-l-14-336", "sam-vit-l-1024"),
    grid=32,
    canvas=1024,
    picture=(1024, 768),
    text_scale=9,
    positions=4096,
)
MFU_LENGTH = 2048


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds, and writes nothing")
    parser.add_argument("--docs", type=Path, default=parts.DOCUMENT, help="document with the marks")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped there
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would share out over all cards
    findings = Findings()
    try:
        require_card()
        with tempfile.TemporaryDirectory() as folder:
            parts.run(parts_of(Path(folder), rounds=2 if chosen.quick else 5), findings)
        if not chosen.quick:
            findings.write_json(RESULTS)
            write_between(chosen.docs, MARKER, findings.markdown(settings()))
            print(f"written: {RESULTS}, {chosen.docs}")
    except ManyeyesError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def require_card() -> None:
    """Check that there is a card.

    Raises:
        UserError: there is none that torch can use.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "make bench-gpu needs a CUDA card and a torch that can use it, and there is none here; "
            "run it on a machine with one, or run make bench, which needs no card."
        )


def parts_of(folder: Path, rounds: int) -> list[parts.Part]:
    """Return the suite, part by part."""
    pretrain = Scale(64, 8, rounds, precision="bfloat16", device="cuda")
    sft = Scale(32, 4, rounds, precision="bfloat16", device="cuda")
    names = tuple(name for name, _ in LARGE.rows())
    # Prealign trains one expert, the first.
    pairs: list[tuple[Stage, Scale]] = [
        (replace(stages.PREALIGN, experts=names[:1], train=_first(names)), pretrain),
        (replace(stages.PRETRAIN, experts=names), pretrain),
        (replace(stages.SFT, experts=names), sft),
        (replace(stages.SFT_TEXT, experts=names), sft),
    ]
    found: list[parts.Part] = [
        (stage.name, parts.stage_part(stage, LARGE, scale, folder / str(number)))
        for number, (stage, scale) in enumerate(pairs)
    ]
    return [*found, ("mfu", _utilisation(rounds)), ("memory", _memory)]


def _first(names: tuple[str, ...]) -> tuple[str, ...]:
    return (f"encoders.{names[0]}.*", "projector.*")


def _utilisation(rounds: int) -> parts.PartFunction:
    def part(findings: Findings) -> None:
        shape = replace(LARGE, towers=(), positions=MFU_LENGTH)
        load = arithmetic.Load(shape=shape, rows=4, length=MFU_LENGTH)
        section = parts.llm_section("bfloat16", load.rows)
        row = arithmetic.utilisation_row(load, section, rounds, torch.device("cuda"))
        name = "MFU of a 1.4B language model, bfloat16"
        findings.rows.append(replace(row, name=name, target=0.45))

    return part


def _memory(findings: Findings) -> None:
    cuda = torch.device("cuda")
    for vocabulary in (32000, 128256):
        findings.rows.append(arithmetic.loss_memory_row(vocabulary, 0.15, length=2048, device=cuda))


def settings() -> str:
    """Say on what card and with what the numbers were made."""
    return (
        f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; bfloat16 by autocast over float32 weights on "
        "both sides."
    )


if __name__ == "__main__":
    sys.exit(main())
