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

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from manyeyes.data.batches import BatchLoader, Share, prepare
from manyeyes.data.canvases import PixelCache, canvas_side
from manyeyes.data.packing import plan_of
from manyeyes.errors import Followed, Interrupted, ManyeyesError
from manyeyes.train.checkpoint import State, Totals, load_state, save_state
from manyeyes.train.cost import cost_of, trained_parts
from manyeyes.train.distributed import World, joined
from manyeyes.train.engine import build_engine
from manyeyes.train.failure import Failure, clear_failure, keep_failure
from manyeyes.train.flops import step_flops, utilisation
from manyeyes.train.freeze import apply_trainable
from manyeyes.train.identity import identity_of, mix
from manyeyes.train.interrupt import StopRequest, stop_on_signal
from manyeyes.train.losses import StepLosses, shares_of
from manyeyes.train.metering import Clock, MetricsFile, Row, StepCounts, read_losses
from manyeyes.train.optimizer import schedule_factor
from manyeyes.train.work import Work

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.data.batches import Batch, Prepared
    from manyeyes.data.conversation import Codec
    from manyeyes.data.dataset import Dataset
    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.progress import Progress
    from manyeyes.recipe import TrainSection


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step came to; the fields are those of its row."""

    step: int
    loss: float
    alignment_loss: float | None
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
    processor: Processor
    """Makes the canvases that the model was trained on."""
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
    with joined(needs_group=section.engine.kind == "deepspeed") as world:
        section.batch.accumulation_for(world.size)
        apply_trainable(model, section.train)
        prepared = prepare(dataset, codec, section.sources, excluded)
        _report_left_out(prepared, progress)
        limit = max(encoder.spec.image_size for encoder in model.experts.values())
        processor = model.fusion.processor(canvas_side(prepared.samples, limit))
        run = Run(model, section, seed, out, progress, processor.canvas_size, world)
        identity = identity_of(model, prepared, section, seed) if world.leads else ""
        start = run.resume(identity)
        cache = PixelCache(dataset, lambda image: processor.pixels([image])[0])
        plan = plan_of(
            prepared, section.sources, section.batch, seed=seed, num_processes=world.size
        )
        with (
            stop_on_signal() as stop,
            MetricsFile(out, start) as metrics,
            BatchLoader(prepared, plan, cache, start, section.steps, run.share) as batches,
        ):
            run.steps(start, batches, metrics, stop)
        run.engine.finish()
    clear_failure(out)
    losses = read_losses(out)
    tail = losses[-max(1, section.steps // 10) :]
    return TrainResult(
        steps=section.steps,
        resumed_step=start,
        loss=sum(tail) / max(1, len(tail)),
        processor=processor,
        num_parameters=run.num_parameters,
        num_available=len(prepared.samples),
        num_truncated=prepared.num_truncated,
        unlearnable=prepared.unlearnable,
        totals=run.totals,
    )


class Run:
    """A training run: the model, its engine, and what has been counted."""

    def __init__(
        self,
        model: VisionLanguageModel,
        section: TrainSection,
        seed: int,
        out: Path,
        progress: Progress,
        canvas_size: int,
        world: World | None = None,
    ) -> None:
        self.section = section
        self.seed = seed
        self.out = out
        self.progress = progress
        self.world = world or World()
        self.engine = build_engine(model, section, self.world)
        shared = section.engine.kind == "deepspeed"
        self.share = Share(self.world.rank, self.world.size, pictures_last=shared)
        self.num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.cost = cost_of(model, canvas_size)
        self.trained = trained_parts(model)
        self.alignment_weight = model.alignment.weight if model.alignment is not None else 0.0
        self.clock = Clock(self.engine.device)
        self.idle_pixels = torch.zeros((1, 3, canvas_size, canvas_size), dtype=torch.uint8)
        self.totals = Totals()
        self.identity = ""
        self._warn_of_emulation()

    def _warn_of_emulation(self) -> None:
        if self.section.precision == "bfloat16" and not has_bfloat16(self.engine.device):
            self.progress.note(
                "this processor has no bfloat16 arithmetic, so a step takes about ten times as "
                "long; precision: float32 is faster here"
            )

    def resume(self, identity: str) -> int:
        """Load the newest whole state of this identity; return the steps done (0 without one)."""
        self.identity = identity
        state = load_state(self.out, identity, self.progress) if self.world.leads else None
        step = int(self.world.broadcast(torch.tensor(state.step if state else -1)))
        if state is None and step >= 0:
            state = State(step, Totals(), {}, {})  # what is in it comes from process 0
        self.engine.start(state)
        if state is None:
            return 0
        self.totals = state.totals
        self.progress.note(f"continues from step {state.step} of {self.section.steps}")
        return state.step

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        state = State(step, self.totals, *self.engine.tensors())
        if self.world.leads:
            save_state(self.out, state, self.identity)

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
            # Whoever failed to make its batch is missed here, and not inside the model.
            stopping = any(flag for (flag,) in self.world.gather([bool(stop)]))
            work = self.work(batches, step)
            row = self.step(step, work, micro_batches, batches)
            metrics.add(row)
            self.progress.step(
                row.step, total, loss=row.loss, tokens_per_second=row.tokens_per_second
            )
            if self.world.size == 1:
                stopping = bool(stop)
            if stopping or row.step % self.section.checkpoint_every == 0 or row.step == total:
                self.save(row.step)
            if stopping and row.step < total:
                raise self.interruption(row.step, stop)
            self.clock.restart()

    def work(self, batches: BatchLoader, step: int) -> Work:
        """Return what a step consists of."""
        vision = bool(self.trained.encoders) or self.trained.projector
        return Work.of(batches.plan, batches.prepared, step, self.share, vision_trains=vision)

    def interruption(self, step: int, stop: StopRequest) -> ManyeyesError:
        """Return what ends a run that was asked to stop; process 0 says it for all."""
        text = (
            f"Stopped by {stop.signal_name or 'a signal'} after step {step} of "
            f"{self.section.steps}; the state is saved and the same command continues from there."
        )
        if self.world.leads:
            return Interrupted(text)
        return Followed(text, Interrupted.exit_code)

    def step(
        self, step: int, work: Work, micro_batches: Sequence[Batch], batches: BatchLoader
    ) -> Row:
        """Do one optimizer step and return its row.

        Raises:
            ManyeyesError: the loss or the gradient is not finite.
        """
        data_wait = batches.data_wait
        torch.manual_seed(mix(self.seed, step))
        factor = schedule_factor(self.section.schedule, step, self.section.steps)
        rate = self.engine.set_rate(factor)
        losses = self.accumulate(step, work, micro_batches)
        if not math.isfinite(losses.worst):
            bad = {place: work.batches[place] for place in losses.bad_places()}
            raise self.failure(step, "loss", losses.worst, bad, batches)
        norm = self.engine.step()
        if not math.isfinite(norm):
            everything = dict(enumerate(work.batches))
            raise self.failure(step, "gradient", norm, everything, batches)
        aligned = losses.total_alignment if self.alignment_weight and work.counts.images else None
        outcome = Outcome(
            step + 1, losses.total_text, aligned, rate, norm, data_wait, self.clock.lap()
        )
        return self.measure(outcome, work.counts)

    def accumulate(self, step: int, work: Work, micro_batches: Sequence[Batch]) -> StepLosses:
        """Add up the gradients of a step and return what each place adds to its losses.

        They are means over the learned positions, and pictures, of all processes' whole step.
        """
        mine = []
        turns = zip(work.places, work.idle, micro_batches, strict=True)
        for turn, (place, idle, batch) in enumerate(turns):
            if self.share.pictures_last:
                torch.manual_seed(mix(self.seed, step, place))  # whichever process has it
            means = self.engine.forward(batch, idle_pixels=self.idle_pixels if idle else None)
            text, aligned = parts = means * shares_of(batch, work.counts).to(means.device)
            loss = text + self.alignment_weight * aligned if self.alignment_weight else text
            mine.append(parts.detach())
            # Text alone says nothing to a projector: such a loss has no path to a trained weight.
            if loss.requires_grad:
                self.engine.backward(loss, last=turn == len(work.places) - 1)
        return StepLosses.gather(mine, work, self.world)

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
            alignment_loss=outcome.alignment_loss,
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
            mfu=utilisation(flops / self.world.size, outcome.seconds, self.clock.device_name()),
            peak_memory=self.clock.peak_memory(),
            cpu_percent=self.clock.cpu_percent(),
        )

    def failure(
        self,
        step: int,
        what: str,
        value: float,
        indices: Mapping[int, tuple[int, ...]],
        batches: BatchLoader,
    ) -> ManyeyesError:
        """Keep what is needed to look at a failed step; return the error that says so."""
        state = State(step, self.totals, *self.engine.tensors())
        if not self.world.leads:
            return Followed(f"The {what} became {value} at step {step + 1}.", 1)
        made = {place: batches.make_micro(samples) for place, samples in indices.items()}
        return keep_failure(self.out, Failure(what, value, made), state, self.identity)


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16; a CPU without AVX-512 only emulates it."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _report_left_out(prepared: Prepared, progress: Progress) -> None:
    if prepared.unlearnable:
        progress.note(
            f"{len(prepared.unlearnable)} samples left out, nothing of them fits to be learned "
            f"(first: {prepared.unlearnable[0]})"
        )
    if prepared.num_truncated:
        progress.note(f"{prepared.num_truncated} samples are cut to the longest length")
