"""What the tests of EVE share: a small patch embedding, a teacher, and pictures of many shapes."""

import dataclasses
from unittest import mock

from model_kit import model_section
from PIL import Image

from manyeyes.config.recipe import AlignmentSection, EncoderSection, PatchEmbedding
from manyeyes.model.encoders.registry import ENCODERS
from manyeyes.model.encoders.spec import settle

SIZES = ((40, 40), (64, 48), (30, 91), (200, 17))
"""Width and height: a square, a wide one, a tall one, a very wide one."""


def small_specs(step):
    """Return a patch embedding with 4 x step cells a side and a teacher with 4, as table rows."""
    patches, teacher = ENCODERS["eve-patch-embedding-tiny"], ENCODERS["clip-tiny"]
    look = dataclasses.replace(settle(patches.architecture), patch=4, pieces=4, heads=4)
    eyes = dataclasses.replace(
        patches, image_size=32 * step, native_grid=4 * step, width=24, architecture=look
    )
    return {
        "patches-small": eyes,
        "teacher-small": dataclasses.replace(teacher, image_size=56, native_grid=4),
    }


def table(step):
    """Put the small rows into the encoder table while the block runs."""
    return mock.patch.dict(ENCODERS, small_specs(step))


def alignment_section(**changes):
    values = {
        "teacher": EncoderSection(name="clip", spec="teacher-small", weights="random"),
        "stride": 1,
        "heads": 8,
        "weight": 1.0,
    }
    return AlignmentSection(**{**values, **changes})


def eve_section(llm, step=1, alignment=True, **changes):
    """Return the section of a small EVE."""
    values = {
        "encoders": (EncoderSection(name="patches", spec="patches-small", weights="random"),),
        "grid": 4 * step,
        "fusion": PatchEmbedding(kind="patch_embedding"),
        "alignment": alignment_section() if alignment is True else alignment or None,
    }
    return model_section(llm, **{**values, **changes})


def eve(llm, step=1, alignment=True, load=True, **changes):
    """Return a small EVE with random weights, in evaluation mode."""
    from manyeyes.model.vlm import VisionLanguageModel

    with table(step):
        section = eve_section(llm, step, alignment, **changes)
        return VisionLanguageModel.from_recipe(section, seed=3, load=load).train(mode=False)


def noise(sizes=SIZES, seed=0):
    """Return pictures of the sizes, full of noise."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def canvases(model, images):
    """Return the model's (pixels, image_sizes) for pictures."""
    processor = model.fusion.processor(10_000)
    return processor.pixels(images), processor.sizes(images)
