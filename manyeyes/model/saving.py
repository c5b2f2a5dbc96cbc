"""A checkpoint on disk: one safetensors file per module, with Hugging Face's index over them.

One file per expert, one for the projector, one for the language model: a frozen module's file has
the same bytes before and after a stage, so that the content store keeps it once. Tokenizer and
processor lie beside the weights; the folder loads with ``VisionLanguageModel.from_pretrained``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from manyeyes.artifact.files import WEIGHTS_INDEX_FILE
from manyeyes.artifact.manifest import atomic_write_text

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from manyeyes.model.processor import Processor
    from manyeyes.model.vlm import VisionLanguageModel

CIRCUMSTANCES = (
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "is_local",
    "local_files_only",
)
"""Keys by which transformers notes the folder, the machine and its own version: equal weights made
in two places would have two digests. The manifest names the versions of the libraries."""


def save_model(
    model: VisionLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    processor: Processor,
    out: Path,
) -> None:
    """Write config, weights, tokenizer and processor into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for module, tensors in _by_module(model).items():
        name = f"{module}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    atomic_write_text(out / WEIGHTS_INDEX_FILE, json.dumps(index, indent=2) + "\n")
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (out / name).is_file():  # a tokenizer without settings writes no file of them
            _leave_out_circumstances(out / name)
    processor.save(out)


def _leave_out_circumstances(path: Path) -> None:
    """Rewrite a file of transformers without what tells where and with what it was written."""
    value = _without(json.loads(path.read_text(encoding="utf-8")))
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    atomic_write_text(path, text + "\n")


def _without(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _without(part) for key, part in value.items() if key not in CIRCUMSTANCES}
    return [_without(part) for part in value] if isinstance(value, list) else value


def _by_module(model: VisionLanguageModel) -> dict[str, dict[str, Tensor]]:
    """Group the weights by ``encoders.NAME``, ``projector``, ``llm``; a tied tensor stands once."""
    groups: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    for key, tensor in model.state_dict().items():
        pointer = tensor.data_ptr()
        if tensor.numel() and pointer in seen:
            continue
        seen.add(pointer)
        parts = key.split(".")
        module = ".".join(parts[:2]) if parts[0] == "encoders" else parts[0]
        groups.setdefault(module, {})[key] = tensor.detach().cpu().contiguous()
    return groups
