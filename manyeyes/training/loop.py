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
- The last state stays on disk when :func:`train` returns: it is the result until the checkpoint
  has its manifest. Then the runner removes it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from manyeyes.data.loading.batches import Share, prepare
from manyeyes.data.loading.canvases import PixelCache, canvas_side
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.data.loading.packing import plan_of
from manyeyes.data.loading.workers import num_workers
from manyeyes.errors import Followed, Interrupted, ManyeyesError
from manyeyes.model.fusion import is_trainable
from manyeyes.model.processor import Processor
from manyeyes.training.adapters import FOLDER as ADAPTER
from manyeyes.training.adapters import attach
from manyeyes.training.checkpoint import State, Totals, load_state
from manyeyes.training.cpu_sharing import cores_shared
from manyeyes.training.distributed import World, joined
from manyeyes.training.engine import build_engine, length_multiple
from manyeyes.training.failure import Failure, clear_failure, keep_failure
from manyeyes.training.features import decide, find_features, record
from manyeyes.training.freed_memory import freed_memory_kept
from manyeyes.training.freeze import apply_trainable
from manyeyes.training.identity import identity, mix
from manyeyes.training.interrupt import StopRequest, stop_on_signal
from manyeyes.training.losses import StepLosses, shares_of
from manyeyes.training.metering import Clock, Meter, MetricsFile, Outcome, Row, StepCounts
from manyeyes.training.optimizer import schedule_factor
from manyeyes.training.peak import peak_of
from manyeyes.training.profiling import tracing
from manyeyes.training.recompute import recomputing
from manyeyes.training.result import TrainResult, left_out, mean_of_tail
from manyeyes.training.state_writer import StateWriter
from manyeyes.training.unusable import NOTHING, Quarantine
from manyeyes.training.work import Work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.loading.batches import Batch, Prepared
    from manyeyes.data.loading.conversation import Codec
    from manyeyes.data.loading.packing import Plan
    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.runtime.progress import Progress
    from manyeyes.training.features import Features


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
        section = section.on_samples(len(prepared.samples))
        for text in left_out(prepared):
            progress.note(text)
        limit = max(encoder.spec.image_size for encoder in model.experts.values())
        processor = model.fusion.processor(canvas_side(prepared.samples, limit))
        which = identity(model, prepared, section, seed) if world.leads else ""
        adapters = attach(model, section, seed)
        run = Run(model, section, seed, out, progress, processor.canvas_size, world)
        start = run.resume(which, prepared, processor)
        cache = PixelCache(dataset, processor.canvas)
        plan = plan_of(
            prepared, section.sources, section.batch, seed=seed, num_processes=world.size
        )
        with ExitStack() as stack:
            stop = stack.enter_context(stop_on_signal())
            if run.features:
                stack.callback(run.features.close)
            stack.enter_context(freed_memory_kept())
            if run.engine.device.type == "cpu":
                stack.enter_context(cores_shared())
            stack.enter_context(recomputing(model, section.recompute))
            tracer = stack.enter_context(tracing(out, leads=world.leads))
            metrics = stack.enter_context(MetricsFile(out, start))
            batches = stack.enter_context(run.load(prepared, plan, cache, start))
            for moment in run.moments(start, batches, stop):
                row = run.step(moment.step, moment.work, moment.micro_batches, batches)
                metrics.add(row)
                tracer.done(row.step)
                run.end_step(row, stop, stopping=moment.stopping)
        run.engine.finish()
        if adapters and world.leads:
            adapters.save(out / ADAPTER)
            adapters.merge()
    clear_failure(out)
    return TrainResult(
        steps=section.num_steps,
        resumed_step=start,
        loss=mean_of_tail(out, section.num_steps),
        processor=processor,
        num_parameters=run.num_parameters,
        num_available=len(prepared.samples),
        num_truncated=prepared.num_truncated,
        quarantined=tuple(run.quarantine.found),
        unlearnable=prepared.unlearnable,
        totals=run.totals,
        peak=peak_of(run.engine.device, run.meter.dtype),
        num_processes=world.size,
    )


@dataclass(frozen=True)
class Moment:
    """One step before it is done."""

    step: int
    """From 0."""
    work: Work
    micro_batches: Sequence[Batch]
    stopping: bool
    """Some process was told to stop; the state is saved after this step."""


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
        self.model = model
        self.section = section
        self.seed = seed
        self.out = out
        self.progress = progress
        self.world = world or World()
        self.engine = build_engine(model, section, self.world)
        model.length_multiple = length_multiple(section.precision, self.engine.device)
        shared = section.engine.kind == "deepspeed"
        self.share = Share(self.world.rank, self.world.size, pictures_last=shared)
        self.num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.meter = Meter(model, section, canvas_size, self.world.size)
        self.features: Features | None = None
        self.vision_trains = any(map(is_trainable, (model.encoders, model.fusion, model.projector)))
        self.alignment_weight = model.alignment.weight if model.alignment is not None else 0.0
        self.clock = Clock(self.engine.device)
        self.idle_pixels = torch.zeros((1, 3, canvas_size, canvas_size), dtype=torch.uint8)
        self.totals = Totals()
        self.writer = StateWriter(out, "", beside=self.engine.device.type != "cpu")
        self._warn_of_emulation()

    def _warn_of_emulation(self) -> None:
        if self.section.precision == "bfloat16" and not has_bfloat16(self.engine.device):
            self.progress.note(
                "this processor has no bfloat16 arithmetic, so a step takes about ten times as "
                "long; precision: float32 is faster here"
            )

    def resume(self, which: str, prepared: Prepared, processor: Processor) -> int:
        """Load the newest whole state of this identity; return the steps done (0 without one)."""
        self.writer.identity = which
        share = self.section.max_quarantined
        self.quarantine = Quarantine(prepared, share, self.out, self.progress, self.world)
        state = load_state(self.out, which, self.progress) if self.world.leads else None
        step = int(self.world.broadcast(torch.tensor(state.step if state else -1)))
        if state is None and step >= 0:
            state = State(step, Totals(), {}, {})  # what is in it comes from process 0
        canvas = f"{processor} {processor.WAY}"
        features = find_features(self.model, self.section, canvas, self.engine.device)
        self.engine.start(state)
        if features:
            decision = decide(features, prepared, processor.canvas_size, self.engine.device)
            self.features = features if decision.keep else None
            if self.world.leads:
                record(decision, self.out, self.progress)
        self.quarantine.resume(max(0, step))
        if state is None:
            return 0
        self.totals = state.totals
        self.progress.note(f"continues from step {state.step} of {self.section.num_steps}")
        return state.step

    def is_kept(self, sha256: str) -> bool:
        """Tell whether a picture's features come from disk, so that nobody needs the picture."""
        return self.features is not None and self.features.has(sha256)

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps, or begin to; the last one is whole on return."""
        state = State(step, self.totals, *self.engine.tensors())
        if self.world.leads:
            self.writer.save(state)
            if step == self.section.num_steps:
                self.writer.wait()

    def load(self, prepared: Prepared, plan: Plan, cache: PixelCache, start: int) -> BatchLoader:
        """Return the loader of the batches from step ``start`` to the end."""
        return BatchLoader(
            prepared,
            plan,
            cache,
            start,
            self.section.num_steps,
            self.share,
            workers=num_workers(self.section.workers),
            note=self.progress.note,
            is_kept=self.is_kept,
        )

    def moments(self, start: int, batches: BatchLoader, stop: StopRequest) -> Iterator[Moment]:
        """Yield what each step from ``start`` on consists of, agreed with the other processes."""
        self.clock.restart()
        for step, micro_batches in enumerate(batches, start):
            # Whoever failed to make its batch is missed here, and not inside the model.
            told = self.world.gather([bool(stop), len(batches.unusable)])
            stopping = any(flag for flag, _ in told)
            counts = [int(count) for _, count in told]
            work = self.work(batches, step, self.quarantine.meet(step, batches.unusable, counts))
            yield Moment(step, work, micro_batches, stopping)

    def end_step(self, row: Row, stop: StopRequest, *, stopping: bool) -> None:
        """Report a step, and save the state where it is time to, or to stop.

        Raises:
            Interrupted: the end is not reached; the state is saved.
        """
        total = self.section.num_steps
        self.report(row)
        if self.world.size == 1:
            stopping = bool(stop)
        if stopping or row.step % self.section.checkpoint_every == 0 or row.step == total:
            self.save(row.step)
        if stopping and row.step < total:
            self.writer.wait()
            raise self.interruption(row.step, stop)
        self.clock.restart()

    def report(self, row: Row) -> None:
        """Tell whoever watches about a step."""
        self.progress.step(
            row.step,
            self.section.num_steps,
            loss=row.loss,
            tokens_per_second=row.tokens_per_second,
            utilisation=row.mfu_measured,
            data_wait=row.data_wait_share,
        )

    def work(self, batches: BatchLoader, step: int, unusable: frozenset[int] = NOTHING) -> Work:
        """Return what a step consists of."""
        return Work.of(
            batches.plan,
            batches.prepared,
            step,
            self.share,
            vision_trains=self.vision_trains,
            unusable=unusable,
        )

    def interruption(self, step: int, stop: StopRequest) -> ManyeyesError:
        """Return what ends a run that was asked to stop; process 0 says it for all."""
        text = (
            f"Stopped by {stop.signal_name or 'a signal'} after step {step} of "
            f"{self.section.num_steps}; the state is saved and the same command continues from "
            "there."
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
        self.draw_from(step)
        factor = schedule_factor(self.section.schedule, step, self.section.num_steps)
        rate = self.engine.set_rate(factor)
        losses, num_read = self.accumulate(step, work, micro_batches, batches)
        if not math.isfinite(losses.worst):
            bad = {place: work.batches[place] for place in losses.bad_places()}
            raise self.failure(step, "loss", losses.worst, bad, batches)
        norm = self.engine.step()
        if not math.isfinite(norm):
            everything = dict(enumerate(work.batches))
            raise self.failure(step, "gradient", norm, everything, batches)
        aligned = losses.total_alignment if self.alignment_weight and work.counts.images else None
        outcome = Outcome(
            step=step + 1,
            loss=losses.total_text,
            alignment_loss=aligned,
            learning_rate=rate,
            grad_norm=norm,
            data_wait=data_wait,
            seconds=self.clock.lap(),
            pictures_read=num_read,
        )
        return self.measure(outcome, work.counts)

    def draw_from(self, *place: int) -> None:
        """Make what is drawn from now on, dropout above all, a function of the seed and a place."""
        seed = mix(self.seed, *place)
        if self.engine.device.type == "cpu":
            # Without accelerators torch's own notes a stack trace for each kind of them, for ever.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def accumulate(
        self, step: int, work: Work, micro_batches: Sequence[Batch], batches: BatchLoader
    ) -> tuple[StepLosses, int]:
        """Add up the gradients of a step.

        Losses are means over the learned positions, and pictures, of all processes' whole step.

        Returns:
            (what each place adds to the losses, pictures whose features came from disk)
        """
        mine = []
        turns = zip(work.places, work.idle, micro_batches, strict=True)
        for turn, (place, idle, batch) in enumerate(turns):
            if self.share.pictures_last:
                self.draw_from(step, place)  # whichever process has it
            maps = None
            if self.features:
                decode = partial(batches.decode, work.batches[place])
                maps = self.features.maps(batch, self.engine.device, decode)
            idle_pixels = self.idle_pixels if idle else None
            means = self.engine.forward(batch, idle_pixels=idle_pixels, maps=maps)
            text, aligned = parts = means * shares_of(batch, work.counts).to(means.device)
            loss = text + self.alignment_weight * aligned if self.alignment_weight else text
            mine.append(parts.detach())
            # Text alone says nothing to a projector: such a loss has no path to a trained weight.
            if loss.requires_grad:
                self.engine.backward(loss, last=turn == len(work.places) - 1)
        num_read = self.features.take_read() if self.features else 0
        return StepLosses.gather(mine, num_read, work, self.world)

    def measure(self, outcome: Outcome, counts: StepCounts) -> Row:
        """Add a step to the totals and return its row."""
        flops = self.meter.flops(outcome, counts)
        self.totals = self.totals.plus(counts, outcome.seconds, flops)
        return self.meter.row(outcome, counts, self.totals, self.clock)

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
        return keep_failure(self.out, Failure(what, value, made), state, self.writer.identity)


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16; a CPU without AVX-512 only emulates it."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
