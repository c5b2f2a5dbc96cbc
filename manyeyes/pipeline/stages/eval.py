"""``eval``: each task's official metric, beside the same model shown a blank picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from manyeyes.artifact.manifest import read_manifest
from manyeyes.config.recipe import EvalSection, ModelSection
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import quarantined_ids
from manyeyes.data.loading.conversation import end_ids
from manyeyes.pipeline.stages import Details
from manyeyes.pipeline.stages.history import inherit
from manyeyes.runtime.progress import Progress


def evaluate(
    seed: int,
    model: ModelSection,
    section: EvalSection,
    *,
    inputs: Mapping[str, Path],
    out: Path,
    progress: Progress,
) -> Details:
    """Answer the split's questions, score them, and write the report.

    Args:
        seed: of the bootstrap.
        model: the recipe's model, for its conversation template.
        section: tasks, metrics, lengths.
        inputs: ``dataset``, ``validation`` and ``checkpoint``.
        out: gets ``metrics.json``, ``predictions.parquet`` and ``report.html``.
        progress: told how many questions are answered.

    Raises:
        UserError: a task has no question in the split, or the checkpoint cannot be read.
        Interrupted: told to stop; the answers so far are kept.
    """
    from manyeyes.evaluate.generate import Subject
    from manyeyes.evaluate.run import Exam, discard_state, evaluate_model
    from manyeyes.model.processor import Processor
    from manyeyes.model.transformer import load_checkpoint_tokenizer, stop_at
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.pipeline.stages.reporting import LastStage, report_evaluation
    from manyeyes.train.cpu_sharing import cores_shared
    from manyeyes.train.interrupt import stop_on_signal

    clock = time.monotonic()
    inherit(inputs, out)
    checkpoint = inputs["checkpoint"]
    dataset = Dataset.open(inputs["dataset"])
    vlm = VisionLanguageModel.from_pretrained(checkpoint)
    tokenizer = load_checkpoint_tokenizer(checkpoint, vlm.llm)
    stop_at(vlm.llm, end_ids(tokenizer, model.llm.template))
    subject = Subject(vlm, tokenizer, Processor.load(checkpoint), model.llm.template)
    exam = Exam(
        section,
        seed,
        identity=read_manifest(checkpoint).digest,
        excluded=quarantined_ids(inputs["validation"]),
    )
    with stop_on_signal() as stop, cores_shared():
        evaluation = evaluate_model(
            subject, dataset, exam, out=out, progress=progress, should_stop=lambda: bool(stop)
        )
    seconds = time.monotonic() - clock
    last = LastStage("eval", round(seconds, 1), tuple(progress.notes))
    report_evaluation(evaluation, dataset, model, section, last=last, out=out)
    discard_state(out)
    left_out: Details = {"left_out": dict(evaluation.left_out)} if evaluation.left_out else {}
    return {"scores": evaluation.scores.flat(), **left_out}
