"""The processor: pictures to canvases, text with ``<image>`` to ids.

A canvas is a square uint8 picture that all encoders share; each resizes and normalises it for
itself, on its device. A picture that is not square is padded with the mean colour (CLIP's, as
LLaVA and Eagle do), centred, so that nothing is cropped or stretched. With ``pieces`` it is laid
out as EVE does: on a rectangle of whole pieces of the canvas, which its width and height alone
decide (see ``rectangle``).

Text is split at ``<image>`` and each piece tokenised on its own, with a placeholder id between
them; no special tokens are added, which is the conversation template's business.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from PIL import Image
from torch import Tensor

from manyeyes.data.conversation import IMAGE_TOKEN
from manyeyes.data.sample import IMAGE_PLACEHOLDER
from manyeyes.errors import UserError
from manyeyes.model.encoders.spec import CLIP_MEAN
from manyeyes.model.rectangle import fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

FILE_NAME = "processor.json"
MEAN_COLOUR = tuple(int(255 * value) for value in CLIP_MEAN)


@dataclass(frozen=True)
class Processor:
    """How inputs are made; saved beside the weights."""

    canvas_size: int
    """Side of the canvas in pixels."""
    background: tuple[int, int, int] = (MEAN_COLOUR[0], MEAN_COLOUR[1], MEAN_COLOUR[2])
    """Colour of the padding."""
    pieces: int | None = None
    """A picture takes whole pieces of the canvas, this many along its longer side; None pads it to
    a square before anything else."""

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return canvases (number of images, 3, S, S), uint8; S = ``canvas_size``."""
        if not images:
            return torch.empty(0, 3, self.canvas_size, self.canvas_size, dtype=torch.uint8)
        return torch.stack([self._canvas(image) for image in images])

    def sizes(self, images: Sequence[Image.Image]) -> Tensor:
        """Return widths and heights of pictures in pixels, (number of images, 2), int64."""
        return torch.tensor([image.size for image in images], dtype=torch.long).view(-1, 2)

    def ids(self, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the ids of a text, ``IMAGE_TOKEN`` at each ``<image>``, nothing added."""
        ids: list[int] = []
        for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if index:
                ids.append(IMAGE_TOKEN)
            if piece:
                ids.extend(tokenizer.encode(piece, add_special_tokens=False))
        return ids

    def save(self, directory: Path) -> None:
        """Write ``processor.json``."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        (directory / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Processor:
        """Read ``processor.json``.

        Raises:
            UserError: the file is missing or not what ``save`` writes.
        """
        path = directory / FILE_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            red, green, blue = (int(value) for value in data["background"])
            pieces = data.get("pieces")
            return cls(
                canvas_size=int(data["canvas_size"]),
                background=(red, green, blue),
                pieces=None if pieces is None else int(pieces),
            )
        except FileNotFoundError:
            raise UserError(f"There is no {FILE_NAME} in {directory}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a processor's settings: {error!r}.") from None

    def _canvas(self, image: Image.Image) -> Tensor:
        picture = image.convert("RGB")
        if self.pieces is not None:
            picture = self._lay_out(picture, self.pieces)
        if picture.width != picture.height:
            picture = self._pad_to_square(picture)
        if picture.width != self.canvas_size:
            size = (self.canvas_size, self.canvas_size)
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        values_HWC = numpy.array(picture, dtype=numpy.uint8)
        return torch.from_numpy(values_HWC).permute(2, 0, 1).contiguous()

    def _lay_out(self, picture: Image.Image, pieces: int) -> Image.Image:
        """Enlarge or reduce a picture to whole pieces of the canvas; the free ones around it."""
        piece = self.canvas_size // pieces
        across, down = fit(picture.width, picture.height, pieces)
        fitted = picture.resize((across * piece, down * piece), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (self.canvas_size, self.canvas_size), self.background)
        canvas.paste(fitted, ((pieces - across) // 2 * piece, (pieces - down) // 2 * piece))
        return canvas

    def _pad_to_square(self, picture: Image.Image) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), self.background)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square
