"""LLaVA's trainer: Hugging Face's, with the sampler, collator and settings the authors ship.

Two things are made easier for it than they are for its users. Its samples are tokenised before the
clock starts (the authors tokenise each one three times over in the loader). And the loss is the
mean over learned positions of the batch, so that both sides compute the same thing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.baseline.model import PaddedModel
from benchmarks.baseline.pictures import processor
from benchmarks.baseline.sampler import authors_order, grouped_order
from benchmarks.clock import Cost, cpu_seconds
from manyeyes.data.loading.conversation import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.baseline.method import Method
    from benchmarks.workload import Workload
    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.loading.batches import Prepared
    from manyeyes.model.vlm import VisionLanguageModel

NUM_WORKERS = 1
"""Loader processes. The authors ship four; there are two cores, and the model has one of them."""

Item = dict[str, Any]


class Samples(torch.utils.data.Dataset[Item]):
    """Samples one by one: ids, labels, and pictures as float32."""

    def __init__(self, workload: Workload, *, blank_pictures: bool) -> None:
        self.dataset: Dataset = workload.dataset
        self.prepared: Prepared = workload.prepared
        self.blank_pictures = blank_pictures
        self.size = workload.canvas_size
        self.convert = processor(workload.canvas_size, normalize=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.prepared.samples)

    def __getitem__(self, index: int) -> Item:
        """Return a sample; one without a picture gets a black one where the method says so."""
        sample, encoded = self.prepared.samples[index], self.prepared.encoded[index]
        shown = sample.images[: encoded.num_images]
        images = [self.convert(self.dataset.read_image(ref)) for ref in shown]
        if not images and self.blank_pictures:
            images = [torch.zeros(3, self.size, self.size)]
        return {
            "input_ids": torch.tensor(encoded.input_ids, dtype=torch.long),
            "labels": torch.tensor(encoded.labels, dtype=torch.long),
            "images": images,
        }


def collate(items: Sequence[Item]) -> dict[str, Tensor | None]:
    """Pad a batch on the right to its longest row."""
    ids = [item["input_ids"] for item in items]
    images = [image for item in items for image in item["images"]]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "labels": pad([i["labels"] for i in items], batch_first=True, padding_value=IGNORED),
        "attention_mask": pad([torch.ones(len(row), dtype=torch.bool) for row in ids], True),
        "images": torch.stack(images) if images else None,
    }


class GivenOrder(torch.utils.data.Sampler[int]):
    """Gives samples in a fixed order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        """Yield the indices."""
        return iter(self.order)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.order)


class _Trainer(Trainer):
    """Hugging Face's trainer with an order of our own, which is where LLaVA changes it, too."""

    order: Sequence[int]

    def _get_train_sampler(self, train_dataset: object = None) -> GivenOrder:
        del train_dataset
        return GivenOrder(self.order)


class _Watch(TrainerCallback):
    """Takes the time from the first batch's arrival to the end of the last step."""

    def __init__(self) -> None:
        self.began = self.ended = self.began_cpu = self.ended_cpu = 0.0

    def on_step_begin(self, args: object, state: Any, control: object, **rest: object) -> None:  # noqa: ANN401  (transformers' types are its own)
        del args, control, rest
        if state.global_step == 0:
            _finish_device()
            self.began, self.began_cpu = time.perf_counter(), cpu_seconds()

    def on_step_end(self, args: object, state: Any, control: object, **rest: object) -> None:  # noqa: ANN401  (transformers' types are its own)
        del args, control, rest
        if state.global_step == state.max_steps:
            _finish_device()
            self.ended, self.ended_cpu = time.perf_counter(), cpu_seconds()


def _finish_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def order_of(method: Method, prepared: Prepared, batch_size: int, seed: int) -> list[int]:
    """Return the order of one epoch on one rank."""
    lengths = prepared.encoded.lengths.tolist()
    if method.grouped:
        pictures = (prepared.encoded.num_images > 0).tolist()
        return grouped_order(lengths, pictures, batch_size, 1, seed)
    words = [
        sum(len(turn.text.split()) for turn in sample.turns) * (1 if encoded.num_images else -1)
        for sample, encoded in zip(prepared.samples, prepared.encoded, strict=True)
    ]
    return authors_order(words, batch_size, 1, seed)


def train_epoch(
    model: VisionLanguageModel,
    workload: Workload,
    section: TrainSection,
    method: Method,
    folder: Path,
    seed: int,
    order: Sequence[int] | None = None,
) -> Cost:
    """Train one epoch in place and return what it cost.

    Args:
        model: at its starting weights, its trained parameters marked.
        workload: the samples.
        section: batch size, rate and precision.
        method: how.
        folder: for whatever Trainer wants to write.
        seed: of the order.
        order: of the samples; None for the method's own. Either is cut to the section's steps.
    """
    batch_size = section.batch.per_device
    on_device = torch.cuda.is_available()
    padded = PaddedModel(model, method)
    trainer = _Trainer(
        model=padded,
        args=_arguments(section, method, folder, seed),
        train_dataset=Samples(workload, blank_pictures=method.blank_pictures),
        data_collator=collate,
    )
    whole = order or order_of(method, workload.prepared, batch_size, seed)
    trainer.order = whole[: section.num_steps * batch_size]
    trainer.remove_callback(PrinterCallback)
    watch = _Watch()
    trainer.add_callback(watch)
    if on_device:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Cost(
        watch.ended - watch.began,
        watch.ended_cpu - watch.began_cpu,
        losses=tuple(losses),
        peak_bytes=torch.cuda.max_memory_allocated() if on_device else 0,
    )


def _arguments(section: TrainSection, method: Method, folder: Path, seed: int) -> TrainingArguments:
    on_device = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=section.batch.per_device,
        num_train_epochs=1,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=section.schedule.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.gradient_clipping,
        optim="adamw_torch_fused" if method.fused_optimizer else "adamw_torch",
        bf16=section.precision == "bfloat16",
        use_cpu=not on_device,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=NUM_WORKERS,
        dataloader_pin_memory=on_device,
        remove_unused_columns=False,
        seed=seed,
    )
