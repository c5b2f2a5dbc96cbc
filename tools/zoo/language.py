"""llama-tiny: next-token prediction on conversations about written-out scenes.

A plain `LlamaForCausalLM`, small. Two things are done for the alignment that follows. The
embeddings start at a scale an `mlp2x_gelu` projector reaches at once (root mean square about 0.2),
and the cells of a scene are embedded softly during training: scaled, blended with another cell of
the same scene and jittered (in the manner of NEFTune, Jain et al. 2023), because a projector's
output is never exactly a word's embedding. The loss is on every token, answers first: to
foretell a scene the network has to look one cell back and one row up, and those are the looks that
questions about rows and columns need (with a loss on answers alone it took thousands of steps to
find them). Rotary angles turn faster than usual, because nothing here is a thousand tokens away.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)
from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from manyeyes.data.loading.conversation import IGNORED
from manyeyes.data.sources.starter.vocabulary import scene_words
from tools.zoo.corpus import CLEAN, Conversation, Noise, TextBatch, empty_token, sampler, splice
from tools.zoo.fit import Schedule, fit
from tools.zoo.tokenizer import SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manyeyes.runtime.progress import Progress

EMBEDDING_SCALE = 0.2
OF_PARTS = 0.9  # cosine between a compound's first embedding and its parts'
HALF = 0.5**0.5
FIRST_NORM = 0.15  # of the last normalisation
CONTEXT_WEIGHT = 0.2  # of the loss on questions and scenes
ROTARY_BASE = 500.0


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate, and what is learned meanwhile."""

    schedule: Schedule
    weights: Mapping[str, float]
    """Task to its share of the conversations."""
    clean_share: float
    """Of the steps, before scenes are disturbed."""
    seed: int
    more: bool = False
    """Conversations ask many more questions about scenes and charts, instead of drills."""


# The later cycles go back to what the first leaves weakest: to compare, to count, to say no. The
# last one leaves the embeddings alone; by then the experts may already be learning from them.
CYCLES = (
    Cycle(
        Schedule(2000, 2e-3, 16, warmup=60, matrix_learning_rate=0.02),
        {
            "numbers": 1.5,
            "charts": 2.0,
            "documents": 2.5,
            "scenes": 2.5,
            "pope": 1.0,
            "captions": 1.0,
            "chat": 0.2,
        },
        clean_share=0.75,
        seed=0,
    ),
    Cycle(
        Schedule(2400, 1.5e-3, 16, warmup=60, matrix_learning_rate=0.015),
        {
            "numbers": 0.8,
            "charts": 3.0,
            "documents": 2.0,
            "scenes": 4.0,
            "pope": 2.0,
            "captions": 0.7,
            "chat": 0.3,
        },
        clean_share=0.7,
        seed=1,
    ),
    Cycle(
        Schedule(1800, 1.5e-3, 16, warmup=60, matrix_learning_rate=0.015),
        {
            "numbers": 0.6,
            "charts": 3.0,
            "documents": 1.2,
            "scenes": 5.0,
            "captions": 0.4,
            "chat": 0.2,
        },
        clean_share=0.7,
        seed=2,
        more=True,
    ),
)


@dataclass(frozen=True)
class LanguageSize:
    """Sizes of the tiny language model."""

    width: int = 128
    intermediate: int = 352
    layers: int = 4
    heads: int = 4
    positions: int = 512


@dataclass(frozen=True)
class SoftCells:
    """How a cell's embedding is softened in training."""

    blend: float = 0.2
    """Largest weight of the other cell's embedding."""
    jitter: float = 0.25
    """Standard deviation of the noise, relative to the embeddings' root mean square."""
    scale: float = 0.2
    """Standard deviation of the logarithm of a scene's scale."""


PURE = SoftCells(blend=0.0, jitter=0.0, scale=0.0)


def build_language_model(
    tokenizer: PreTrainedTokenizerFast, size: LanguageSize
) -> LlamaForCausalLM:
    """Return a randomly initialised Llama for this tokenizer; seed torch before."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(initial_embeddings(tokenizer, size.width))
        # Tied embeddings of this size would begin by repeating each word with certainty.
        model.model.norm.weight.fill_(FIRST_NORM)
    return model


def initial_embeddings(tokenizer: PreTrainedTokenizerFast, width: int) -> Tensor:
    """Return (vocabulary, width) random embeddings in which a compound begins as its parts.

    `red_circle` begins as red and circle, `n37` as 3 and 7, a later digit as the first one. The
    answer to a question about a compound is one of its parts, so this is where training would go;
    and a projector that maps "red" to red serves every red thing at once.
    """
    table_VC = torch.randn(len(tokenizer), width) * EMBEDDING_SCALE
    own_VC = torch.randn(len(tokenizer), width) * EMBEDDING_SCALE
    index = tokenizer.get_vocab()
    for digit in range(10):
        first, later = index[f"{SPACE}{digit}"], index[str(digit)]
        table_VC[later] = (table_VC[first] + own_VC[later]) * HALF
    for word in scene_words():
        parts = [index[piece] for piece in compound_parts(word)]
        if parts:
            whole = index[SPACE + word]
            mean_C = table_VC[parts].sum(0) / len(parts) ** 0.5
            table_VC[whole] = mean_C * OF_PARTS + own_VC[whole] * (1 - OF_PARTS**2) ** 0.5
    return table_VC


def compound_parts(word: str) -> list[str]:
    """Return the tokens a scene word is made of; none if it is simple."""
    if "_" in word:
        return [SPACE + part for part in word.split("_")]
    if word[0] == "n" and word[1:].isdigit():
        return [SPACE + word[1], *word[2:]]
    return []


def scene_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return (number of scene words, width): what the language model knows each word by."""
    index = tokenizer.get_vocab()
    rows = torch.tensor([index[SPACE + word] for word in scene_words()])
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table[rows].detach().float().clone()


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator)


def soften(
    embeds_BND: Tensor, is_scene_BN: Tensor, soft: SoftCells, generator: torch.Generator
) -> Tensor:
    """Return embeddings whose scene cells are blended, jittered and scaled."""
    batch, length, _ = embeds_BND.shape
    step = int(torch.randint(1, 9, (1,), generator=generator))
    other_BND = embeds_BND.roll(step, dims=1)
    # Most cells stay nearly pure: the square of a uniform number is small half of the time.
    weight_BN1 = soft.blend * _uniform((batch, length, 1), generator) ** 2
    weight_BN1 = weight_BN1 * is_scene_BN.roll(step, dims=1).unsqueeze(-1)
    level = embeds_BND.detach().pow(2).mean().sqrt() * soft.jitter
    amount_B11 = _uniform((batch, 1, 1), generator) * level
    noise_BND = torch.randn(embeds_BND.shape, generator=generator) * amount_B11
    scale_B11 = torch.exp(soft.scale * torch.randn((batch, 1, 1), generator=generator))
    softened = scale_B11 * (embeds_BND * (1 - weight_BN1) + other_BND * weight_BN1 + noise_BND)
    return torch.where(is_scene_BN.unsqueeze(-1), softened, embeds_BND)


def _logits(
    model: LlamaForCausalLM, embeds_BND: Tensor, labels_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits and targets at the supervised positions only."""
    hidden_BND = model.model(inputs_embeds=embeds_BND, use_cache=False).last_hidden_state
    counted = labels_BN[:, 1:] != IGNORED
    return model.lm_head(hidden_BND[:, :-1][counted]), labels_BN[:, 1:][counted]


def conversation_loss(
    model: LlamaForCausalLM, batch: TextBatch, pad: int, soft: SoftCells, generator: torch.Generator
) -> Tensor:
    """Return the cross entropy of the answers' tokens plus, with less weight, of all tokens."""
    embeds_BND = model.model.embed_tokens(batch.input_ids_BN)
    if soft is not PURE:
        embeds_BND = soften(embeds_BND, batch.is_scene_BN, soft, generator)
    everything_BN = batch.input_ids_BN.masked_fill(batch.input_ids_BN == pad, IGNORED)
    logits, targets = _logits(model, embeds_BND, everything_BN)
    each = functional.cross_entropy(logits, targets, reduction="none")
    answers = (batch.labels_BN[:, 1:] != IGNORED)[everything_BN[:, 1:] != IGNORED]
    return each[answers].mean() + CONTEXT_WEIGHT * each[~answers].mean()


def train_language_model(
    model: LlamaForCausalLM,
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    cycle: Cycle,
    *,
    progress: Progress,
) -> list[float]:
    """Train `model` in place for one cycle and return the loss of every step."""
    schedule = cycle.schedule
    draw = sampler(conversations, cycle.weights, schedule.batch_size)
    empty = empty_token(tokenizer)
    pad = int(tokenizer.pad_token_id)
    steps = itertools.count()

    def loss_of(generator: torch.Generator) -> Tensor:
        disturbed = next(steps) >= cycle.clean_share * schedule.steps
        noise, soft = (Noise(), SoftCells()) if disturbed else (CLEAN, PURE)
        batch = splice(draw(generator), empty=empty, pad=pad, noise=noise, generator=generator)
        return conversation_loss(model, batch, pad, soft, generator)

    model.get_input_embeddings().requires_grad_(not cycle.more)
    return fit([model], loss_of, schedule, seed=cycle.seed, progress=progress)


@torch.no_grad()
def accuracy_from_text(
    model: LlamaForCausalLM,
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return per task the share of conversations whose every answer token is the greedy choice.

    That is exact match of greedy decoding: while all tokens so far are right, decoding sees the
    same prefix.
    """
    right: dict[str, list[bool]] = {}
    generator = torch.Generator()
    ordered = sorted(conversations, key=lambda conversation: conversation.length)
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        batch = splice(
            chunk, empty=0, pad=int(tokenizer.pad_token_id), noise=CLEAN, generator=generator
        )
        embeds_BND = model.model.embed_tokens(batch.input_ids_BN)
        logits, targets = _logits(model, embeds_BND, batch.labels_BN)
        wrong_rows = (batch.labels_BN[:, 1:] != IGNORED).nonzero()[:, 0]
        wrong = set(wrong_rows[logits.argmax(-1) != targets].tolist())
        for row, conversation in enumerate(chunk):
            right.setdefault(conversation.task, []).append(row not in wrong)
    return {task: sum(flags) / len(flags) for task, flags in sorted(right.items())}
