"""The starter data's lengths, from a small build of it with the tiny recipe's tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.sampling import Lengths, of_prepared
from manyeyes.data.batches import prepare
from manyeyes.data.conversation import Codec
from manyeyes.data.dataset import Dataset
from manyeyes.data.starter import build
from manyeyes.model.transformer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("numbers", "charts", "documents", "scenes", "pope", "captions", "chat")


def starter_lengths(folder: Path, scale: float) -> Lengths:
    """Build the starter data and read off the lengths of its training split.

    Args:
        folder: to build in.
        scale: 1 for about nine thousand samples.
    """
    build(folder / "starter", seed=0, scale=scale, image_size=128)
    codec = Codec(load_tokenizer("zoo:llama-tiny"), "plain_chat", 256, 64)
    dataset = Dataset.open(folder / "starter")
    return of_prepared(prepare(dataset, codec, dict.fromkeys(TASKS, 1.0)))
