"""The models that are trained: a small mixture in front of a small Llama, all weights random.

Two things decide what a technique gives, so both are varied: the vocabulary (how dear the head is)
and the towers' share of the FLOPs. The tables say the share that was counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from manyeyes.config.recipe import Batch, Cosine, SingleProcess, TrainSection
from manyeyes.model.encoders.clip import ClipArchitecture
from manyeyes.model.encoders.eva02 import Eva02Architecture
from manyeyes.model.encoders.registry import ENCODERS
from manyeyes.model.encoders.spec import settle, spec_to_json
from manyeyes.training.cost import cost_of
from manyeyes.training.flops import language_model_flops

if TYPE_CHECKING:
    from benchmarks.workload import Workload
    from manyeyes.model.encoders.spec import EncoderSpec
    from manyeyes.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the data that fits it."""

    vocabulary: int = 4096
    width: int = 192
    layers: int = 4
    mlp: int = 512
    heads: int = 4
    key_heads: int = 4
    tied: bool = False
    positions: int = 512
    """Longest sample."""
    tower_depth: int = 4
    """Of the small towers."""
    towers: tuple[str, ...] = ()
    """Rows of the encoder table; empty for a small CLIP and a small EVA-02."""
    grid: int = 8
    canvas: int = 128
    """Side of the canvas in pixels."""
    picture: tuple[int, int] = (160, 120)
    """Width and height of the pictures in pixels."""
    text_scale: int = 1
    """Times as much text as beside 64 visual tokens."""

    def rows(self) -> list[tuple[str, EncoderSpec]]:
        """Return the encoders by name."""
        if self.towers:
            return [(ENCODERS[name].family, ENCODERS[name]) for name in self.towers]
        clip, eva = ENCODERS["clip-tiny"], ENCODERS["eva02-tiny"]
        small_clip, small_eva = settle(clip.architecture), settle(eva.architecture)
        assert isinstance(small_clip, ClipArchitecture)
        assert isinstance(small_eva, Eva02Architecture)
        deep_clip = replace(small_clip, depth=self.tower_depth)
        last = (self.tower_depth - 1,)
        deep_eva = replace(small_eva, depth=self.tower_depth, global_blocks=last)
        return [
            ("clip", replace(clip, architecture=deep_clip)),
            ("eva02", replace(eva, architecture=deep_eva)),
        ]


FEW_WORDS = Shape()
MANY_WORDS = Shape(vocabulary=32768)
DEEP_TOWERS = Shape(tower_depth=13)


def build_model(shape: Shape, *, experts: tuple[str, ...]) -> VisionLanguageModel:
    """Build a model with random weights, the same ones every time."""
    from transformers import LlamaConfig

    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.model.vlm_config import VisionLanguageConfig

    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    rows = [
        {"name": name, "spec": spec_to_json(spec)} for name, spec in shape.rows() if name in experts
    ]
    config = VisionLanguageConfig(
        encoders=rows, grid=shape.grid, max_length=shape.positions, text_config=text
    )
    return VisionLanguageModel(config, seed=0)


def vision_share(model: VisionLanguageModel, workload: Workload) -> float:
    """Return the towers' share of the forward FLOPs of an epoch."""
    cost = cost_of(model, workload.canvas_size)
    encoded = workload.prepared.encoded
    towers = sum(cost.encoder_flops.values()) * int(encoded.num_images.sum())
    language = sum(language_model_flops(cost, length) for length in encoded.lengths.tolist())
    learned = int(encoded.num_supervised.sum())
    head = 2.0 * learned * cost.vocabulary * cost.width
    return towers / (towers + language + head)


def section_for(
    workload: Workload, train: tuple[str, ...], *, batch_size: int, precision: str = "float32"
) -> TrainSection:
    """Return the training section of one epoch; no features are kept."""
    return TrainSection.model_validate(
        {
            "train": train,
            "steps": len(workload.prepared.samples) // batch_size,
            "batch": Batch(size=batch_size, per_device=batch_size, accumulation=1),
            "learning_rate": 1e-3,
            "learning_rates": (),
            # No warm-up: over a few steps its two definitions (first rate 0, or not) would show.
            "schedule": Cosine(kind="cosine", warmup=0.0),
            "weight_decay": 0.0,
            "gradient_clipping": 1.0,
            "precision": precision,
            "checkpoint_every": 1_000_000,
            "sources": workload.sources,
            "engine": SingleProcess(kind="single"),
            "feature_cache": "off",
        }
    )
