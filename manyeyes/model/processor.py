"""The processor: pictures to canvases.

A canvas is a square uint8 picture that all encoders share; each resizes and normalises it for
itself, on its device. A picture that is not square is padded with the mean colour (CLIP's, as
LLaVA and Eagle do), centred, so that nothing is cropped or stretched. With ``pieces`` it is laid
out as EVE does: on a rectangle of whole pieces of the canvas, which its width and height alone
decide (see ``rectangle``).

A JPEG comes as an array of values, in training, evaluation and service alike
(``manyeyes.data.dataset.images.decode_for_model``), and torch enlarges or reduces it: several times
as fast as Pillow, with the same filter in 16 bits for Pillow's 22, so one level of 255 apart in a
few places of a thousand. Everything else goes through Pillow. What keeps its size is equal either
way.
"""

# ruff: noqa: N806  (a tensor's name ends in its shape)

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from manyeyes.artifact.files import PROCESSOR_FILE
from manyeyes.data.dataset.images import size_of
from manyeyes.errors import UserError
from manyeyes.model.encoders.spec import CLIP_MEAN
from manyeyes.model.rectangle import fit
from manyeyes.runtime.json_files import JsonError, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from manyeyes.data.dataset.images import Picture

MEAN_COLOUR = tuple(int(255 * value) for value in CLIP_MEAN)


@dataclass(frozen=True)
class Processor:
    """How inputs are made; saved beside the weights."""

    WAY: ClassVar[int] = 4
    """Goes up when the same picture becomes another canvas: what is kept of the old ones ends."""

    canvas_size: int
    """Side of the canvas in pixels."""
    background: tuple[int, int, int] = (MEAN_COLOUR[0], MEAN_COLOUR[1], MEAN_COLOUR[2])
    """Colour of the padding."""
    pieces: int | None = None
    """A picture takes whole pieces of the canvas, this many along its longer side; None pads it to
    a square before anything else."""

    def pixels(self, images: Sequence[Picture]) -> Tensor:
        """Return canvases (number of images, 3, S, S), uint8; S = ``canvas_size``."""
        if not images:
            return torch.empty(0, 3, self.canvas_size, self.canvas_size, dtype=torch.uint8)
        return torch.stack([self.canvas(image) for image in images])

    def canvas(self, picture: Picture) -> Tensor:
        """Return the canvas (3, S, S), uint8, of one picture."""
        if isinstance(picture, Image.Image):
            values_HWC = numpy.array(self._laid_out(picture), dtype=numpy.uint8)
        else:
            values_HWC = self._laid_out_values(picture)
        return torch.from_numpy(values_HWC).permute(2, 0, 1).contiguous()

    def sizes(self, images: Sequence[Picture]) -> Tensor:
        """Return widths and heights of pictures in pixels, (number of images, 2), int64."""
        return torch.tensor([size_of(image) for image in images], dtype=torch.long).view(-1, 2)

    def save(self, directory: Path) -> None:
        """Write ``processor.json``."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        (directory / PROCESSOR_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Processor:
        """Read ``processor.json``.

        Raises:
            UserError: the file is missing or not what ``save`` writes.
        """
        path = directory / PROCESSOR_FILE
        try:
            data = read_json(path)
            red, green, blue = (int(value) for value in data["background"])
            pieces = data.get("pieces")
            return cls(
                canvas_size=int(data["canvas_size"]),
                background=(red, green, blue),
                pieces=None if pieces is None else int(pieces),
            )
        except FileNotFoundError:
            raise UserError(f"There is no {PROCESSOR_FILE} in {directory}.") from None
        except JsonError as error:
            raise UserError(f"Cannot read {path}: it {error}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a processor's settings: {error!r}.") from None

    def _laid_out_values(self, values: NDArray[numpy.uint8]) -> NDArray[numpy.uint8]:
        """Do with values (H, W, 3) what ``_laid_out`` does with a picture."""
        size = self.canvas_size
        if self.pieces is not None:
            piece = size // self.pieces
            across, down = fit(values.shape[1], values.shape[0], self.pieces)
            fitted = _resized(values, across * piece, down * piece)
            corner = ((self.pieces - across) // 2 * piece, (self.pieces - down) // 2 * piece)
            return self._on_background(fitted, size, corner)
        height, width = values.shape[:2]
        side = max(width, height)
        if width != height:
            corner = ((side - width) // 2, (side - height) // 2)
            values = self._on_background(values, side, corner)
        return values if side == size else _resized(values, size, size)

    def _on_background(
        self, values: NDArray[numpy.uint8], side: int, corner: tuple[int, int]
    ) -> NDArray[numpy.uint8]:
        """Return a square of the background with values (H, W, 3) at (left, top)."""
        left, top = corner
        height, width = values.shape[:2]
        square = numpy.empty((side, side, 3), dtype=numpy.uint8)
        # Whole rows are copied, which is several times as fast as colour by colour.
        square[:] = numpy.tile(numpy.array(self.background, dtype=numpy.uint8), (side, 1))
        square[top : top + height, left : left + width] = values
        return square

    def _laid_out(self, image: Image.Image) -> Image.Image:
        picture = image.convert("RGB")
        if self.pieces is not None:
            picture = self._lay_out(picture, self.pieces)
        if picture.width != picture.height:
            picture = self._pad_to_square(picture)
        if picture.width != self.canvas_size:
            size = (self.canvas_size, self.canvas_size)
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return picture

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


def _resized(values: NDArray[numpy.uint8], width: int, height: int) -> NDArray[numpy.uint8]:
    """Enlarge or reduce values (H, W, 3) with Pillow's bicubic filter, by torch."""
    if values.shape[:2] == (height, width):
        return values
    # Channels innermost, as they lie: the layout that torch has vectorised.
    values_1CHW = torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0)
    resized_1CHW = functional.interpolate(
        values_1CHW, (height, width), mode="bicubic", antialias=True
    )
    resized_HWC: NDArray[numpy.uint8] = resized_1CHW[0].permute(1, 2, 0).numpy()
    return resized_HWC
