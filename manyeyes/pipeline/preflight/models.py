"""The models of a recipe, built without memory: lengths, end tokens, patterns, headers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.data.contract.needs import Key, trainings
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight.names import in_hub_cache, is_hub
from manyeyes.pipeline.preflight.subject import Found, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedConfig

    from manyeyes.config.recipe import ModelSection, TrainSection
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.plan.stages import Stage


def lengths(subject: Subject) -> Iterator[Found]:
    """Find lengths beyond the language model's positions."""
    from manyeyes.model.vlm_config import check_length

    for place, model in subject.models.items():
        config, error = _config(model)
        if error is not None:
            yield Found((*place, "llm", "weights"), str(error))
        elif config is not None:
            try:
                check_length(model, config)
            except UserError as problem:
                yield Found((*place, "max_length"), str(problem))


def end_tokens(subject: Subject) -> Iterator[Found]:
    """Find a tokenizer of another model, and templates with an end token that it has not."""
    from manyeyes.data.loading.conversation import end_ids
    from manyeyes.model.transformer import check_tokenizer, load_tokenizer

    reference = subject.recipe.model.llm.weights
    if not tokenizer_is_here(reference):
        return
    config, _ = _config(subject.recipe.model)
    try:
        tokenizer = load_tokenizer(reference)
        if config is not None:
            check_tokenizer(tokenizer, config.vocab_size, reference)
    except UserError as error:
        yield Found(("model", "llm", "weights"), str(error))
        return
    templates: dict[Key, str] = {
        (*place, "llm", "template"): model.llm.template for place, model in subject.models.items()
    }
    for place, section in trainings(subject.recipe).items():
        if section.template is not None:
            templates[(*place, "template")] = section.template
    for key, template in templates.items():
        try:
            end_ids(tokenizer, template)
        except UserError as error:
            yield Found(key, str(error))


def patterns(subject: Subject) -> Iterator[Found]:
    """Find patterns over names that fit nothing of the stage's model."""
    for place, stage, vlm in _stages(subject):
        if isinstance(vlm, UserError):
            yield Found((*place, "model") if stage.section.model else ("model",), str(vlm))
            continue
        yield from (Found((*place, *key), text) for key, text in _unfit(vlm, stage))


def weights(subject: Subject) -> Iterator[Found]:
    """Find weights whose tensors are not those of the model."""
    seen: set[tuple[Key, str]] = set()
    for place, stage, vlm in _stages(subject):
        if isinstance(vlm, UserError):
            continue  # told by patterns
        at: Key = (*place, "model") if stage.section.model else ("model",)
        written = stage.section.model or subject.recipe.model
        numbers = {encoder.name: number for number, encoder in enumerate(written.encoders)}
        parts: list[tuple[Key, str, Callable[[Key, VisionLanguageModel, str], Iterator[Found]]]]
        parts = [
            ((*at, "encoders", numbers[one.name]), one.weights, partial(_tower, one.name))
            for one in stage.model.encoders
        ]
        parts.append(((*at, "llm"), stage.model.llm.weights, _language))
        if stage.model.alignment is not None:
            key = (*at, "alignment", "teacher")
            parts.append((key, stage.model.alignment.teacher.weights, _teacher))
        if stage.name == "pretrain" and stage.model.projector.weights is not None:
            parts.append(((*at, "projector"), stage.model.projector.weights, _joint))
        for key, reference, look in parts:
            if (key, reference) not in seen:
                seen.add((key, reference))
                yield from look((*key, "weights"), vlm, reference)


def tokenizer_is_here(reference: str) -> bool:
    """Say whether a language model's tokenizer can be read without a network."""
    if is_hub(reference):
        return in_hub_cache(reference, "tokenizer.json", "tokenizer_config.json")
    return _is_installed(reference)


def _config_is_here(reference: str) -> bool:
    from manyeyes.model.weights.published import PUBLISHED

    if reference in PUBLISHED:
        return True
    if is_hub(reference):
        return in_hub_cache(reference, "config.json")
    return _is_installed(reference)


def _is_installed(reference: str) -> bool:
    from manyeyes.model.weights.packages import PREFIX, package_file

    if reference.startswith(PREFIX):
        try:
            package_file(reference)
        except UserError:
            return False
        return True
    return reference.startswith("zoo:") or Path(reference).exists()


def _config(model: ModelSection) -> tuple[PreTrainedConfig | None, UserError | None]:
    """Return the language model's config, or why a config that is here cannot be read."""
    from manyeyes.model.transformer import load_language_model_config

    if not _config_is_here(model.llm.weights):
        return None, None
    try:
        return load_language_model_config(model.llm.weights), None
    except UserError as error:
        return None, error


def _stages(subject: Subject) -> Iterator[tuple[Key, Stage, VisionLanguageModel | UserError]]:
    """Build the model of every training stage whose language model's config is fit and here."""
    from manyeyes.plan.stages import build_on_meta, training_stages

    if any(list(lengths(subject))):
        return
    places = list(trainings(subject.recipe))
    for place, stage in zip(places, training_stages(subject.recipe), strict=True):
        if not _config_is_here(stage.model.llm.weights):
            continue
        try:
            yield place, stage, build_on_meta(stage.model, stage.weight_type)
        except UserError as error:
            yield place, stage, error


def _unfit(vlm: VisionLanguageModel, stage: Stage) -> Iterator[tuple[Key, str]]:
    from manyeyes.training.freeze import require_match

    section: TrainSection = stage.section
    names = [name for name, _ in vlm.named_parameters()]
    asked: list[tuple[Key, str, str]] = [
        (("train", number), pattern, "train") for number, pattern in enumerate(section.train)
    ]
    asked += [
        (("learning_rates", number, "modules"), rate.modules, "learning_rates")
        for number, rate in enumerate(section.learning_rates)
    ]
    bad = False
    for key, pattern, where in asked:
        try:
            require_match(pattern, names, where=where)
        except UserError as error:
            bad = True
            yield key, str(error).removeprefix(f"{where}: ")
    if bad:
        return
    from manyeyes.plan.stages import build_to_train, learning_rates, trainable_names

    try:
        trainable = trainable_names(vlm, section)
        learning_rates(trainable, section)
        if section.lora is not None:
            build_to_train(stage)
    except UserError as error:
        yield (), str(error)


def _tower(name: str, key: Key, vlm: VisionLanguageModel, reference: str) -> Iterator[Found]:
    from manyeyes.model.encoders.base import Encoder
    from manyeyes.model.weights.loading import check_headers

    encoder = vlm.encoders[name]
    assert isinstance(encoder, Encoder)
    yield from _headers(
        key, reference, lambda files: check_headers(encoder.tower, files, reference, encoder.rename)
    )


def _teacher(key: Key, vlm: VisionLanguageModel, reference: str) -> Iterator[Found]:
    from manyeyes.model.weights.loading import check_headers

    if vlm.alignment is None:
        return
    teacher = vlm.alignment.teacher
    yield from _headers(
        key, reference, lambda files: check_headers(teacher.tower, files, reference, teacher.rename)
    )


def _joint(key: Key, vlm: VisionLanguageModel, reference: str) -> Iterator[Found]:
    from manyeyes.model.weights.exchange.projector import check_joint

    yield from _headers(key, reference, lambda _: check_joint(vlm, reference))


def _language(key: Key, vlm: VisionLanguageModel, reference: str) -> Iterator[Found]:
    from manyeyes.model.weights.loading import header_shapes

    def compare(files: list[Path]) -> None:
        wanted = {name: tuple(value.shape) for name, value in vlm.llm.state_dict().items()}
        for file in files:
            for name, shape in header_shapes(file).items():
                # A name that is none of the model's may be an older spelling: transformers knows.
                if wanted.get(name, shape) != shape:
                    raise UserError(
                        f"The weights of the language model {reference!r} are not of the shape "
                        f"that its config.json tells: {name!r} has shape {shape} instead of "
                        f"{wanted[name]}; take both from one model."
                    )

    yield from _headers(key, reference, compare)


def _headers(key: Key, reference: str, compare: Callable[[list[Path]], None]) -> Iterator[Found]:
    """Compare the headers of weights that lie here as safetensors."""
    from manyeyes.model.weights.loading import find_safetensors

    path = Path(reference)
    local = reference.startswith("zoo:") or path.is_file() or path.is_dir()
    if not local or (path.is_dir() and list(path.glob("*.gguf"))):
        return
    try:
        compare(find_safetensors(reference))
    except UserError as error:
        yield Found(key, str(error))
