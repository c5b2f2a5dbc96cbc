"""The training loop: one engine for every stage; what differs is the section and the model.

Design decisions:

- The loss of a step is the mean over *its* learned positions, however it is cut into micro-batches:
  each micro-batch's mean is weighted by its share of them. Averaging the means, as most code does,
  gives short answers in a long-answer batch less weight and changes with ``per_device``.
- Everything random is a function of (seed, step): the batches by their plan, dropout by a seed set
  at each step. So a killed and resumed run has nothing to restore but tensors and a step number.
- A loss or gradient that is not finite stops the run before it touches a weight, and names the
  samples. Training on would write a checkpoint of NaNs.
- Weights stay float32; ``bfloat16`` means autocast, so that small updates are not rounded away.
- The last state stays on disk when :func:`train` returns: it is the result until the stage has
  written its checkpoint, which then calls ``checkpoint.clear_state``.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from manyeyes.artifact import atomic_write_json
from manyeyes.data.batches import BatchLoader, BatchPlan, PixelCache, canvas_side, prepare
from manyeyes.errors import Interrupted, ManyeyesError
from manyeyes.model.processor import Processor
from manyeyes.train.checkpoint import State, Totals, load_state, save_state
from manyeyes.train.cost import cost_of, trained_parts
from manyeyes.train.flops import step_flops, utilisation
from manyeyes.train.freeze import apply_trainable, digest_tensors
from manyeyes.train.interrupt import StopRequest, stop_on_signal
from manyeyes.train.metering import Clock, MetricsFile, Row, StepCounts, read_losses
from manyeyes.train.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    schedule_factor,
    set_learning_rate,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.data.batches import Batch, Prepared
    from manyeyes.data.conversation import Codec
    from manyeyes.data.dataset import Dataset
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.progress import Progress
    from manyeyes.recipe import TrainSection

FAILURE_FILE = "measurements/failed-step.json"


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step came to; the fields are those of its row."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    data_wait: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What a finished stage has to say about its training."""

    steps: int
    resumed_step: int
    """The step it continued from; 0 for a run in one go."""
    loss: float
    """Mean of the last tenth of the steps."""
    canvas_size: int
    """Side of the canvas the model was trained on, in pixels."""
    num_parameters: int
    """Numbers that trained."""
    num_available: int
    """Samples to draw from."""
    num_truncated: int
    unlearnable: tuple[str, ...]
    """Ids of samples left out because nothing of them could be learned."""
    totals: Totals

    def details(self) -> dict[str, JsonValue]:
        """Return the facts for the manifest; times and rates are in ``measurements``."""
        return {
            "steps": self.steps,
            "loss": round(self.loss, 6),
            "trained_parameters": self.num_parameters,
            "samples_available": self.num_available,
            "samples_truncated": self.num_truncated,
            "samples_unlearnable": len(self.unlearnable),
            "samples_seen": self.totals.samples,
            "tokens_seen": self.totals.tokens,
            "flops": self.totals.flops,
            "seconds": round(self.totals.seconds, 3),
        }


def train(
    model: VisionLanguageModel,
    dataset: Dataset,
    codec: Codec,
    section: TrainSection,
    *,
    seed: int,
    out: Path,
    progress: Progress,
    excluded: Collection[str] = (),
) -> TrainResult:
    """Train a model in place, continuing a state in ``out`` where there is one.

    Args:
        model: with its starting weights; must be the same ones when a run is resumed.
        dataset: whose training split is used.
        codec: tokenizer, template and lengths.
        section: what trains, for how long, on which sources.
        seed: of batches and dropout.
        out: gets ``state/`` and ``measurements/``.
        progress: told about steps and what was left out.
        excluded: ids of samples in quarantine.

    Raises:
        UserError: a pattern, task or picture is wrong, or the disk is full.
        ManyeyesError: the loss stopped being finite.
        Interrupted: a signal came; the state is saved and the same call continues.
    """
    apply_trainable(model, section.train)
    prepared = prepare(dataset, codec, section.sources, excluded)
    _report_left_out(prepared, progress)
    limit = max(encoder.spec.image_size for encoder in model.experts.values())
    canvas_size = canvas_side(prepared.samples, limit)
    run = Run(model, section, seed, out, progress, canvas_size)
    if section.precision == "bfloat16" and not has_bfloat16(run.device):
        progress.note(
            "this processor has no bfloat16 arithmetic, so a step takes about ten times as long; "
            "precision: float32 is faster here"
        )
    start = run.resume(_identity(model, prepared, section, seed))
    plan = BatchPlan.of(
        prepared,
        section.sources,
        seed=seed,
        micro_size=section.batch.per_device,
        num_micro=section.batch.size // section.batch.per_device,
    )
    processor = Processor(canvas_size=canvas_size)
    cache = PixelCache(dataset, lambda image: processor.pixels([image])[0])
    with (
        stop_on_signal() as stop,
        MetricsFile(out, start) as metrics,
        BatchLoader(prepared, plan, cache, start, section.steps) as batches,
    ):
        run.steps(start, batches, metrics, stop)
    losses = read_losses(out)
    tail = losses[-max(1, section.steps // 10) :]
    return TrainResult(
        steps=section.steps,
        resumed_step=start,
        loss=sum(tail) / len(tail),
        canvas_size=canvas_size,
        num_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_available=len(prepared.samples),
        num_truncated=prepared.num_truncated,
        unlearnable=prepared.unlearnable,
        totals=run.totals,
    )


class Run:
    """A training run: the model, its optimizer, and what has been counted."""

    def __init__(
        self,
        model: VisionLanguageModel,
        section: TrainSection,
        seed: int,
        out: Path,
        progress: Progress,
        canvas_size: int,
    ) -> None:
        self.model = model
        self.section = section
        self.seed = seed
        self.out = out
        self.progress = progress
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, section)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.cost = cost_of(model, canvas_size)
        self.trained = trained_parts(model)
        self.clock = Clock(self.device)
        self.totals = Totals()
        self.identity = ""

    def resume(self, identity: str) -> int:
        """Load the newest whole state of this identity; return the steps done (0 without one)."""
        self.identity = identity
        state = load_state(self.out, identity, self.progress)
        if state is None:
            return 0
        with torch.no_grad():
            for name, value in state.weights.items():
                self.parameters[name].copy_(value)
        restore_optimizer(self.optimizer, state.optimizer, self.parameters)
        self.totals = state.totals
        self.progress.note(f"continues from step {state.step} of {self.section.steps}")
        return state.step

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        names: dict[torch.Tensor, str] = {p: name for name, p in self.parameters.items()}
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        moments = optimizer_tensors(self.optimizer, names)
        save_state(self.out, State(step, self.totals, weights, moments), self.identity)

    def steps(
        self, start: int, batches: BatchLoader, metrics: MetricsFile, stop: StopRequest
    ) -> None:
        """Train from step ``start`` to the end.

        Raises:
            Interrupted: ``stop`` was set and the end is not reached; the state is saved.
        """
        total = self.section.steps
        self.clock.restart()
        for step, micro_batches in enumerate(batches, start):
            row = self.step(step, micro_batches, batches.data_wait)
            metrics.add(row)
            self.progress.step(
                row.step, total, loss=row.loss, tokens_per_second=row.tokens_per_second
            )
            if stop or row.step % self.section.checkpoint_every == 0 or row.step == total:
                self.save(row.step)
            if stop and row.step < total:
                raise Interrupted(
                    f"Stopped by {stop.signal_name} after step {row.step} of {total}; the state is "
                    "saved and the same command continues from there."
                )
            self.clock.restart()

    def step(self, step: int, micro_batches: Sequence[Batch], data_wait: float) -> Row:
        """Do one optimizer step and return its row.

        Raises:
            ManyeyesError: the loss or the gradient is not finite.
        """
        torch.manual_seed(_mix(self.seed, step))
        factor = schedule_factor(self.section.schedule, step, self.section.steps)
        rate = set_learning_rate(self.optimizer, factor)
        loss = self.accumulate(step, micro_batches)
        parameters = [p for p in self.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.section.gradient_clipping))
        if not math.isfinite(norm):
            raise self.failure(step, "gradient", norm, micro_batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        outcome = Outcome(step + 1, loss, rate, norm, data_wait, self.clock.lap())
        return self.measure(outcome, StepCounts.of(micro_batches))

    def accumulate(self, step: int, micro_batches: Sequence[Batch]) -> float:
        """Add up the gradients of a step and return its loss, the mean over learned positions."""
        total = sum(batch.num_supervised for batch in micro_batches)
        losses = []
        for batch in micro_batches:
            loss = self.forward(batch) * (batch.num_supervised / total)
            losses.append(loss.detach())
            # Text alone says nothing to a projector: such a loss has no path to a trained weight.
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        value = float(torch.stack(losses).sum())
        if not math.isfinite(value):
            raise self.failure(step, "loss", value, micro_batches)
        return value

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a micro-batch's learned positions."""
        device = self.device
        with self.precision():
            output = self.model(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                labels=batch.labels.to(device),
                pixels=None if batch.pixels is None else batch.pixels.to(device),
            )
        loss: torch.Tensor | None = output.loss
        assert loss is not None
        return loss

    def precision(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass."""
        if self.section.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def measure(self, outcome: Outcome, counts: StepCounts) -> Row:
        """Add a step to the totals and return its row."""
        flops = step_flops(
            self.cost,
            self.trained,
            counts.lengths,
            num_images=counts.images,
            num_supervised=counts.supervised,
        )
        self.totals = self.totals.plus(counts, outcome.seconds, flops)
        return Row(
            step=outcome.step,
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            grad_norm=outcome.grad_norm,
            tokens=counts.tokens,
            supervised=counts.supervised,
            tokens_per_second=round(counts.tokens / outcome.seconds, 2),
            samples_per_second=round(counts.samples / outcome.seconds, 3),
            data_wait=round(outcome.data_wait, 5),
            seconds=round(outcome.seconds, 5),
            elapsed=round(self.totals.seconds, 4),
            flops=flops,
            mfu=utilisation(flops, outcome.seconds, self.clock.device_name()),
            peak_memory=self.clock.peak_memory(),
            cpu_percent=self.clock.cpu_percent(),
        )

    def failure(
        self, step: int, what: str, value: float, micro_batches: Sequence[Batch]
    ) -> ManyeyesError:
        """Write down which samples a failed step had and return the error that says so."""
        ids = [name for batch in micro_batches for name in batch.sample_ids]
        path = self.out / FAILURE_FILE
        atomic_write_json(path, {"step": step + 1, what: str(value), "samples": list(ids)})
        shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        return ManyeyesError(
            f"The {what} became {value} at step {step + 1} on the samples {shown} (all in {path}); "
            "lower the learning rate, or look at these samples."
        )


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16; a CPU without AVX-512 only emulates it."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _mix(seed: int, step: int) -> int:
    """Return a seed for one step, unlike that of any other step or run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8], "big")


def _identity(
    model: VisionLanguageModel, prepared: Prepared, section: TrainSection, seed: int
) -> str:
    """Return a digest of all that decides the final weights; a state belongs to one of these."""
    digest = hashlib.sha256()
    digest.update(section.model_dump_json(exclude={"checkpoint_every"}).encode())
    digest.update(f"\0{seed}\0".encode())
    digest.update(digest_tensors(model.named_parameters()).encode())
    for sample, encoded in zip(prepared.samples, prepared.encoded, strict=True):
        pictures = [ref.sha256 for ref in sample.images]
        digest.update(f"{sample.id}\0{pictures}\0{encoded.input_ids}\0{encoded.labels}".encode())
    return digest.hexdigest()


def _report_left_out(prepared: Prepared, progress: Progress) -> None:
    if prepared.unlearnable:
        progress.note(
            f"{len(prepared.unlearnable)} samples left out, nothing of them fits to be learned "
            f"(first: {prepared.unlearnable[0]})"
        )
    if prepared.num_truncated:
        progress.note(f"{prepared.num_truncated} samples are cut to the longest length")
