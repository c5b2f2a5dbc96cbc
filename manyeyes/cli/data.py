"""``manyeyes data starter|import|pull|push``: make datasets; move artifacts by the store."""

from __future__ import annotations

import argparse
from pathlib import Path

from manyeyes.cli.output import print_json


def run(arguments: argparse.Namespace) -> int:
    """Make a dataset, or move an artifact, and say what it is."""
    match arguments.action:
        case "pull":
            return _pull(arguments)
        case "push":
            return _push(arguments)
        case _:
            return _make(arguments)


def _make(arguments: argparse.Namespace) -> int:
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


def _pull(arguments: argparse.Namespace) -> int:
    from manyeyes.artifact import read_manifest
    from manyeyes.store.exchange import pull

    what: str = arguments.what
    if what.startswith("models:/"):
        from manyeyes.track.catalogue import locate_weights

        what = locate_weights(what).digest
    out = pull(what, arguments.out)
    manifest = read_manifest(out)
    if arguments.json:
        print_json({"out": str(out), "digest": manifest.digest, "kind": manifest.kind})
    else:
        print(f"{out}: {manifest.kind} {manifest.digest} made by {manifest.stage}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from manyeyes.store.exchange import push

    pushed = push(arguments.directory, arguments.name)
    if arguments.json:
        print_json(
            {
                "store": pushed.store,
                "digest": pushed.digest,
                "dir_id": pushed.dir_id,
                "name": pushed.name,
                "pointer": str(pushed.pointer),
            }
        )
        return 0
    print(f"{pushed.store}: {pushed.digest}")
    if pushed.name:
        print(f"In a recipe: data: {{kind: dataset, name: {pushed.name}}}")
    print(f"Elsewhere: manyeyes data pull {pushed.digest}, or dvc pull {pushed.pointer}")
    return 0
