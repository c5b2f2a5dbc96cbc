"""What the authors call the parts of their models, and what we call them: one row, both ways.

In a pattern ``{x}`` stands for one word between dots (or a part of one) and ``{rest}`` for
everything to the end. A row either names our parameter, or a tower (by its place in the recipe, or
its role in the fusion), whose family then translates the rest, or says why the key is of no use.

Sources: the authors' repositories at the snapshots of the fidelity notes (Eagle fef95f1, EVE
cc63ec7, MGM 769820c, Cambrian 539ffc3, LLaVA-HR 1212ffb, LLaVA c121f04).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from manyeyes.errors import unknown


@dataclass(frozen=True)
class Row:
    """One line of a table of names."""

    theirs: str
    ours: str = ""
    tower: str = ""
    """Place or role of the encoder whose family translates ``ours``."""
    reason: str = ""
    """Why such a key is of no use."""


@dataclass(frozen=True)
class System:
    """How one group of authors names a whole model."""

    fusions: tuple[str, ...]
    """Kinds of ``model.fusion`` that are written with these names."""
    joint: tuple[Row, ...]
    """Projector and fusion, which ``export-projector`` writes, too."""
    towers: tuple[Row, ...]
    fresh: tuple[str, ...] = ()
    """Parts of ours that a file of projector and fusion may be without: the first stage has none,
    and the second begins with new ones."""
    marks: tuple[str, ...] = ()
    """Pieces of a key that no other system has."""


PROJECTOR = (Row("model.mm_projector.{n}.{p}", "projector.{n}.{p}"),)
LANGUAGE = (
    Row("model.layers.{n}.self_attn.rotary_emb.inv_freq", reason="computed, not stored"),
    Row("model.layers.{rest}", "llm.model.layers.{rest}"),
    Row("model.embed_tokens.{p}", "llm.model.embed_tokens.{p}"),
    Row("model.norm.{p}", "llm.model.norm.{p}"),
    Row("lm_head.{p}", "llm.lm_head.{p}"),
)
ALIGNMENT = "aligns the patches with CLIP while training; the model that answers is without it"


def _both(theirs: str, ours: str) -> Row:
    return Row(f"model.vlm_uni_{theirs}_projector.{{n}}.{{p}}", f"fusion.{ours}.{{n}}.{{p}}")


_SAMPLER = (
    ("proj_context.{p}", "context.{p}"),
    ("proj_in.{p}", "into.{p}"),
    ("proj_out.linear_1.{p}", "out.0.{p}"),
    ("proj_out.linear_2.{p}", "out.2.{p}"),
    ("norm.{p}", "norm.{p}"),
    ("pos_embed_{i}", "positions.{i}"),
    ("cross_attn.q_proj.{n}.{p}", "query.{n}.{p}"),
    ("cross_attn.k_proj_{i}.{n}.{p}", "keys.{i}.{n}.{p}"),
    ("cross_attn.v_proj_{i}.{n}.{p}", "values.{i}.{n}.{p}"),
    ("cross_attn.o_proj.{p}", "merge.{p}"),
)
_ADAPTER = (("slow_conv", "slow.0"), ("slow_proj", "slow.2"), ("fast_conv", "fast.0"),
            ("fast_proj", "fast.2"), ("gate.{n}", "gate.{n}"))  # fmt: skip
_LATENT = "model.vision_tower.align_stages_latent.{a}."

SYSTEMS: dict[str, System] = {
    "llava": System(
        fusions=(),
        joint=PROJECTOR,
        towers=(Row("model.vision_tower.vision_tower.{rest}", "{rest}", tower="0"),),
    ),
    "eagle": System(
        fusions=("channel_concat",),
        joint=PROJECTOR,
        towers=(
            Row("model.vision_tower.vision_towers.{i}.vision_tower.{rest}", "{rest}", tower="{i}"),
        ),
        marks=(".vision_towers.",),
    ),
    "eve": System(
        fusions=("patch_embedding",),
        # The patch embedding layer is no tower: it is trained and given on with the projector.
        joint=(*PROJECTOR, Row("model.vision_tower.{rest}", "{rest}", tower="0")),
        towers=(
            # The teacher is saved twice, alone and in the compressor: neither is taken.
            Row("model.vision_tower_compressor.{rest}", reason=ALIGNMENT),
            Row("model.vision_clip.{rest}", reason=ALIGNMENT),
        ),
        marks=(".split_embedding", ".vision_tower_compressor."),
    ),
    "mgm": System(
        fusions=("patch_info_mining",),
        joint=(*PROJECTOR, _both("query", "query"), _both("aux", "key"), _both("val", "value")),
        towers=(
            Row("model.vision_tower.vision_tower.{rest}", "{rest}", tower="low"),
            Row("model.vision_tower_aux.vision_stem.{rest}", "stem.{rest}", tower="high"),
            Row("model.vision_tower_aux.vision_stages.{rest}", "stages.{rest}", tower="high"),
        ),
        marks=(".vlm_uni_",),
    ),
    "cambrian": System(
        fusions=("spatial_vision_aggregator",),
        joint=(
            *PROJECTOR,
            Row("model.mm_projector_aux_{i}.{n}.{p}", "fusion.into.{i}.{n}.{p}"),
            Row("model.vision_query", "fusion.query"),
            Row("model.image_newline", "fusion.newline"),
            *(
                Row(
                    f"model.vision_sampler_0.layers.{{d}}.{theirs}", f"fusion.samplers.{{d}}.{ours}"
                )
                for theirs, ours in _SAMPLER
            ),
            *(
                Row(
                    f"model.vision_sampler_layers.{{k}}.layers.0.{theirs}",
                    f"fusion.inside_samplers.{{k}}.{ours}",
                )
                for theirs, ours in _SAMPLER
            ),
        ),
        towers=(),
        marks=(".vision_sampler_",),
    ),
    "llava-hr": System(
        fusions=("mixture_of_resolution",),
        joint=(
            *PROJECTOR,
            Row("model.vision_tower.align_stages.0.fast_proj.{p}", "fusion.from_fast.{p}"),
            Row("model.vision_tower.align_stages.0.slow_proj.{p}", "fusion.from_slow.{p}"),
            *(
                Row(f"{_LATENT}{theirs}.{{p}}", f"fusion.adapters.{{a}}.{ours}.{{p}}")
                for theirs, ours in _ADAPTER
            ),
        ),
        towers=(
            Row("model.vision_tower.fast_vision_tower.vision_tower.{rest}", "{rest}", tower="fast"),
            Row("model.vision_tower.fast_vision_tower.{rest}", "{rest}", tower="fast"),
            Row("model.vision_tower.slow_vision_tower.vision_tower.{rest}", "{rest}", tower="slow"),
            Row("model.vision_tower.slow_vision_tower.{rest}", "{rest}", tower="slow"),
        ),
        fresh=("fusion.adapters",),
        marks=(".align_stages",),
    ),
}


def find_system(name: str) -> System:
    """Return the names of a group of authors.

    Raises:
        UserError: nobody of that name.
    """
    if name not in SYSTEMS:
        raise unknown("system of names", name, SYSTEMS)
    return SYSTEMS[name]


def recognise(keys: list[str]) -> str:
    """Return whose names these are, by the pieces that only theirs have; ``llava`` if none."""
    for name, system in SYSTEMS.items():
        if any(mark in key for key in keys for mark in system.marks):
            return name
    return "llava"


def translate(key: str, pattern: str, *templates: str) -> tuple[str, ...] | None:
    """Put what a pattern finds in a key into templates; None if the pattern does not match."""
    match = _compiled(pattern).fullmatch(key)
    return None if match is None else tuple(text.format(**match.groupdict()) for text in templates)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Turn ``{x}`` into one word and ``{rest}`` into everything."""
    text = re.escape(pattern).replace(r"\{rest\}", "(?P<rest>.+)")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", text))
