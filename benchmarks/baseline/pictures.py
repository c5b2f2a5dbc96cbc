"""Pictures LLaVA's way: pad to a square, then Hugging Face's processor to float32.

Normalising stays with the towers (each has its own statistics), on both sides of a comparison of
training. Alone (``normalize``), the processor does all of it, as it does for one CLIP tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from manyeyes.model.encoders.spec import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from collections.abc import Callable


def expand_to_square(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Put a picture in the middle of a square of its longer side."""
    side = max(picture.size)
    if picture.width == picture.height:
        return picture
    square = Image.new(picture.mode, (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def processor(size: int, *, normalize: bool) -> Callable[[Image.Image], Tensor]:
    """Return what maps a picture to float32 (3, size, size).

    Args:
        size: of the square, in pixels.
        normalize: subtract CLIP's mean and divide by its deviation.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    make: Any = CLIPImageProcessorPil
    preprocess = make(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_normalize=normalize,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    background = (int(255 * CLIP_MEAN[0]), int(255 * CLIP_MEAN[1]), int(255 * CLIP_MEAN[2]))

    def convert(picture: Image.Image) -> Tensor:
        square = expand_to_square(picture.convert("RGB"), background)
        values: Tensor = preprocess(square, return_tensors="pt")["pixel_values"][0]
        return values.to(torch.float32)

    return convert
