"""``manyeyes data starter|import``: make a dataset in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from manyeyes.cli.output import print_json


def run(arguments: argparse.Namespace) -> int:
    """Build or import a dataset and say what is in it."""
    out: Path = arguments.out
    if arguments.action == "starter":
        from manyeyes.stages.prepare import starter_dataset

        manifest = starter_dataset(
            out, seed=arguments.seed, scale=arguments.scale, image_size=arguments.image_size
        )
    else:
        from manyeyes.data.importing import import_llava

        manifest = import_llava(
            arguments.conversations,
            arguments.images,
            out,
            licence=arguments.licence,
            source=arguments.source,
            quarantine=arguments.quarantine,
        )
    if arguments.json:
        print_json({"out": str(out), "digest": manifest.digest, "details": manifest.details})
    else:
        samples = manifest.details.get("samples")
        print(f"{out}: {samples} samples, dataset {manifest.digest[:12]}")
    return 0
