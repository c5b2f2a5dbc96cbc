"""The way from disk to tensors, part by part: pictures, text, batches, the index.

Both sides of every comparison give the same result, which is checked before the clock starts.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from benchmarks.baseline import conversation, pictures
from benchmarks.baseline.model import pad_rows, splice_rows
from benchmarks.clock import interleave, timed
from benchmarks.results import Row, Spread
from benchmarks.workload import jpeg, words
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.images import decode_for_model
from manyeyes.data.dataset.sample import Sample, Turn, conversations_to_json
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.batches import collate
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, Codec, Encoded
from manyeyes.errors import ManyeyesError
from manyeyes.model.processor import Processor
from manyeyes.model.splice import splice
from manyeyes.model.transformer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKENIZER = "zoo:llama-tiny"
NUM_VISUAL = 576
WIDTH = 256
LARGEST_DIFFERENCE = 2.0 / 255.0


def compare(
    mine: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[Spread, float]:
    """Return the ratio of times, and our median time in seconds."""
    costs = interleave({"ours": timed(mine), "theirs": timed(theirs)}, rounds)
    seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
    return Spread.of_pairs(seconds["ours"], seconds["theirs"]), float(np.median(seconds["ours"]))


def picture_row(size: int, rounds: int) -> Row:
    """Compare the way of one JPEG of 1024 x 768 to a square of ``size`` with Hugging Face's.

    Raises:
        ManyeyesError: the two pictures differ.
    """
    data = jpeg(np.random.default_rng(0), (1024, 768))
    ours = Processor(canvas_size=size)
    theirs = pictures.processor(size, normalize=True)

    def product() -> torch.Tensor:
        return ours.pixels([decode_for_model(data, "picture")])[0]

    def baseline() -> torch.Tensor:
        return theirs(Image.open(io.BytesIO(data)))

    plain = pictures.processor(size, normalize=False)(Image.open(io.BytesIO(data)))
    apart = float((product().float() / 255.0 - plain).abs().max())
    if apart > LARGEST_DIFFERENCE:
        raise ManyeyesError(
            f"pictures at {size} px: the two ways differ by {apart:.4f}, more than "
            f"{LARGEST_DIFFERENCE:.4f}, so no speed is counted; find out which of them is wrong."
        )
    spread, seconds = compare(product, baseline, rounds)
    details = f"{1 / seconds:.0f} pictures/s on one core"
    return Row(f"picture to {size} px", "Hugging Face's processor", spread, 5.0, details)


def conversations(num: int, seed: int = 0) -> list[Sample]:
    """Return conversations of a few rounds without pictures, in words the tokenizer cuts up."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(num):
        turns = []
        for _ in range(int(generator.integers(1, 5))):
            turns.append(Turn("human", words(generator, int(generator.integers(5, 30)), 4096)))
            turns.append(Turn("gpt", words(generator, int(generator.integers(10, 60)), 4096)))
        samples.append(
            Sample(f"s{number}", "train", "text", "", tuple(turns), (), (), "", "CC0-1.0", ())
        )
    return samples


def tokenise_row(num: int, rounds: int) -> Row:
    """Compare encoding with masks.

    Raises:
        ManyeyesError: other tokens are learned.
    """
    samples = conversations(num)
    tokenizer = load_tokenizer(TOKENIZER)
    codec = Codec(tokenizer, "plain_chat", 1 << 20, NUM_VISUAL)
    end = str(tokenizer.eos_token)

    def product() -> list[Encoded]:
        return codec.encode_all(samples)

    def baseline() -> list[tuple[list[int], list[int]]]:
        return conversation.encode_all(samples, tokenizer, end)

    learned = [[i for i in encoded.labels if i != IGNORED] for encoded in product()]
    others = [[i for i in labels if i != IGNORED] for _, labels in baseline()]
    if learned != others:
        raise ManyeyesError(
            "tokenise and mask: the two sides learn other tokens, so no speed is counted; find out "
            "which of them is wrong."
        )
    spread, seconds = compare(product, baseline, rounds)
    details = f"{num / seconds:,.0f} conversations/s"
    return Row("tokenise and mask", "three passes per sample", spread, 10.0, details)


def splice_row(num: int, rounds: int) -> Row:
    """Compare making a batch of ``num`` rows and putting the pictures in, without a model.

    Raises:
        ManyeyesError: the rows differ.
    """
    generator = np.random.default_rng(0)
    encoded = [_encoded(generator, shown=number % 5 > 0) for number in range(num)]
    samples = conversations(num)
    table = torch.nn.Embedding(4096, WIDTH)
    num_images = sum(item.num_images for item in encoded)
    visual = torch.randn(num_images, NUM_VISUAL, WIDTH)
    blank = torch.zeros(1, NUM_VISUAL, WIDTH)
    shown = iter(visual)
    with_blanks = torch.stack([next(shown) if item.num_images else blank[0] for item in encoded])

    @torch.no_grad()
    def spliced(*, packed: bool) -> torch.Tensor:
        batch = collate(samples, encoded, None, packed=packed)
        return splice(
            batch.input_ids,
            table,
            visual,
            num_visual=NUM_VISUAL,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
        ).embeddings

    def product() -> torch.Tensor:
        return spliced(packed=True)

    def padded() -> torch.Tensor:
        return spliced(packed=False)

    @torch.no_grad()
    def baseline() -> torch.Tensor:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = [torch.tensor(item.input_ids, dtype=torch.long) for item in encoded]
        labels = [torch.tensor(item.labels, dtype=torch.long) for item in encoded]
        mask = pad([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
        spliced = splice_rows(
            pad(ids, batch_first=True),
            mask,
            pad(labels, batch_first=True, padding_value=IGNORED),
            with_blanks,
            table,
            blank_pictures=True,
        )
        return pad_rows(spliced)["inputs_embeds"]

    expected = baseline()
    rows = torch.cat([row[: item.length] for row, item in zip(expected, encoded, strict=True)])
    if not torch.equal(padded(), expected) or not torch.equal(product(), rows.unsqueeze(0)):
        raise ManyeyesError(
            "collate and splice: the two sides make other rows, so no speed is counted; find out "
            "which of them is wrong."
        )
    del expected, rows
    spread, seconds = compare(product, baseline, rounds)
    plain, _ = compare(padded, baseline, rounds)
    details = f"{num} rows in {seconds:.3f} s; without packing {plain.ratio:.2f}"
    return Row("collate and splice, packed", "row by row, padded", spread, 5.0, details)


def _encoded(generator: np.random.Generator, *, shown: bool) -> Encoded:
    num = int(190 * generator.lognormal(0.0, 0.9))
    ids = [IMAGE_TOKEN] * shown + generator.integers(5, 4096, max(2, num)).tolist()
    labels = [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]
    length = len(ids) + (NUM_VISUAL - 1) * shown
    return Encoded(
        np.array(ids, np.int32), np.array(labels, np.int32), length, int(shown), truncated=False
    )


def index_row(folder: Path, num: int, rounds: int) -> Row:
    """Compare opening a dataset of ``num`` samples with ``json.load`` of LLaVA's one file.

    Opened is an index when a training can be planned from it: who the samples are, of which task,
    and what pictures they show. Texts are read when they are asked for, which LLaVA's file cannot.
    """
    data = jpeg(np.random.default_rng(0), (160, 120))
    texts = conversations(64)
    with DatasetWriter(folder / "index") as writer:
        ref = writer.add_image(data, "picture")
        listed = []
        for number in range(num):
            turns = texts[number % len(texts)].turns
            first = Turn("human", "<image>\n" + turns[0].text)
            sample = Sample(
                f"s{number}",
                "train",
                "text",
                "",
                (first, *turns[1:]),
                (ref,),
                (),
                "",
                "CC0-1.0",
                (),
            )
            writer.add(sample)
            talk = json.loads(conversations_to_json(sample.turns))
            listed.append({"id": sample.id, "image": "picture.jpg", "conversations": talk})
    manifest = folder / "llava.json"
    manifest.write_text(json.dumps(listed), encoding="utf-8")

    def product() -> int:
        samples = Dataset.open(folder / "index").samples("train")
        names, tasks = list(samples.ids()), samples.of_task("text")
        sizes = samples.source.pictures.sizes[samples.picture_places()]
        assert len(names) == len(tasks) == len(sizes)
        return len(samples)

    def baseline() -> int:
        with manifest.open(encoding="utf-8") as file:
            return len(json.load(file))

    assert product() == baseline() == num
    spread, seconds = compare(product, baseline, rounds)
    details = f"{num} samples in {seconds:.2f} s"
    name = "load the index, without the texts"
    return Row(name, "json.load of LLaVA's file", spread, 4.0, details)
