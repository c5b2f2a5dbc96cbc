"""``eval``: each task's official metric, beside the same model shown a blank picture."""

from __future__ import annotations

import time

from manyeyes.artifact.lineage import inherit
from manyeyes.artifact.manifest import read_manifest
from manyeyes.config.recipe.slices import EvalSlice
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import quarantined_ids
from manyeyes.data.loading.conversation import end_ids
from manyeyes.pipeline.stages import Details, StageContext


def evaluate(piece: EvalSlice, context: StageContext) -> Details:
    """Answer the split's questions, score them, and write the report.

    ``out`` gets ``metrics.json``, ``predictions.parquet`` and ``report.html``; progress is told how
    many questions are answered.

    Args:
        piece: its model gives the conversation template, its seed is the bootstrap's.
        context: with ``dataset``, ``validation`` and ``checkpoint``.

    Raises:
        UserError: a task has no question in the split, or the checkpoint cannot be read.
        Interrupted: told to stop; the answers so far are kept.
    """
    from manyeyes.evaluation.generate import Subject
    from manyeyes.evaluation.run import Exam, discard_state, evaluate_model
    from manyeyes.model.processor import Processor
    from manyeyes.model.transformer import load_checkpoint_tokenizer, stop_at
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.pipeline.stages.reporting import LastStage, report_evaluation
    from manyeyes.training.cpu_sharing import cores_shared
    from manyeyes.training.interrupt import stop_on_signal

    clock = time.monotonic()
    inputs, out = context.inputs, context.out
    inherit(inputs, out)
    checkpoint = inputs["checkpoint"]
    dataset = Dataset.open(inputs["dataset"])
    vlm = VisionLanguageModel.from_pretrained(checkpoint)
    tokenizer = load_checkpoint_tokenizer(checkpoint, vlm.llm)
    template = piece.model.llm.template
    stop_at(vlm.llm, end_ids(tokenizer, template))
    subject = Subject(vlm, tokenizer, Processor.load(checkpoint), template)
    exam = Exam(
        piece.section,
        piece.seed,
        identity=read_manifest(checkpoint).digest,
        excluded=quarantined_ids(inputs["validation"]),
    )
    with stop_on_signal() as stop, cores_shared():
        evaluation = evaluate_model(
            subject,
            dataset,
            exam,
            out=out,
            progress=context.progress,
            should_stop=lambda: bool(stop),
        )
    seconds = time.monotonic() - clock
    last = LastStage("eval", round(seconds, 1), tuple(context.progress.notes))
    report_evaluation(evaluation, dataset, piece, last=last, out=out)
    discard_state(out)
    left_out: Details = {"left_out": dict(evaluation.left_out)} if evaluation.left_out else {}
    return {"scores": evaluation.scores.flat(), **left_out}
