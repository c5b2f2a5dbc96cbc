"""transformers' ``AutoProcessor`` for checkpoints of manyeyes; importing this registers it.

    import manyeyes.serve.auto
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained("runs/eagle-x5-tiny/sft")
    model = AutoModel.from_pretrained("runs/eagle-x5-tiny/sft")
    inputs = processor(images="picture.png", text="What number is written here?")
    print(processor.decode(model.generate(**inputs, max_new_tokens=16)[0]))

Config and model are registered where they are defined, in ``manyeyes.model.vlm``. A checkpoint's
digests are not checked here, as with every ``from_pretrained``; ``manyeyes.load`` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor

from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, Turn
from manyeyes.data.loading.conversation import end_ids, prompt
from manyeyes.model.processor import Processor
from manyeyes.model.transformer import check_tokenizer, load_tokenizer
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.model.vlm_config import VisionLanguageConfig
from manyeyes.model.weights.checkpoint_errors import as_user_errors, check_kind, refuse_options
from manyeyes.model.weights.foreign_code import refuse_foreign_code
from manyeyes.serve.assistant import decode, read_template
from manyeyes.serve.given_images import read_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from manyeyes.serve.given_images import GivenImage


@dataclass(frozen=True)
class VisionLanguageProcessor:
    """Images and a question in, the model's inputs out; token ids in, an answer out."""

    image_processor: Processor
    tokenizer: PreTrainedTokenizerBase
    template: str
    """Key of the conversation templates: the one the checkpoint was tuned with."""

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        **passed: Any,  # noqa: ANN401  # transformers' own
    ) -> VisionLanguageProcessor:
        """Read what lies beside a checkpoint's weights.

        Args:
            directory: of a checkpoint.
            passed: what ``AutoProcessor`` adds by itself; anything else is refused.

        Raises:
            UserError: the folder is no checkpoint, or a file of it cannot be read.
        """
        refuse_options(passed)
        folder = Path(directory)
        refuse_foreign_code(str(folder), str(folder))
        check_kind(folder, VisionLanguageConfig.model_type)
        with as_user_errors(folder):
            config = VisionLanguageConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = load_tokenizer(str(folder.absolute()), config.language)
        check_tokenizer(tokenizer, config.language.vocab_size, str(folder))
        return cls(Processor.load(folder), tokenizer, read_template(folder))

    def __call__(
        self, images: GivenImage | Sequence[GivenImage] | None = None, text: str = ""
    ) -> dict[str, Tensor]:
        """Return what ``model.generate`` takes: one question, in front of it its images.

        Args:
            images: paths, bytes or images of Pillow, or one of them.
            text: the question.

        Returns:
            ``input_ids`` (1, N) and, with images, ``pixels`` (I, 3, S, S) and ``image_sizes``
            (I, 2): I images, S the canvas's side.

        Raises:
            UserError: an image cannot be read.
        """
        pictures = read_images(images)
        turn = Turn("human", f"{IMAGE_PLACEHOLDER}\n" * len(pictures) + text)
        ids = prompt([turn], self.tokenizer, self.template, num_images=len(pictures))
        inputs = {"input_ids": torch.tensor([ids])}
        if pictures:
            inputs["pixels"] = self.image_processor.pixels(pictures)
            inputs["image_sizes"] = self.image_processor.sizes(pictures)
        return inputs

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Return the text of an answer, which ends before its first end token."""
        numbers = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return decode(self.tokenizer, numbers, end_ids(self.tokenizer, self.template)).strip()

    def batch_decode(self, rows: Iterable[Tensor | Sequence[int]]) -> list[str]:
        """Return the text of each answer."""
        return [self.decode(ids) for ids in rows]


AutoProcessor.register(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    VisionLanguageModel.config_class, VisionLanguageProcessor, exist_ok=True
)
