"""Traps of the authors' code that no other test of ours walks into; ``docs/fidelity.md`` has all."""

from dataclasses import replace

import numpy as np
import pytest
from training_kit import deepspeed, make_codec, make_dataset, make_section, sample

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.batches import BatchPlan, prepare


def test_a_record_without_words_is_planned_like_any_other(tmp_path):
    whole = make_dataset(tmp_path / "whole")
    silent = (Turn("human", ""), Turn("gpt", ""))
    with DatasetWriter(tmp_path / "data") as writer:
        for one in whole.samples():
            if not one.images:
                writer.add(replace(one))
        for index in range(3):
            writer.add(sample(f"silent-{index}", "chat", silent, ()))
    prepared = prepare(Dataset.open(tmp_path / "data"), make_codec(), {"chat": 1.0})
    plan = BatchPlan.of(prepared, {"chat": 1.0}, seed=0, micro_size=3, num_micro=1)
    drawn = {prepared.samples[i].id for step in range(12) for i in plan.step(step)[0]}
    assert {f"silent-{index}" for index in range(3)} <= drawn


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_deepspeed_gets_the_recipes_clipping_and_no_schedule_of_its_own(zero, offload):
    from manyeyes.training.zero import deepspeed_config

    section = make_section(engine=deepspeed(zero, offload), gradient_clipping=0.5)
    config = deepspeed_config(section, section.engine, 1)
    assert config["gradient_clipping"] == 0.5
    assert not {"scheduler", "optimizer"} & set(config)


def test_learning_rates_of_modules_combine():
    from manyeyes.config.recipe import LearningRate
    from manyeyes.training.optimizer import build_optimizer
    from tests.training_kit import make_model

    rates = tuple(
        LearningRate(modules=modules, learning_rate=rate)
        for modules, rate in (("projector.*", 3e-3), ("encoders.clip.*", 2e-5), ("llm.*", 4e-5))
    )
    section = make_section(learning_rate=1e-4, learning_rates=rates)
    optimizer = build_optimizer(make_model(), section)
    found = {group["lr"] for group in optimizer.param_groups}
    np.testing.assert_allclose(sorted(found), [2e-5, 4e-5, 1e-4, 3e-3])


def test_released_runs_at_the_side_the_weights_were_trained_at_and_resizes_the_features():
    import torch
    from torch.nn import functional

    from manyeyes.config.recipe import EncoderSection
    from manyeyes.model.encoders import encoder_from_spec, section_spec

    row = {"name": "clip", "weights": "random"}
    paper = section_spec(EncoderSection(spec="clip-vit-l-14-448", **row))
    released = section_spec(EncoderSection(spec="clip-vit-l-14-448", released=336, **row))
    assert (paper.image_size, paper.native_grid) == (448, 32)
    assert (released.image_size, released.native_grid) == (336, 24)
    spec = section_spec(EncoderSection(spec="clip-tiny", released=84, **row))
    encoder = encoder_from_spec(spec, grid=8, normalization="per_encoder").eval()
    canvas = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        native = encoder.native(encoder.preprocess(canvas))
        assert native.shape == (1, 96, 6, 6)
        expected = functional.interpolate(native, size=(8, 8), mode="bilinear", align_corners=True)
        torch.testing.assert_close(encoder(canvas), expected)
