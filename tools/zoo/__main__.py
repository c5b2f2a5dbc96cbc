"""``python -m tools.zoo``: pretrain the tiny parts again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from manyeyes.cli.output import print_table
from manyeyes.errors import UserError
from manyeyes.model.weights.zoo import PARTS
from manyeyes.runtime.disk import ELSEWHERE, explained


def main(given: Sequence[str] | None = None) -> int:
    """Pretrain the tiny parts into a folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder for the weights")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these parts")
    parser.add_argument("--seed", type=int, default=7, help="of the training data (default: 7)")
    arguments = parser.parse_args(given)
    from tools.zoo.build import build

    try:
        with explained(arguments.out, ELSEWHERE):
            accuracies = build(
                arguments.out, seed=arguments.seed, parts=tuple(arguments.parts or PARTS)
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    rows = [
        (name, what, f"{100 * share:.1f}")
        for name, row in accuracies.items()
        for what, share in row.items()
    ]
    print_table(f"built in {arguments.out}", ("part", "reads", "accuracy %"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
