"""Conversations about written-out scenes: what the tiny language model learns to read from.

A sample of the starter data shows a picture where `<image>` stands. Here the picture's cells are
written down, one word per cell and as many words as the picture will have visual tokens, in the
very template of the training stages. The language model so learns what to do with a scene before it
ever sees one, and alignment has only to teach the projector the words. Visual tokens are never as
clean as words, so a share of cells is blanked, copied to a neighbour or taken from one; and a share
of the conversations comes without its picture, as the blind model will see them.
"""

# ruff: noqa: N803, N806, N815  (a tensor's name ends in its shape)
from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyeyes.data.dataset.annotation import EMPTY_CELL, grid_words
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, Turn
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, Codec
from tools.zoo.drills import ask_more, drill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerFast

    from manyeyes.data.dataset.dataset import Dataset, Sample

TEMPLATE = "plain_chat"
MAX_LENGTH = 512
MAX_TURNS = 32


@dataclass(frozen=True)
class Noise:
    """How imperfectly a scene is written, as shares of cells (or, for `blank_scene`, of scenes)."""

    dropped: float = 0.01
    copied: float = 0.01
    neighbour: float = 0.005
    blank_scene: float = 0.02


CLEAN = Noise(dropped=0.0, copied=0.0, neighbour=0.0, blank_scene=0.0)


@dataclass(frozen=True)
class Conversation:
    """One tokenised sample: ids with `IMAGE_TOKEN` for a scene, labels, the scenes' cells."""

    task: str
    input_ids_N: Tensor
    labels_N: Tensor
    scenes_IS: Tensor  # (num_images, side * side)

    @property
    def length(self) -> int:
        """Number of tokens once the scenes are spliced in."""
        num_images, num_cells = self.scenes_IS.shape
        return int(self.input_ids_N.numel()) + num_images * (num_cells - 1)


@dataclass(frozen=True)
class TextBatch:
    """Right-padded conversations with their scenes spliced in."""

    input_ids_BN: Tensor
    labels_BN: Tensor
    is_scene_BN: Tensor
    """True where a token stands for a cell."""


def scene_tokens(words: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return one token id per cell, row by row.

    Raises:
        AssertionError: a word is more than one token, so the tokenizer was built without it.
    """
    text = " ".join(word for row in words for word in row)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == sum(len(row) for row in words), f"a scene word is not one token: {text}"
    return ids


def empty_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the word of an empty cell."""
    return scene_tokens([[EMPTY_CELL]], tokenizer)[0]


def write_out(
    dataset: Dataset,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerFast,
    side: int,
) -> list[Conversation]:
    """Tokenise samples as training will, and look up the written-out scene of each picture.

    Args:
        dataset: where the pictures' annotations are.
        samples: what to tokenise.
        tokenizer: knows every scene word as one token.
        side: cells along one side of the grid.
    """
    codec = Codec(tokenizer, TEMPLATE, MAX_LENGTH, side * side)
    annotations = dataset.annotations()
    scenes: dict[str, list[int]] = {}
    conversations = []
    for sample, encoded in zip(samples, codec.encode_all(samples), strict=True):
        for image in sample.images:
            if image.id not in scenes:
                words = grid_words(annotations[image.id], side, image.width)
                scenes[image.id] = scene_tokens(words, tokenizer)
        cells = [scenes[image.id] for image in sample.images]
        conversations.append(
            Conversation(
                task=sample.task,
                input_ids_N=torch.from_numpy(encoded.input_ids).long(),
                labels_N=torch.from_numpy(encoded.labels).long(),
                scenes_IS=torch.tensor(cells, dtype=torch.long).reshape(len(cells), side * side),
            )
        )
    return conversations


def lessons(
    dataset: Dataset, samples: Sequence[Sample], side: int, seed: int, *, more: bool = False
) -> list[Sample]:
    """Join all that is asked about one picture, with drills, into one conversation.

    A scene costs as many tokens as the picture has cells, whatever is asked about it; asking more
    at once gives more lessons in the same time. The order is random. Samples with no picture or
    with two stay as they are.
    """
    annotations = dataset.annotations()
    by_picture: dict[str, list[Sample]] = {}
    result = []
    for sample in samples:
        if len(sample.images) == 1:
            by_picture.setdefault(sample.images[0].id, []).append(sample)
        else:
            result.append(sample)
    chance = random.Random(seed)  # noqa: S311  # shuffles lessons, guards nothing
    for picture, group in by_picture.items():
        grid = grid_words(annotations[picture], side, group[0].images[0].width)
        blocks = [_without_placeholder(sample) for sample in group]
        blocks.append(ask_more(annotations[picture], chance) if more else drill(grid, chance))
        chance.shuffle(blocks)
        turns = [turn for block in blocks for turn in block][:MAX_TURNS]
        first = Turn("human", f"{IMAGE_PLACEHOLDER}\n{turns[0].text}")
        result.append(replace(group[0], task=_kind(group), turns=(first, *turns[1:])))
    return result


def _without_placeholder(sample: Sample) -> list[Turn]:
    return [
        replace(turn, text=turn.text.replace(IMAGE_PLACEHOLDER, "").strip())
        for turn in sample.turns
    ]


def _kind(group: Sequence[Sample]) -> str:
    """Return the task a merged conversation counts as: the first that is not a caption."""
    tasks = [sample.task for sample in group if sample.task != "captions"]
    return tasks[0] if tasks else "captions"


def disturb(scenes_IS: Tensor, empty: int, noise: Noise, generator: torch.Generator) -> Tensor:
    """Return scenes with cells blanked, copied over an empty neighbour, or taken from one."""
    num_scenes, num_cells = scenes_IS.shape
    side = int(num_cells**0.5)
    grid_IHW = scenes_IS.reshape(num_scenes, side, side)

    def chosen(share: float) -> Tensor:
        return torch.rand(grid_IHW.shape, generator=generator) < share

    across = torch.rand(grid_IHW.shape, generator=generator) < 0.5
    step = 1 if float(torch.rand(1, generator=generator)) < 0.5 else -1
    shifted_IHW = torch.where(across, grid_IHW.roll(step, 2), grid_IHW.roll(step, 1))
    result = torch.where(chosen(noise.copied) & (grid_IHW == empty), shifted_IHW, grid_IHW)
    result = torch.where(chosen(noise.neighbour), shifted_IHW, result)
    result = result.masked_fill(chosen(noise.dropped), empty)
    blank = torch.rand((num_scenes, 1, 1), generator=generator) < noise.blank_scene
    return result.masked_fill(blank, empty).reshape(num_scenes, num_cells)


def splice(
    conversations: Sequence[Conversation],
    *,
    empty: int,
    pad: int,
    noise: Noise,
    generator: torch.Generator,
) -> TextBatch:
    """Put (disturbed) scenes in the place of their image tokens and pad to the longest."""
    length = max(conversation.length for conversation in conversations)
    shape = (len(conversations), length)
    ids_BN = torch.full(shape, pad)
    labels_BN = torch.full(shape, IGNORED)
    scene_BN = torch.zeros(shape, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        scenes_IS = conversation.scenes_IS
        if noise is not CLEAN and len(scenes_IS):
            scenes_IS = disturb(scenes_IS, empty, noise, generator)
        num_cells = conversation.scenes_IS.shape[1]
        is_image = conversation.input_ids_N == IMAGE_TOKEN
        repeats = torch.where(is_image, num_cells, 1)
        end = conversation.length
        ids = conversation.input_ids_N.repeat_interleave(repeats)
        spliced = is_image.repeat_interleave(repeats)
        ids[spliced] = scenes_IS.reshape(-1)
        ids_BN[row, :end] = ids
        labels_BN[row, :end] = conversation.labels_N.repeat_interleave(repeats)
        scene_BN[row, :end] = spliced
    return TextBatch(ids_BN, labels_BN, scene_BN)


def sampler(
    conversations: Sequence[Conversation],
    weights: Mapping[str, float],
    batch_size: int,
    group: int = 8,
) -> Callable[[torch.Generator], list[Conversation]]:
    """Return a function that draws batches of similar lengths, tasks by `weights`."""
    by_task: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        by_task.setdefault(conversation.task, []).append(conversation)
    tasks = [task for task in by_task if weights.get(task, 0.0) > 0.0]
    shares = torch.tensor([weights[task] for task in tasks])
    waiting: list[list[Conversation]] = []

    def draw(generator: torch.Generator) -> list[Conversation]:
        if not waiting:
            num = batch_size * group
            which = torch.multinomial(shares, num, replacement=True, generator=generator).tolist()
            spots = torch.rand(num, generator=generator).tolist()
            drawn = [
                by_task[tasks[task]][int(spot * len(by_task[tasks[task]]))]
                for task, spot in zip(which, spots, strict=True)
            ]
            drawn.sort(key=lambda conversation: conversation.length)
            waiting.extend(
                drawn[start * batch_size : (start + 1) * batch_size]
                for start in torch.randperm(group, generator=generator).tolist()
            )
        return waiting.pop()

    return draw
