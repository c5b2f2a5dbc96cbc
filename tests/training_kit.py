"""What the tests of training share: a tiny model, a tiny dataset, a tokenizer of words.

Run as a program it trains until it is done or killed, and writes the final weights:
``python training_kit.py FOLDER STEPS CHECKPOINT_EVERY``.
"""

import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from manyeyes.config.recipe import Batch, Constant, Cosine, DeepSpeed, SingleProcess, TrainSection
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import Sample, Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.conversation import Codec
from manyeyes.errors import ManyeyesError
from manyeyes.runtime.progress import Progress

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
WORDS = ["a", "user", "assistant", "which", "colour", "say", "hello", "please", "\n", *COLOURS]
EXPERTS = ("clip", "convnext")


class Words:
    """A tokenizer with one id per word of a closed list."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [[3 + WORDS.index(w) for w in item.split()] for item in text]}

    def convert_ids_to_tokens(self, ids):
        return WORDS[ids - 3]


def make_dataset(path, num=24, asked=False):
    """Write pictures of one colour with a question for it, and greetings; ``asked``: a test, too."""
    generator = np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for i in range(num):
            name = list(COLOURS)[i % len(COLOURS)]
            noise = generator.integers(0, 30, (32, 32, 3))
            pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            ref = writer.add_image(buffer.getvalue(), f"picture-{i}")
            question = "<image>\nwhich colour" + " please" * (i % 4)
            turns = (Turn("human", question), Turn("gpt", name))
            writer.add(sample(f"s{i}", "colours", turns, (ref,)))
        for i in range(num // 4):
            turns = (Turn("human", "say hello" + " please" * i), Turn("gpt", "hello " * (1 + i)))
            writer.add(sample(f"t{i}", "chat", turns, ()))
        if asked:
            asking = (Turn("human", "<image>\nwhich colour"), Turn("gpt", name))
            held = sample("asked", "colours", asking, (ref,))
            writer.add(replace(held, split="test", answers=(name,)))
    return Dataset.open(path)


def sample(name, task, turns, images):
    """Return a training sample."""
    return Sample(name, "train", task, "", turns, images, (), "made here", "CC0-1.0", ())


def make_model(seed=0, experts=EXPERTS, dropout=0.0):
    """Return a small mixture with a small Llama, all weights random."""
    from transformers import LlamaConfig

    from manyeyes.model.encoders.registry import ENCODERS
    from manyeyes.model.encoders.spec import spec_to_json
    from manyeyes.model.vlm import VisionLanguageConfig, VisionLanguageModel

    text = LlamaConfig(
        vocab_size=3 + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        attention_dropout=dropout, tie_word_embeddings=False,
    )  # fmt: skip
    config = VisionLanguageConfig(
        encoders=[{"name": n, "spec": spec_to_json(ENCODERS[f"{n}-tiny"])} for n in experts],
        grid=2,
        max_length=64,
        text_config=text,
    )
    return VisionLanguageModel(config, seed=seed)


def make_codec():
    """Return the codec that fits ``make_model``."""
    return Codec(Words(), "plain_chat", 64, 4)


def make_section(**changes):
    """Return a training section; ``changes`` replace its fields."""
    values = {
        "train": ("*",),
        "steps": 12,
        "batch": Batch(size=4, per_device=4, accumulation=1),
        "learning_rate": 1e-3,
        "learning_rates": (),
        "schedule": Cosine(kind="cosine", warmup=0.1),
        "weight_decay": 0.01,
        "gradient_clipping": 1.0,
        "precision": "float32",
        "checkpoint_every": 4,
        "sources": {"colours": 3.0, "chat": 1.0},
        "engine": SingleProcess(kind="single"),
        "feature_cache": "off",
    }
    return TrainSection(**{**values, **changes})


def constant():
    """Return a schedule without warm-up."""
    return Constant(kind="constant", warmup=0.0)


def deepspeed(zero, offload="none"):
    """Return a DeepSpeed engine's section."""
    return DeepSpeed(kind="deepspeed", zero=zero, offload=offload)


def run(folder, *, model=None, dataset=None, section=None, **options):
    """Train in ``folder / "out"`` and return (model, result)."""
    from manyeyes.training.loop import train

    model = model or make_model()
    dataset = dataset or Dataset.open(Path(folder) / "data")
    out = Path(folder) / "out"
    result = train(
        model,
        dataset,
        make_codec(),
        section or make_section(),
        **{"seed": 5, "out": out, "progress": Progress("test"), **options},
    )
    return model, result


def main():
    """Train and write the weights; for the tests that kill the process."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder, steps, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    section = make_section(steps=steps, checkpoint_every=every)
    try:
        model, _ = run(folder, model=make_model(dropout=0.1), section=section)
    except ManyeyesError as error:
        raise SystemExit(error.exit_code) from error
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_file(weights, folder / "final.safetensors")


if __name__ == "__main__":
    main()
