"""Text in a picture, recognised beforehand and added to the question.

As Mini-Gemini does it, in the words of LLaVA's TextVQA data: lines of text joined by commas, after
"Reference OCR Token". The engine is Tesseract (apt: tesseract-ocr; its Python binding is in the
extra ``ocr``): one small package with its models in the system's own packages. MGM takes
PaddleOCR's lines from a confidence of 0.1; Tesseract judges words, and what it is less sure of than
one half is mostly texture read as letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL import Image

MIN_CONFIDENCE = 0.5
NOTE = "\nReference OCR Token: "


class Reader(Protocol):
    """Recognises the text of a picture."""

    def read(self, picture: Image.Image) -> list[str]:
        """Return the lines of text, from top to bottom."""


def with_text(question: str, lines: Iterable[str]) -> str:
    """Add recognised text to a question; a picture without text leaves it as it is.

    A picture of the word ``<image>`` is no placeholder for a picture.
    """
    text = ", ".join(lines).replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER.replace("<", "< "))
    return f"{question}{NOTE}{text}" if text else question


@dataclass(frozen=True)
class Tesseract:
    """The system's Tesseract, through pytesseract."""

    min_confidence: float = MIN_CONFIDENCE
    """Words below it (0 to 1) are dropped."""

    def __post_init__(self) -> None:
        """Refuse at once what could not read later.

        Raises:
            UserError: pytesseract or the program is not installed.
        """
        if find_spec("pytesseract") is None:
            raise UserError(
                "--ocr needs the package pytesseract: install it with pip install 'manyeyes[ocr]'."
            )
        import pytesseract

        try:
            pytesseract.get_tesseract_version()
        except pytesseract.TesseractNotFoundError:
            raise UserError(
                "--ocr needs the program tesseract: install the system's package tesseract-ocr."
            ) from None

    def read(self, picture: Image.Image) -> list[str]:
        """Return the lines of text, from top to bottom.

        Raises:
            UserError: Tesseract fails, for want of its language data for example.
        """
        import pytesseract

        try:
            found = pytesseract.image_to_data(
                picture.convert("RGB"), output_type=pytesseract.Output.DICT
            )
        except pytesseract.TesseractError as error:
            raise UserError(f"Tesseract cannot read the picture: {error.message}.") from None
        places = zip(found["block_num"], found["par_num"], found["line_num"], strict=True)
        words = zip(places, found["text"], found["conf"], strict=True)
        return join_lines(
            [(place, text, float(percent) / 100) for place, text, percent in words],
            self.min_confidence,
        )


def join_lines(
    words: Sequence[tuple[tuple[int, int, int], str, float]], min_confidence: float
) -> list[str]:
    """Join the words of each line that are sure enough.

    Args:
        words: (block, paragraph, line), text, confidence from 0 to 1; below 0 for what is no word.
        min_confidence: of the words that are kept.
    """
    lines: dict[tuple[int, int, int], list[str]] = {}
    for place, text, confidence in words:
        if text.strip() and confidence >= min_confidence:
            lines.setdefault(place, []).append(text.strip())
    return [" ".join(line) for line in lines.values()]
