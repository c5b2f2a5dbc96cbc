"""The language model: any Llama-class causal LM that transformers can load, with its tokenizer.

Nothing here is ours but the checks. Weights are safetensors, or a GGUF file, which transformers
dequantises to float32 (putting query and key rows back into Hugging Face's order).

A model qualifies when it has an embedding table, a decoder that takes ``inputs_embeds``, and a
plain linear head: the loss applies the head to supervised positions only, which a model that
rescales its logits afterwards (Gemma 2's soft cap, Cohere's scale) would get silently wrong, so
those are refused. A mixture of experts (Mixtral) also has its router's loss: see ``router``.

Attention is SDPA, which on CUDA dispatches to flash kernels.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manyeyes.artifact.files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE
from manyeyes.errors import UserError, shown
from manyeyes.model.weights import zoo
from manyeyes.model.weights.foreign_code import (
    refuse_foreign_code,
    refuse_odd_settings,
    without_foreign_code,
)
from manyeyes.model.weights.hub import revision_options
from manyeyes.model.weights.loading import (
    PICKLES,
    ZOO_PREFIX,
    refuse_adapters,
    shards_of,
)
from manyeyes.model.weights.packages import PREFIX as PACKAGE_PREFIX
from manyeyes.model.weights.published import published_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNREADABLE = (OSError, ValueError, KeyError, struct.error)
"""What transformers raises over a missing, foreign or damaged file (``struct.error``: a GGUF)."""
ODD_CONFIG = (AttributeError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
"""What else it raises over a config of odd values, besides ``StrictDataclassError``."""
LARGEST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "num_attention_heads": 100_000,
}
"""Above these no model is built, which would take the memory or the hours of what a config says."""
RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def locate(reference: str) -> str:
    """Return the folder (or hub id) behind a reference to a language model.

    Raises:
        UserError: the zoo or the table of packages has no such name, the package is not
            installed, or the path does not exist.
    """
    if reference.startswith(ZOO_PREFIX):
        return str(zoo.resolve(reference))
    if reference.startswith(PACKAGE_PREFIX):
        from manyeyes.model.weights.quantised import language_model_folder

        return str(language_model_folder(reference))
    path = Path(reference)
    if reference.startswith(("/", ".")) and not path.is_dir():
        raise UserError(f"There is no language model at {reference}: the folder does not exist.")
    return reference


def load_language_model_config(reference: str) -> PreTrainedConfig:
    """Return a language model's config: from the table of published ones, or its ``config.json``.

    Raises:
        UserError: there is none, or it is of a kind transformers does not know.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    known = published_config(reference)
    if known is not None:
        return known
    place = locate(reference)
    refuse_foreign_code(place, reference)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place, trust_remote_code=False, **_gguf(place), **revision_options(place)
        )
    except (*ODD_CONFIG, StrictDataclassError) as error:
        raise _odd_config(reference, error) from None
    except UNREADABLE as error:
        raise _unreadable("language model", reference, error) from None
    return config


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a language model from its config, with random weights.

    Raises:
        UserError: the kind of model rescales its logits or is not a causal LM.
    """
    from transformers import AutoModelForCausalLM

    refuse_rescaled_logits(config)
    refuse_absurd_sizes(config)
    try:
        build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
        return build(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    except (*ODD_CONFIG, AssertionError) as error:
        raise _odd_config(str(config.model_type), error) from None
    except ValueError as error:
        raise _unreadable("language model", str(config.model_type), error) from None


def load_language_model(reference: str) -> PreTrainedModel:
    """Load a causal language model in float32, completely or not at all.

    Raises:
        UserError: there are no such weights, or they are broken or incomplete.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    place = locate(reference)
    refuse_foreign_code(place, reference)
    options: dict[str, Any] = _gguf(place) or {"use_safetensors": True}
    _refuse_pickles(place, reference)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            trust_remote_code=False,
            **options,
            **revision_options(place),
        )
    except SafetensorError as error:
        raise UserError(
            f"The weights of the language model {reference!r} are not whole safetensors "
            f"({_first_line(error)}): copy or build them again."
        ) from None
    except StrictDataclassError as error:
        raise _odd_config(reference, error) from None
    except (*UNREADABLE, RuntimeError) as error:
        refuse_odd_settings(place)
        if "ignore_mismatched_sizes" in str(error):  # advice that nobody asked for
            raise UserError(
                f"The weights of the language model {reference!r} have other shapes than its "
                "config.json says: take both from one model."
            ) from None
        raise _unreadable("language model", reference, error) from None
    model: PreTrainedModel = loaded[0]
    refuse_rescaled_logits(model.config)
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise UserError(
            f"The language model {reference!r} is incomplete: {len(missing)} tensors are missing, "
            f"first {missing[0]!r}."
        )
    return model


def load_tokenizer(
    reference: str, config: PreTrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a language model (or in a checkpoint).

    Args:
        reference: of the language model, or the checkpoint's folder.
        config: of the language model, where the folder's own is one transformers does not know.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    place = locate(reference)
    refuse_foreign_code(place, reference, config.model_type if config else None)
    options: dict[str, Any] = {
        **_gguf(place),
        **revision_options(place),
        **({"config": config} if config else {}),
    }
    try:
        with without_foreign_code(place) as clean:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                clean, trust_remote_code=False, **options
            )
    except StrictDataclassError as error:
        raise _odd_config(reference, error) from None
    except Exception as error:
        refuse_odd_settings(place)
        # What the tokenizers' own library raises has no class of its own.
        if isinstance(error, (*UNREADABLE, *ODD_CONFIG)) or type(error) is Exception:
            raise _unreadable("tokenizer", reference, error) from None
        raise
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {reference!r} has no end-of-sequence token, without which a model "
            "never stops: set eos_token in its tokenizer_config.json."
        )
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, where: str) -> None:
    """Refuse a tokenizer whose ids the embedding table does not have.

    Raises:
        UserError: an id is beyond the table: the tokenizer is of another model.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary_size:
        raise UserError(
            f"The tokenizer of {where!r} is of another model: it has the id {largest}, but the "
            f"embedding table has {vocabulary_size} rows."
        )


def load_checkpoint_tokenizer(checkpoint: Path, llm: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a saved model whose language model is ``llm``.

    Raises:
        UserError: there is none, or it is of another model: an id is beyond the embedding table, or
            its end token is not one at which the model stops.
    """
    tokenizer = load_tokenizer(str(checkpoint.absolute()), llm.config)
    check_tokenizer(tokenizer, llm.config.vocab_size, str(checkpoint))
    stops = stop_ids(llm)
    if stops and tokenizer.eos_token_id not in stops:
        raise UserError(
            f"The tokenizer of {str(checkpoint)!r} is of another model: its end token has the id "
            f"{tokenizer.eos_token_id}, but the model stops at {' or '.join(map(str, stops))}."
        )
    return tokenizer


def refuse_absurd_sizes(config: PreTrainedConfig) -> None:
    """Refuse a config whose sizes no model has.

    Raises:
        UserError: one is below 1, or beyond what can be built.
    """
    for name, largest in LARGEST.items():
        size = getattr(config, name, 1)
        if isinstance(size, int) and not 1 <= size <= largest:
            raise UserError(
                f"The config of the language model says {name}: {shown(size)}, and no model has "
                f"that (1 to {largest}): get it again."
            )


def refuse_rescaled_logits(config: PreTrainedConfig) -> None:
    """Refuse a model whose logits are not simply its head's output.

    Raises:
        UserError: the config rescales logits.
    """
    for name in RESCALED_LOGITS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"Language models of kind {config.model_type!r} rescale their logits ({name}), "
                "which this trainer does not do: use a Llama-class model."
            )


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal LM that maps embeddings to hidden states."""
    find: Callable[[], nn.Module] = model.get_decoder
    return find()


def head_of(model: PreTrainedModel) -> nn.Module:
    """Return the linear map from hidden states to logits."""
    find: Callable[[], nn.Module | None] = model.get_output_embeddings
    head = find()
    assert head is not None, f"{type(model).__name__} has no output embeddings"
    return head


def embedding_scale(model: PreTrainedModel) -> float:
    """Return by what the embedding table multiplies its rows before the decoder sees them.

    Gemma's first layer expects embeddings times sqrt(width). The transformers version that MGM was
    trained with did that in the decoder, to text and visual tokens alike; the present one does it
    in the table, which visual tokens never meet.
    """
    return float(getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0))


def stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids at which a generation ends."""
    stop = model.generation_config.eos_token_id or model.config.eos_token_id
    if stop is None:
        return ()
    return tuple(stop) if isinstance(stop, list) else (int(stop),)


def stop_at(model: PreTrainedModel, ids: Iterable[int]) -> None:
    """Let generations end at these ids too; saved with the model."""
    stops = list(dict.fromkeys((*stop_ids(model), *ids)))
    model.generation_config.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)


def greedy_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the options of a greedy generation that stops where the model was taught to."""
    stops = stop_ids(model)
    pad = model.config.pad_token_id
    return {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "eos_token_id": list(stops) or None,
        "pad_token_id": next(iter(stops), None) if pad is None else pad,
    }


def _gguf(place: str) -> dict[str, str]:
    """Name the GGUF file of a folder that has one and no safetensors."""
    folder = Path(place)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return {}
    files = sorted(folder.glob("*.gguf"))
    return {"gguf_file": files[0].name} if files else {}


def _refuse_pickles(place: str, reference: str) -> None:
    folder = Path(place)
    if folder.is_dir():
        refuse_adapters(folder)
        if (folder / WEIGHTS_INDEX_FILE).exists():
            shards_of(folder / WEIGHTS_INDEX_FILE)
    if folder.is_dir() and not (_gguf(place) or list(folder.glob("*.safetensors"))):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"only pickled weights ({pickles[0]})" if pickles else f"no {WEIGHTS_FILE}"
        raise UserError(f"The language model {reference!r} has {found}: safetensors are needed.")


def _odd_config(reference: str, error: Exception) -> UserError:
    problem = f"{type(error).__name__}: {_first_line(error)}"
    return UserError(
        f"The config of the language model {reference!r} makes no model ({problem}): get it again."
    )


def _unreadable(what: str, reference: str, error: Exception) -> UserError:
    return UserError(f"Cannot load the {what} {reference!r}: {_first_line(error)}.")


def _first_line(error: Exception) -> str:
    first, *others = str(error).splitlines() or [type(error).__name__]
    if first.endswith(":") and others:  # the reason stands in the second line
        first = f"{first} {others[0].strip()}"
    return first.rstrip(".")
