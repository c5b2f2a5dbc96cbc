"""The memory of a step: what ``manyeyes plan`` says beside what torch's allocator hands out.

Measured: the bytes of weights and optimizer state, plus the most that torch's allocator has handed
out at once from the beginning of a real optimizer step to its end, by the profiler's record of
every allocation. That is what ``torch.cuda.max_memory_allocated`` tells on a GPU. The resident set
of the process is not it: that moves with Python, libraries, and what malloc keeps for itself, too.
The plan follows tensors on the meta device and knows nothing of the allocator, so the two are
independent.

The step is the product's: its engine, its loss, its AdamW, on samples of the plan's longest length
with the plan's pictures and learned positions, weights random. It is the second step; the first one
makes the optimizer's state. Stages may be changed as ``CHANGES`` says, where what that needs is
installed.

    python -m benchmarks.memory [tiny/mgm:sft tiny/mgm:sft+lora ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from benchmarks.results import markdown_table
from manyeyes.config.recipe import Lora, load_recipe
from manyeyes.data.loading.batches import Batch
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.plan.estimate import need_of, shape_of
from manyeyes.plan.lengths import lengths_of
from manyeyes.plan.memory import Memory, Setting, memory_of
from manyeyes.plan.stages import build_to_train, training_stages
from manyeyes.training.adapters import attach
from manyeyes.training.engine import SingleEngine
from manyeyes.training.freeze import apply_trainable
from manyeyes.training.recompute import recomputing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from manyeyes.plan.meta_step import SampleShape
    from manyeyes.plan.stages import Stage

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""The small recipe's language model, whose package need not be installed for its shapes."""
LORA = Lora(modules=("llm.*_proj",), rank=16, alpha=32, dropout=0.05)
BESIDE: dict[str, Any] = {"train": ("projector.*",), "learning_rates": ()}
CHANGES: dict[str, dict[str, Any]] = {
    "lora": {**BESIDE, "lora": LORA},
    "qlora": {
        **BESIDE,
        "lora": LORA.model_copy(update={"quantise": "nf4"}),
        "optimizer": "adamw_8bit",
    },
    "8bit": {"optimizer": "adamw_8bit"},
}
"""What a stage may have that no small recipe asks for: ``sft+lora`` is ``sft`` with adapters."""
NEED_BITSANDBYTES = ("qlora", "8bit")
RECIPES = Path(__file__).parents[1] / "recipes"
CASES = (
    ("tiny/eagle-x5", "prealign:clip"),
    ("tiny/eagle-x5", "pretrain"),
    ("tiny/eagle-x5", "sft"),
    ("tiny/eagle-x5", "sft+lora"),
    ("tiny/eagle-x5", "sft+qlora"),
    ("tiny/eagle-x5", "sft+8bit"),
    ("tiny/mgm", "sft"),
    ("tiny/cambrian", "sft"),
    ("tiny/eve", "prealign:patches"),
    ("tiny/eve", "sft"),
    ("small/eagle-x2-smollm2", "prealign:dinov2"),
    ("small/eagle-x2-smollm2", "pretrain"),
    ("small/eagle-x2-smollm2", "sft"),
    ("small/eagle-x2-smollm2", "sft+lora"),
    ("small/eagle-x2-smollm2", "sft+qlora"),
)
MIB = 2**20
PARTS = ("weights", "gradients", "optimizer", "activations")
HEADER = ("recipe", "stage", "samples", "again", *PARTS, "planned", "measured", "off by")
"""Samples of the step; again: with recomputation; sizes in MiB."""


@dataclass(frozen=True)
class Comparison:
    """One step."""

    recipe: str
    stage: str
    setting: Setting
    planned: Memory
    measured: int
    """Bytes."""

    @property
    def difference(self) -> float:
        """Of the plan from the measurement, as a share of the latter."""
        return self.planned.tensors / self.measured - 1.0


def compare(recipe: str, name: str, per_device: int | None = None) -> list[Comparison]:
    """Plan and measure a step of a stage, without and with recomputation.

    Args:
        recipe: below ``recipes``, without its suffix.
        name: of the stage, changed by what follows a ``+``.
        per_device: samples of the step; by default the recipe's micro-batch.
    """
    with TemporaryDirectory() as folder:
        stage = _stage(recipe, name, Path(folder))
        return _compare(recipe, name, stage, per_device)


def _stage(recipe: str, name: str, folder: Path) -> Stage:
    """Return a stage; a language model that comes from a package is written as its config."""
    read = load_recipe(RECIPES / f"{recipe}.yaml")
    if read.model.llm.weights.startswith("package:"):
        LlamaConfig.from_dict(SMOLLM2_135M).save_pretrained(folder)
        llm = read.model.llm.model_copy(update={"weights": str(folder)})
        read = read.model_copy(update={"model": read.model.model_copy(update={"llm": llm})})
    plain, _, change = name.partition("+")
    stage = next(stage for stage in training_stages(read) if stage.name == plain)
    section = stage.section.model_copy(update=CHANGES[change]) if change else stage.section
    return replace(stage, section=section)


def can_be_done(name: str) -> bool:
    """Tell whether what a stage needs is installed."""
    needs = name.partition("+")[2] in NEED_BITSANDBYTES
    return not needs or importlib.util.find_spec("bitsandbytes") is not None


def _compare(recipe: str, name: str, stage: Stage, per_device: int | None) -> list[Comparison]:
    samples = per_device or stage.section.batch.per_device
    model = build_to_train(stage)
    lengths = lengths_of(stage, model.config.num_visual_tokens, None)
    shape = shape_of(model, lengths)
    need = replace(need_of(stage, model, lengths), batch=samples)  # one micro-batch a step
    found = []
    for recompute in (False, True):
        setting = Setting(1, 0, False, recompute, samples)
        planned = memory_of(need, setting)
        measured = measure(stage, shape, need.supervised, setting)
        found.append(Comparison(recipe, name, setting, planned, measured))
    return found


def measure(stage: Stage, shape: SampleShape, supervised: int, setting: Setting) -> int:
    """Return the bytes that a real step takes at its highest moment.

    Args:
        stage: what trains.
        shape: of every sample.
        supervised: learned positions of every sample.
        setting: micro-batch and recomputation.
    """
    section = stage.section
    model = VisionLanguageModel.from_recipe(stage.model, seed=0, load=False)
    apply_trainable(model, section.train)
    attach(model, section, seed=0)
    engine = SingleEngine(model, section)
    batch = _batch(model, setting.per_device, shape, supervised)
    weight = 0.0 if model.alignment is None else model.alignment.weight

    def step() -> None:
        text, aligned = engine.forward(batch, idle_pixels=None, maps=None)
        engine.backward(text + weight * aligned, last=True)
        del text, aligned
        engine.step()

    with recomputing(model, "all" if setting.recompute else "none"):
        step()
        moving = highest(step)
    return sum(_held(model, engine)) + moving


def _held(model: VisionLanguageModel, engine: SingleEngine) -> Iterator[int]:
    """Yield the bytes of weights and optimizer state, whatever is shared once."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    if model.alignment is not None:
        tensors += [*model.alignment.teacher.parameters(), *model.alignment.teacher.buffers()]
    for parameter in model.parameters():
        quantised: Any = getattr(parameter, "quant_state", None)  # bitsandbytes' scales
        if quantised is not None:
            of_scales = quantised.state2
            tensors += [quantised.absmax, quantised.code, quantised.offset]
            tensors += [of_scales.absmax, of_scales.code]
    for state in engine.optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    yield from (storage.nbytes() for storage in storages.values())


def highest(function: Callable[[], None]) -> int:
    """Return the most bytes that torch's allocator handed out at once while a function ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    held = most = 0
    for size in _sizes(record):
        held += size
        most = max(most, held)
    return most


def _sizes(record: profile) -> Iterator[int]:
    """Yield what was handed out, and as negative numbers what was given back, in order."""
    assert record.profiler is not None
    results: Any = record.profiler.kineto_results  # torch's stub leaves its events out
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda each: int(each.start_ns())):
        yield int(event.nbytes())


def _batch(model: VisionLanguageModel, samples: int, shape: SampleShape, supervised: int) -> Batch:
    """Return samples of one length: pictures first, learned positions last."""
    visual = model.picture_tokens(shape.canvas, shape.canvas)
    words = max(1, shape.length - shape.images * visual)
    ids = torch.full((samples, shape.images + words), 5, dtype=torch.int64)
    ids[:, : shape.images] = IMAGE_TOKEN
    labels = ids.clone()
    labels[:, : max(shape.images, ids.shape[1] - supervised)] = IGNORED
    pictures = samples * shape.images
    return Batch(
        sample_ids=tuple(map(str, range(samples))),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        pixels=torch.zeros((pictures, 3, shape.canvas, shape.canvas), dtype=torch.uint8),
        image_sizes=torch.full((pictures, 2), shape.canvas),
        lengths=(shape.length,) * samples,
        num_supervised=int((labels != IGNORED).sum()),
    )


def line(row: Comparison) -> tuple[str, ...]:
    """Return a comparison as a row of the table; sizes in MiB."""
    parts = [getattr(row.planned, part) for part in (*PARTS, "tensors")]
    sizes = [f"{size / MIB:.1f}" for size in (*parts, row.measured)]
    again = "yes" if row.setting.recompute else "no"
    first = (row.recipe, row.stage, str(row.setting.per_device), again)
    return (*first, *sizes, f"{row.difference:+.1%}")


def main() -> None:
    """Compare all cases, or those of one recipe, and print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="like tiny/mgm or tiny/mgm:sft; default all")
    only = parser.parse_args().only
    print(markdown_table(HEADER, []))
    for recipe, name in CASES:
        if only and recipe not in only and f"{recipe}:{name}" not in only:
            continue
        if not can_be_done(name):
            print(f"left out {recipe}:{name}: it needs bitsandbytes", file=sys.stderr)
        else:
            for row in compare(recipe, name):
                print("| " + " | ".join(line(row)) + " |", flush=True)


if __name__ == "__main__":
    main()
