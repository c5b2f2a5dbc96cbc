"""Pictures a model asks for: its answer holds a prompt between markers, and a pipeline draws it.

Mini-Gemini's way to generate: the question ends with ``<GEN>``, the answer holds a prompt between
``<h>`` and ``</h>``, and a text-to-image pipeline of diffusers draws it. The language model never
sees that picture. Decisions:

- Of several prompts the last is drawn. MGM's terminal does so and its web worker takes the first;
  a model that weighs ideas first, or repeats what was asked for, ends with what it means.
- The pipeline is loaded when there is something to draw. (MGM's worker loads it in any case.)
- Drawing is seeded, as answering is greedy: the same question gives the same picture.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyeyes.errors import UserError
from manyeyes.runtime.writable import refuse_unwritable

if TYPE_CHECKING:
    from PIL import Image

REQUEST = " <GEN>"
"""Ends a question that asks for a picture."""
OPEN, CLOSE = "<h>", "</h>"
UNWANTED = (
    "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, "
    "duplicate, morbid, mutilated, extra fingers, mutated hands, poorly drawn hands, poorly drawn "
    "face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, "
    "cloned face, disfigured, gross proportions, malformed limbs, missing arms, missing legs, "
    "extra arms, extra legs, fused fingers, too many fingers, long neck, username, watermark, "
    "signature"
)
"""What the picture should not have, as MGM asks it of SDXL."""


def prompt_in(answer: str) -> str | None:
    """Return the last whole prompt of an answer, or None if it holds none."""
    before, found, _ = answer.rpartition(CLOSE)
    if not found or OPEN not in before:
        return None
    return before.rpartition(OPEN)[2].strip() or None


@dataclass
class Artist:
    """Draws with a diffusers pipeline, loaded at the first picture."""

    model: str
    """Local folder or Hugging Face id of a text-to-image pipeline in safetensors."""
    out: Path
    """File of the first picture; the next ones get a number, and so does one that is there."""
    seed: int = 0
    num_steps: int | None = None
    """Denoising steps; None for the pipeline's own number."""
    num_drawn: int = 0
    _pipeline: Any = None

    def __post_init__(self) -> None:
        """Refuse at once what could not draw later.

        Raises:
            UserError: diffusers is not installed, there is no such folder, or no picture can be
                written to ``out``.
        """
        if find_spec("diffusers") is None:
            raise UserError(
                "--draw needs the package diffusers: install it with "
                "pip install 'manyeyes[generate]'."
            )
        if self.model.startswith(("/", ".")) and not Path(self.model).is_dir():
            raise UserError(f"There is no pipeline at {self.model}: the folder does not exist.")
        refuse_unwritable(self.out, self.out.absolute().parent, "--draw-to")

    def draw(self, prompt: str) -> Path:
        """Draw a prompt and return the file.

        Raises:
            UserError: the pipeline cannot be loaded, or the file cannot be written.
        """
        import torch

        pipeline = self._pipeline = self._pipeline or _load(self.model)
        options = {} if self.num_steps is None else {"num_inference_steps": self.num_steps}
        generator = torch.Generator().manual_seed(self.seed)
        made = pipeline(prompt, negative_prompt=UNWANTED, generator=generator, **options)
        picture: Image.Image = made.images[0]
        self.num_drawn += 1
        name = self._free_name()
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            picture.save(name)
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot write the picture {name}: {error}.") from None
        return name

    def _free_name(self) -> Path:
        """Return the file to draw to: nothing that is there is replaced."""
        for number in count(self.num_drawn):
            more = f"-{number}" if number > 1 else ""
            name = self.out.with_name(f"{self.out.stem}{more}{self.out.suffix}")
            if not os.path.lexists(name):
                break
        return name


def _load(model: str) -> Any:  # noqa: ANN401  # diffusers ships no types
    """Load a pipeline from safetensors, on the GPU where there is one."""
    # Half of the library greets while it loads; standard output is where answers are read.
    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from diffusers import DiffusionPipeline

        has_gpu = torch.cuda.is_available()
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                model,
                dtype=torch.float16 if has_gpu else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, ImportError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(f"Cannot load the pipeline {model!r}: {first_line}.") from None
        pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
        return pipeline.to("cuda") if has_gpu else pipeline
