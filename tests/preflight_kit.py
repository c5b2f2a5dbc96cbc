"""A whole recipe in sixty lines, and small imported data for it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from manyeyes.data.dataset.dataset import DatasetWriter, Sample, Turn

if TYPE_CHECKING:
    from pathlib import Path

TRAINING = """
  train: ["projector.*"]
  steps: 2
  batch: {size: 2, per_device: 2, accumulation: 1}
  learning_rate: 1.0e-3
  learning_rates: []
  schedule: {kind: constant, warmup: 0.0}
  weight_decay: 0.0
  gradient_clipping: 1.0
  precision: float32
  checkpoint_every: 2
  sources: {vqa: 1.0}
  engine: {kind: single}
"""
RECIPE = f"""name: small
seed: 7
model:
  encoders:
    - name: clip
      spec: clip-tiny
      weights: zoo:clip-tiny
  grid: 8
  normalization: per_encoder
  fusion: {{kind: channel_concat}}
  projector:
    kind: mlp2x_gelu
  llm:
    weights: zoo:llama-tiny
    template: plain_chat
  max_length: 256
data:
  kind: dataset
  name: mine
validate:
  max_quarantined: 0.9
  min_samples: 1
  max_image_pixels: 1048576
  max_turns: 12
  max_characters: 9000
  licences: [CC0-1.0]
prealign: {{experts: {{}}}}
pretrain:{TRAINING}sft:{TRAINING}eval:
  split: test
  tasks:
    vqa: exact_match
  max_new_tokens: 4
  batch_size: 4
  limit: 0
  examples: 1
  blind: false
register:
  model_name: small
  primary: average
  gate: {{max_regression: 100.0}}
"""
ASK = "<image>\nWhat is the colour?"


def write_recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the recipe with some of its text replaced, each at its last place."""
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        head, _, tail = text.rpartition(old)
        text = head + new + tail
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def line_of(path: Path, words: str, *, last: bool = True) -> int:
    """Return the number of the last (or first) line that holds some words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if words in line]
    return found[-1 if last else 0]


def png(shade: int) -> bytes:
    """Return a small picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 9, 9)).save(file, "PNG")
    return file.getvalue()


def write_data(folder: Path, *samples: tuple[str, str, str, tuple[str, ...]]) -> Path:
    """Write samples of (split, task, question, accepted answers), each with its picture."""
    folder.mkdir(parents=True)
    with DatasetWriter(folder) as writer:
        for number, (split, task, question, answers) in enumerate(samples):
            picture = writer.add_image(png(number), f"p{number}")
            turns = (Turn("human", question), Turn("gpt", "red"))
            writer.add(
                Sample(
                    id=f"s{number}", split=split, task=task, subset="", turns=turns,
                    images=(picture,), answers=answers, source="drawn", licence="CC0-1.0",
                    entities=(),
                )
            )  # fmt: skip
    return folder


GOOD = (
    ("train", "vqa", ASK, ("red",)),
    ("train", "vqa", ASK, ("red",)),
    ("train", "captions", ASK, ()),
    ("test", "vqa", ASK, ("red",)),
)
