"""Small runs with recorded results, by which ``make lock`` sees that code still does the same.

Every stage and part of the lock has one: the whole pipeline on a few samples for the stages, one
forward and backward pass for encoders and fusions, a table of answers for metrics. All of it in
float32 on one thread; numbers depend on the instruction set, so each set has its own record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

RESULTS = Path(__file__).parent / "golden" / "results.json"
STAGES = ("prepare", "validate", "prealign", "pretrain", "sft", "eval", "register")
RELATIVE = 1e-6
"""By how much two runs of the same code on two processors of one instruction set may differ."""
ANSWERS = (
    ("Yes, it is.", ("yes",)), ("no", ("no",)), ("The Red circle", ("red circle", "red circle!")),
    ("12%", ("0.12", "12.4")), ("12.9", ("12.4",)), ("helo world", ("hello world",)),
    ("two", ("2", "two", "2", "2", "two", "2", "2", "2", "2", "2")), ("", ("a",)),
    ("don't know", ("dont know",) * 10), ("1,000", ("1000",) * 3 + ("1,000",) * 7),
)  # fmt: skip
"""Predictions with accepted answers, on which every metric is tried."""


def instruction_set() -> str:
    """Return the name of the kernels that torch uses here."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def results(labels, folder):
    """Run what belongs to these stages and parts; label to its result."""
    found = {}
    for label in labels:
        if label not in STAGES:
            kind, name = label.split(" ", 1)
            found[label] = PARTS[kind](name, folder)
    stages = [label for label in labels if label in STAGES]
    if stages:
        ran = pipeline(folder, last=max(stages, key=STAGES.index))
        found |= {label: ran[label] for label in stages}
    return json.loads(json.dumps(found))


def pipeline(folder, *, last):
    """Run the pipeline of one expert on a few samples up to a stage; stage to its result."""
    from pipeline_kit import small_recipe

    from benchmarks.single_experts import alone
    from manyeyes.config.recipe import load_recipe
    from manyeyes.config.recipe.slices import slice_json
    from manyeyes.pipeline.runner import run_stage
    from manyeyes.steps import STEPS

    recipe = alone(load_recipe(small_recipe(folder, pretrain_steps=2, sft_steps=2)), "clip")
    found = {}
    for step in STEPS[: STAGES.index(last) + 1]:
        inputs = {
            needed.role: [folder / needed.source] if needed.many else folder / needed.source
            for needed in step.inputs
        }
        expert = "clip" if step.per_expert else None
        text = slice_json(recipe, step.name, expert)
        out = folder / step.name
        manifest = run_stage(step.name, text, inputs=inputs, out=out, expert=expert)
        found[step.name] = OUTCOMES.get(step.name, _trained)(out, manifest)
    return found


def _trained(out, _manifest):
    """Every step's losses and the size of every tensor that was written."""
    import torch
    from safetensors.torch import load_file

    rows = [
        json.loads(line) for line in (out / "measurements/metrics.jsonl").read_text().splitlines()
    ]
    losses = [{key: row[key] for key in row if key.endswith("loss")} for row in rows]
    norms = {
        path.stem: sum(float(t.to(torch.float64).square().sum()) for t in load_file(path).values())
        for path in sorted(out.glob("*.safetensors"))
    }
    others = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*.json"))
        if path.name != "manifest.json"
    }
    return {"losses": losses, "squares": norms, "files": others}


def _evaluated(out, _manifest):
    import pyarrow.parquet as pq

    table = pq.read_table(out / "predictions.parquet").to_pylist()
    return {"scores": json.loads((out / "metrics.json").read_text()), "predictions": table}


def _registered(_out, manifest):
    facts = ("name", "version", "aliases", "passed", "reasons")
    return {key: manifest.details[key] for key in facts if key in manifest.details}


OUTCOMES = {
    "prepare": lambda _, manifest: manifest.digest,
    "validate": lambda _, manifest: manifest.digest,
    "eval": _evaluated,
    "register": _registered,
}


def _data(kind, folder):
    """Make a dataset as ``prepare`` does; its content digest."""
    from manyeyes.artifact.manifest import hash_file, iter_files

    out = folder / f"data-{kind}"
    if kind == "starter":
        from manyeyes.data.sources.starter import build

        build(out, seed=7, scale=0.02, image_size=64)
    else:
        from training_kit import make_dataset

        from manyeyes.data.dataset.finish import finish_dataset
        from manyeyes.pipeline.stages.prepare import _take_dataset

        make_dataset(folder / "raw")
        (folder / "data").mkdir(exist_ok=True)
        finish_dataset(folder / "raw", folder / "data/mine", seed=0, details={})
        out.mkdir()
        before = os.environ.get("MANYEYES_DATA")
        os.environ["MANYEYES_DATA"] = str(folder / "data")
        try:
            _take_dataset("mine", out)
        finally:
            os.environ.pop("MANYEYES_DATA")
            os.environ |= {"MANYEYES_DATA": before} if before else {}
    return {path.relative_to(out).as_posix(): hash_file(path).sha256 for path in iter_files(out)}


def _encoder(row, _folder):
    """What the row says, and what its family makes of two pictures at a small size."""
    import torch
    from model_kit import pictures
    from test_small_encoders import SPECS

    from manyeyes.model.encoders import encoder_from_spec
    from manyeyes.model.encoders.registry import ENCODERS
    from manyeyes.model.encoders.spec import spec_to_json

    family = ENCODERS[row].family
    tiny = {"patch_embedding": "eve-patch-embedding-tiny"}.get(family, f"{family}-tiny")
    spec = SPECS.get(family) or ENCODERS[tiny]
    numbers = {}
    if family != "patch_embedding":  # its features are those of its fusion
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = encoder_from_spec(spec, grid=4, normalization="per_encoder")
        features = encoder(pictures(2))
        features.square().mean().backward()
        found = features.detach()
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        numbers = {
            "features": [float(found.mean()), float(found.square().mean())],
            "gradients": sum(float(grad.square().sum()) for grad in grads),
        }
    return {"row": spec_to_json(ENCODERS[row]), **numbers}


def _fusion(kind, folder):
    """Loss and gradients of one picture and a few words, through a model with this fusion."""
    import torch
    from model_kit import pictures

    from manyeyes.data.loading.conversation import IMAGE_TOKEN

    model = _model_with(kind, folder)
    ids = torch.tensor([[1, IMAGE_TOKEN, 5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 5, 6, 7, 8]])
    size = torch.tensor([[128, 96]])
    found = model(input_ids=ids, labels=labels, pixels=pictures(1), image_sizes=size)
    found.loss.backward()
    squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    return {"loss": float(found.loss.detach()), "gradients": squares}


def _model_with(kind, folder):
    from model_kit import model_section, write_llama
    from test_fusion_systems import FUSIONS, mixture
    from test_recipe import TINY

    from manyeyes.config.recipe import ChannelConcat, load_recipe
    from manyeyes.model.vlm import VisionLanguageModel

    llm = write_llama(folder / f"llm-{kind}")
    if kind == "patch_embedding":
        eve = load_recipe(TINY.parent / "eve.yaml").model
        encoders = tuple(one.model_copy(update={"weights": "random"}) for one in eve.encoders)
        section = model_section(llm, fusion=eve.fusion, encoders=encoders, grid=8)
        return VisionLanguageModel.from_recipe(section, seed=0).train(mode=False)
    table = {fusion.kind: (fusion, fine) for fusion, fine, _ in FUSIONS}
    table["channel_concat"] = (ChannelConcat(kind="channel_concat"), None)
    fusion, fine = table[kind]
    return mixture(llm, fusion, fine=fine)


def _template(row, _folder):
    from manyeyes.data.loading.templates import TEMPLATES

    values = dataclasses.asdict(TEMPLATES[row])
    return {key: value for key, value in values.items() if key != "version"}


def _metric(row, _folder):
    from manyeyes.evaluation.metrics import METRICS

    metric = METRICS[row]
    judged = [metric.per_answer(given, answers) for given, answers in ANSWERS]
    return {"scores": judged, "aggregate": metric.aggregate, "protocol": metric.protocol}


def _language_model(row, _folder):
    from manyeyes.model.weights.published import PUBLISHED

    return dict(PUBLISHED[row])


PARTS = {
    "data": _data,
    "encoder": _encoder,
    "fusion": _fusion,
    "template": _template,
    "metric": _metric,
    "language-model": _language_model,
}


def difference(before, after, where=""):
    """Return the first place where two results differ, in words; nothing where they agree."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            found = difference(before.get(key), after.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return ""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return next(
            (found for n, (a, b) in pairs if (found := difference(a, b, f"{where}[{n}]"))), ""
        )
    numbers = isinstance(before, float | int) and isinstance(after, float | int)
    if numbers and abs(before - after) <= RELATIVE * max(abs(before), abs(after)):
        return ""
    return "" if before == after else f"{where}: {_brief(before)} -> {_brief(after)}"


def _brief(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
