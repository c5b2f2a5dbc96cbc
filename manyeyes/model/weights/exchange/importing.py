"""Taking in published weights: an encoder, a language model, a projector, or a whole system.

Names and shapes are compared first, on a model that takes no memory (PyTorch's meta device); only
when every tensor has its place is anything written, and then tensor by tensor.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manyeyes.artifact.files import IMPORT_FILE, RECIPE_FILE
from manyeyes.artifact.manifest import Header, atomic_write_json, atomic_write_text, write_manifest
from manyeyes.artifact.provenance import header_without_recipe
from manyeyes.errors import UserError
from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.weights.exchange.experts import Joiner, place_of
from manyeyes.model.weights.exchange.folder import TensorWriter, new_folder
from manyeyes.model.weights.exchange.matching import Matcher, match
from manyeyes.model.weights.exchange.names import find_system
from manyeyes.model.weights.exchange.projector import write_joint
from manyeyes.model.weights.exchange.report import ImportReport, Unused
from manyeyes.model.weights.foreign_code import (
    CONFIG,
    TOKENIZER_CONFIG,
    read_settings,
    without_code,
)
from manyeyes.model.weights.loading import load_weights, unstack
from manyeyes.runtime.locks import temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from pydantic import JsonValue

    from manyeyes.config.recipe import Recipe
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.model.weights.exchange.source import Source

TOKENIZER_FILES = ("tokenizer*", "*.model", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "generation_config.json", "*.jinja")  # fmt: skip
LANGUAGE_TYPES = {
    "llava": "llama", "llava_llama": "llama", "llava_llama_hr": "llama", "eagle_llama": "llama",
    "eve": "llama", "mgm": "llama", "mgm_llama": "llama", "mini_gemini": "llama",
    "cambrian": "llama", "cambrian_llama": "llama", "mgm_gemma": "gemma", "mgm_mixtral": "mixtral",
}  # fmt: skip
"""What the authors call their model, and what its language model is."""
ROTARY = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Import:
    """What shall be read as what, and what came of the comparison."""

    source: Source
    report: ImportReport


def import_encoder(source: Source, row: str, out: Path) -> Import:
    """Write a tower that ``weights:`` of an encoder names; nothing, if the report has a problem.

    Raises:
        UserError: no such row, a file is damaged, or ``out`` exists.
    """
    spec = find_spec(row)
    with torch.device("meta"):
        encoder = encoder_from_spec(spec, grid=spec.native_grid, normalization="per_encoder")
    wanted = {key: tuple(value.shape) for key, value in encoder.tower.state_dict().items()}
    report = ImportReport(source.reference, row)
    for key, shape in source.shapes.items():
        target = encoder.rename(key)
        goal = Unused("the features do not pass through it") if target is None else target
        report.take(key, shape, (goal,) if isinstance(goal, str) else goal, wanted)
    filled = report.filled()
    report.missing = [name for name in wanted if name not in filled]
    if report.problem is None:
        with new_folder(out) as work:
            _write_tensors(source, report, work, module=lambda _: "model")
            atomic_write_json(work / IMPORT_FILE, _json(report))
    return Import(source, report)


def import_language_model(source: Source, out: Path) -> Import:
    """Write a language model folder that ``model.llm.weights`` names.

    Raises:
        UserError: it has no config or tokenizer, or one that transformers does not know.
    """
    from manyeyes.model.transformer import (
        build_language_model,
        load_language_model_config,
        load_tokenizer,
    )

    config = load_language_model_config(str(source.folder.absolute()))
    with torch.device("meta"):
        model = build_language_model(config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    report = ImportReport(source.reference, f"a language model of kind {config.model_type}")
    for key, shape in source.shapes.items():
        computed = key.endswith(ROTARY)
        place = place_of(key)
        goal = (place,) if isinstance(place, str) else place
        report.take(key, shape, Unused("computed, not stored") if computed else goal, wanted)
    filled, tied = report.filled(), bool(config.tie_word_embeddings)
    report.missing = [
        name for name in wanted if name not in filled and not (tied and name == "lm_head.weight")
    ]
    if report.problem is None:
        load_tokenizer(str(source.folder.absolute()))
        with new_folder(out) as work:
            _write_tensors(source, report, work, module=lambda _: "model")
            for name in (CONFIG, *_beside(source)):
                _copy_without_code(source.folder / name, work / name)
            atomic_write_json(work / IMPORT_FILE, _json(report))
    return Import(source, report)


def import_projector(source: Source, recipe: Recipe, system: str, out: Path) -> Import:
    """Write projector and fusion that ``model.projector.weights`` names.

    Raises:
        UserError: the recipe's model cannot be built, a file is damaged, or ``out`` exists.
    """
    model = _meta_model(source, recipe)
    matcher = Matcher(model, recipe.model, find_system(system), whole=False)
    report = match(matcher, source, f"the projector of {recipe.name}, named by {system}")
    if report.problem is None:
        with new_folder(out) as work:
            write_joint(source, report, work)
            atomic_write_json(work / IMPORT_FILE, _json(report))
    return Import(source, report)


def import_system(source: Source, recipe: Recipe, system: str, out: Path) -> Import:
    """Write a whole checkpoint: the recipe's model with the published weights.

    Raises:
        UserError: the recipe's model cannot be built, towers that are not in the file cannot be
            had elsewhere, a file is damaged, or ``out`` exists.
    """
    model = _meta_model(source, recipe)
    matcher = Matcher(model, recipe.model, find_system(system), whole=True)
    report = match(matcher, source, f"{recipe.name}, named by {system}")
    if report.problem is None:
        with new_folder(out) as work:
            _write_system(source, recipe, model, report, work)
    return Import(source, report)


def _write_system(
    source: Source, recipe: Recipe, model: VisionLanguageModel, report: ImportReport, work: Path
) -> None:
    from transformers import GenerationConfig

    from manyeyes.model.transformer import check_tokenizer, load_tokenizer

    has_tokenizer = any((source.folder / name).exists() for name in _tokenizer_names())
    tokens = str(source.folder.absolute()) if has_tokenizer else recipe.model.llm.weights
    tokenizer = load_tokenizer(tokens, model.llm.config)
    check_tokenizer(tokenizer, model.llm.config.vocab_size, tokens)
    elsewhere = _towers(model, report)
    _write_tensors(source, report, work, module=_module_of, more=elsewhere)
    model.config.save_pretrained(work)
    stops = source.folder / "generation_config.json"
    settings = GenerationConfig.from_pretrained(source.folder) if stops.exists() else None
    (settings or model.generation_config).save_pretrained(work)
    tokenizer.save_pretrained(work)
    sizes = [expert.spec.image_size for expert in model.experts.values()]
    model.fusion.processor(max(sizes)).save(work)
    kept = {
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json"),
        "section": recipe.sft.model_dump(mode="json"),
    }
    atomic_write_text(work / RECIPE_FILE, json.dumps(kept, indent=2) + "\n")
    atomic_write_json(work / IMPORT_FILE, _json(report))
    write_manifest(work, _header(recipe, report))


def _towers(model: VisionLanguageModel, report: ImportReport) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the towers that come from elsewhere, under their names in the model."""
    for part, reference in report.elsewhere.items():
        name = part.removeprefix("encoders.")
        spec, grid = model.experts[name].spec, model.experts[name].grid
        encoder = encoder_from_spec(spec, grid=grid, normalization="per_encoder")
        load_weights(encoder, reference)
        for key, tensor in encoder.state_dict().items():
            yield f"{part}.{key}", tensor


def _write_tensors(
    source: Source,
    report: ImportReport,
    work: Path,
    *,
    module: Callable[[str], str],
    more: Iterable[tuple[str, torch.Tensor]] = (),
) -> None:
    """Write what a report found use for; ``module`` says which file a tensor belongs into."""
    writer, joiner = TensorWriter(work), Joiner(report.joined)
    for key, tensor in source.tensors(report.used):
        names = report.used[key]
        if key in report.pieces:
            whole = joiner.add(report.pieces[key], tensor)
            if whole is not None:
                writer.add(module(names[0]), names[0], whole)
            continue
        for name, part in zip(names, unstack(tensor, len(names)), strict=True):
            writer.add(module(name), name, part)
    for name, tensor in more:
        writer.add(module(name), name, tensor)
    writer.finish()


def _module_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "encoders" else parts[0]


def _meta_model(source: Source, recipe: Recipe) -> VisionLanguageModel:
    """Build the recipe's model without memory, around the language model the source describes."""
    from manyeyes.model.vlm import VisionLanguageModel

    with temporary() as place:
        section = recipe.model
        config = _language_config(source)
        if config:
            (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
            llm = section.llm.model_copy(update={"weights": str(place)})
            section = section.model_copy(update={"llm": llm})
        with torch.device("meta"):
            return VisionLanguageModel.from_recipe(section, seed=recipe.seed, load=False)


def _language_config(source: Source) -> dict[str, object]:
    """Return the language model's part of a released ``config.json``, as transformers knows it.

    Raises:
        UserError: it is of a kind that none of the authors released.
    """
    from transformers import AutoConfig

    config = source.config()
    kind = str(config.get("model_type", ""))
    if not config:
        return {}
    if kind in LANGUAGE_TYPES:
        known = AutoConfig.for_model(LANGUAGE_TYPES[kind]).to_dict()
        kept = {key: value for key, value in config.items() if key in known}
        return {**kept, "model_type": LANGUAGE_TYPES[kind]}
    raise UserError(
        f"{source.folder / 'config.json'} is of kind {kind!r}, and no system is "
        f"released as that ({', '.join(sorted(LANGUAGE_TYPES))}): give --as llm or an encoder's "
        "name."
    )


def _tokenizer_names() -> tuple[str, ...]:
    return ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def _beside(source: Source) -> list[str]:
    found = {path.name for pattern in TOKENIZER_FILES for path in source.folder.glob(pattern)}
    return sorted(found)


def _copy_without_code(source: Path, target: Path) -> None:
    """Copy a file; a config loses what would have code run where the result is used."""
    if source.name in (CONFIG, TOKENIZER_CONFIG):
        config = read_settings(source)
        kept = without_code(config)
        if kept != config:
            atomic_write_text(target, json.dumps(kept, indent=2) + "\n")
            return
    shutil.copyfile(source, target)


def _json(report: ImportReport) -> JsonValue:
    data: Any = report.to_json()
    return {**data, "source": report.reference}


def _header(recipe: Recipe, report: ImportReport) -> Header:
    """Describe a checkpoint that no stage made."""
    details: dict[str, JsonValue] = {"imported": report.reference, "as": report.target}
    return header_without_recipe(
        "checkpoint", "sft", "import-weights", seed=recipe.seed, details=details
    )
