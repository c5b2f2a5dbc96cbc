"""``manyeyes models`` and ``manyeyes lineage``: what is registered, and what is behind it."""

from __future__ import annotations

from dataclasses import asdict

import click

from manyeyes.cli.command import json_option, verb
from manyeyes.cli.output import print_json, print_table
from manyeyes.cli.values import TEXT


@verb("models")
@json_option
def models(as_json: bool) -> int:
    """List the registered models."""
    from manyeyes.registry.catalogue import list_models

    rows = list_models()
    if as_json:
        print_json([{**asdict(row), "aliases": list(row.aliases)} for row in rows])
        return 0
    if not rows:
        print("No models are registered yet: manyeyes run RECIPE registers one.")
        return 0
    print_table(
        "registered models",
        ("model", "version", "aliases", "average", "weights", "created"),
        [
            (
                row.name,
                str(row.version),
                ", ".join(row.aliases),
                f"{row.scores.get('average', 0.0):.1f}",
                row.source_digest[:12],
                row.created,
            )
            for row in rows
        ],
    )
    return 0


@verb("lineage")
@click.argument(
    "reference", metavar="MODEL", type=TEXT, help="models:/NAME@ALIAS or models:/NAME/VERSION"
)
@json_option
def lineage_verb(reference: str, as_json: bool) -> int:
    """Tell what a model was made from."""
    from manyeyes.registry.catalogue import lineage

    found = lineage(reference)
    facts = found.provenance
    if as_json:
        print_json(
            {
                "name": found.name,
                "version": found.version,
                "aliases": list(found.aliases),
                "checkpoint": found.checkpoint,
                "source": found.source,
                "weights": found.weights.state,
                "damage": found.weights.reason,
                "recipe": facts.recipe,
                "recipe_digest": facts.recipe_digest,
                "datasets": dict(facts.data),
                "experts": dict(facts.experts),
                "stages": dict(facts.stages),
                "report": facts.report,
                "revision": facts.revision,
                "promotion": dict(found.promotion),
            }
        )
        return 0
    rows = [
        ("model", f"models:/{found.name}/{found.version} ({', '.join(found.aliases)})"),
        ("weights", f"{found.checkpoint} ({found.weights})"),
        ("recipe", f"{facts.recipe} {facts.recipe_digest}"),
        *((role, digest) for role, digest in facts.data.items()),
        *((f"expert {name}", digest) for name, digest in facts.experts.items()),
        *facts.stages.items(),
        ("report", facts.report),
        ("code", facts.revision),
        *found.promotion.items(),
    ]
    print_table("lineage", ("what", "digest"), rows)
    return 0


COMMANDS = (models, lineage_verb)
