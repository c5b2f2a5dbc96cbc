"""Make the zoo again: data, tokenizer, language model, experts, cards, and one manifest.

The data are the starter data at a larger scale and the seed of the tiny recipes. Held-out splits do
not grow with the scale, and their documents, scenes, scans and table rows never enter training.
Neither do those of any other seed: ``manyeyes.data.sources.starter.learned`` keeps what these parts
saw out of every seed's held-out splits, and has to be written anew when parts are shipped that were
made from other data.

Parts are trained one after another, and any can be made alone. On one machine with one thread the
same seed gives the same bytes; other machines and thread counts round differently.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from manyeyes.artifact.destination import claim_folder
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.artifact.marker import begin, finish
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.loading.templates import template_named
from manyeyes.data.sources.starter.builder import build as build_starter
from manyeyes.data.sources.starter.vocabulary import scene_words
from manyeyes.errors import unknown
from manyeyes.model.encoders.registry import find_spec
from manyeyes.model.encoders.spec import spec_to_json
from manyeyes.model.transformer import load_language_model, load_tokenizer
from manyeyes.model.weights.loading import save_weights
from manyeyes.model.weights.zoo import LANGUAGE_PART, PARTS, PREFIX
from manyeyes.runtime.progress import Progress
from tools.zoo.cards import Card, is_zoo, write_card, write_manifest
from tools.zoo.corpus import TEMPLATE, lessons, write_out
from tools.zoo.experts import OBJECTIVES, train_expert
from tools.zoo.fit import Schedule
from tools.zoo.language import (
    CYCLES,
    LanguageSize,
    accuracy_from_text,
    build_language_model,
    scene_embeddings,
    train_language_model,
)
from tools.zoo.pictures import Pictures, load_pictures
from tools.zoo.probe import probe
from tools.zoo.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from manyeyes.data.dataset.sample import Sample

GRID = 8
IMAGE_SIZE = 128
TRAINING_SEED = 0
PROBE_SCHEDULE = Schedule(800, 1e-2, 512)
NUM_PROBE_PICTURES = 2500
STORED = torch.float16
# The template `plain_chat` as transformers' chat templates write it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %} user {{ message['content'] }}"
    "{% else %} assistant {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)


@dataclass(frozen=True)
class Plan:
    """What one build does."""

    seed: int = 7
    """Of the starter data; the tiny recipes have the same."""
    scale: float = 6.0
    """Of the starter data; 1 is the demonstration's."""
    max_steps: int = 1_000_000
    """Cuts every schedule, for tests."""

    def cut(self, schedule: Schedule) -> Schedule:
        """Return the schedule with at most `max_steps` steps."""
        return replace(schedule, steps=min(schedule.steps, self.max_steps))


def build(
    out: Path,
    *,
    seed: int = 7,
    parts: Sequence[str] = tuple(PARTS),
    scale: float = 6.0,
    max_steps: int = 1_000_000,
) -> dict[str, dict[str, float]]:
    """Train `parts` into `out/NAME` and return their measured accuracies.

    Args:
        out: receives one folder per part and `manifest.json`; the data are kept in `out/.data`
            meanwhile.
        seed: of the data; initial weights and batches always have the same seed.
        parts: names of the zoo's parts.
        scale: of the starter data.
        max_steps: cuts every schedule, for tests.

    Raises:
        UserError: a part has no such name, or the folder is somebody's or cannot be written.
    """
    for name in parts:
        if name not in PARTS:
            raise unknown("part of the zoo", name, PARTS)
    claim_folder(out, is_ours=is_zoo)
    begin(out)
    plan = Plan(seed, scale, max_steps)
    data = out / ".data"
    build_starter(data, seed=seed, scale=scale, image_size=IMAGE_SIZE)
    dataset = Dataset.open(data)
    accuracies: dict[str, dict[str, float]] = {}
    if LANGUAGE_PART in parts:
        accuracies[LANGUAGE_PART] = build_language_part(out / LANGUAGE_PART, dataset, plan)
    experts = [name for name in parts if name != LANGUAGE_PART]
    if experts:
        train, held_out = (load_pictures(dataset, split, GRID) for split in ("train", "val"))
        words = class_words(out / LANGUAGE_PART)
        for name in experts:
            accuracies[name] = build_expert_part(out / name, name, (train, held_out), words, plan)
    dataset.close()
    shutil.rmtree(data)
    write_manifest(out)
    finish(out)
    return accuracies


def data_sentence(plan: Plan, num_pictures: int) -> str:
    """Return what a card says about the training data."""
    return (
        f"the training split of the starter data, seed {plan.seed}, scale {plan.scale:g} "
        f"({num_pictures:,} pictures of numbers, charts, documents and scenes)"
    )


def class_words(built: Path) -> Tensor:
    """Return the scene words' embeddings: of the language model just built, or of the shipped."""
    place = str(built) if built.is_dir() else f"{PREFIX}{LANGUAGE_PART}"
    tokenizer = cast("PreTrainedTokenizerFast", load_tokenizer(place))
    return scene_embeddings(load_language_model(place), tokenizer)


def build_expert_part(
    folder: Path, name: str, pictures: tuple[Pictures, Pictures], words: Tensor, plan: Plan
) -> dict[str, float]:
    """Train on the first pictures, measure on the second, and write one expert."""
    train, held_out = pictures
    schedule = plan.cut(OBJECTIVES[name].schedule)
    started = time.monotonic()
    encoder = train_expert(
        name,
        train,
        words,
        schedule,
        grid=GRID,
        seed=TRAINING_SEED,
        progress=Progress(stage=f"zoo:{name}"),
    )
    seconds = time.monotonic() - started
    save_weights(encoder, folder, STORED)
    encoder.tower.to(STORED).float()  # what is measured is what was stored
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(TRAINING_SEED))
    accuracies = probe(
        encoder,
        train.take(chosen[:NUM_PROBE_PICTURES]),
        held_out,
        seed=TRAINING_SEED,
        schedule=plan.cut(PROBE_SCHEDULE),
    )
    write_json(folder / "config.json", spec_to_json(find_spec(name)))
    write_card(
        folder,
        Card(
            name=name,
            what=f"A tiny {find_spec(name).family} vision tower.",
            objective=PARTS[name],
            data=data_sentence(plan, len(train)),
            schedule=schedule,
            seconds=seconds,
            seed=TRAINING_SEED,
            num_parameters=sum(p.numel() for p in encoder.tower.parameters()),
            measured="cells read right by a linear probe on the frozen features",
            accuracies=accuracies,
        ),
    )
    return accuracies


def build_language_part(folder: Path, dataset: Dataset, plan: Plan) -> dict[str, float]:
    """Train, measure and write the language model with its tokenizer."""
    train = lessons(dataset, dataset.samples("train"), GRID, TRAINING_SEED)
    tokenizer = tokenizer_for(train)
    torch.manual_seed(TRAINING_SEED)
    model = build_language_model(tokenizer, LanguageSize())
    more = lessons(dataset, dataset.samples("train"), GRID, TRAINING_SEED, more=True)
    drilled, asked = (write_out(dataset, each, tokenizer, GRID) for each in (train, more))
    started = time.monotonic()
    module: nn.Module = model
    for cycle in CYCLES:
        train_language_model(
            model,
            asked if cycle.more else drilled,
            tokenizer,
            replace(cycle, schedule=plan.cut(cycle.schedule)),
            progress=Progress(stage=f"zoo:{LANGUAGE_PART}"),
        )
        # Each cycle ends at what is stored, and what is measured is what was stored.
        module.to(STORED)
        model.save_pretrained(folder)
        module.float()
    seconds = time.monotonic() - started
    tokenizer.save_pretrained(folder)
    held_out = write_out(dataset, dataset.samples("val"), tokenizer, GRID)
    accuracies = accuracy_from_text(model, held_out, tokenizer)
    write_card(
        folder,
        Card(
            name=LANGUAGE_PART,
            what="A tiny Llama with a tokenizer that knows every scene word as one token.",
            objective=PARTS[LANGUAGE_PART],
            data=data_sentence(plan, len(dataset.images("train"))),
            schedule=replace(
                CYCLES[0].schedule, steps=sum(plan.cut(one.schedule).steps for one in CYCLES)
            ),
            seconds=seconds,
            seed=TRAINING_SEED,
            num_parameters=model.num_parameters(),
            measured="conversations whose every answer token is right, scenes written out as text",
            accuracies=accuracies,
        ),
    )
    return accuracies


def tokenizer_for(samples: Sequence[Sample]) -> PreTrainedTokenizerFast:
    """Make the tokenizer from the samples' words, the template's and the scenes'."""
    template = template_named(TEMPLATE)
    frame = [template.question, template.answer] * 10
    texts = [turn.text for sample in samples for turn in sample.turns]
    return build_tokenizer([*texts, *frame], scene_words(), chat_template=CHAT_TEMPLATE)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a small JSON file as people read it."""
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")
