"""Low-rank adapters beside frozen linear layers, through peft (arXiv:2106.09685).

Design decisions:

- What a stage hands on is the merged model, of the same names and shapes as any other, so that
  evaluation, later stages and the registry need not know that adapters were there. The adapter
  itself lies beside it in ``adapter/``, in peft's own format.
- Names decide, as everywhere in a recipe: patterns over linear layers. A layer whose weight trains
  anyway, or is shared with the embedding table, is refused.
- With ``nf4`` the weights under the adapters are quantised by bitsandbytes, and the others stay as
  they are. What is merged then is what was trained: the dequantised weights plus the product.
- First values come from a generator of their own, so a resumed run has nothing to restore.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError
from manyeyes.model.building import seeded
from manyeyes.training.freeze import set_modes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from manyeyes.config.recipe import Lora, TrainSection
    from manyeyes.model.vlm import VisionLanguageModel

FOLDER = "adapter"
_NAME = "default"
_SIGN = ".lora_"


class Adapters:
    """The adapters of a model that trains."""

    def __init__(self, model: VisionLanguageModel, names: list[str], config: Any) -> None:  # noqa: ANN401  (peft ships no strict types)
        self.model = model
        self.names = names
        self.config = config

    def save(self, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json`` as peft does."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": value.detach().cpu().contiguous()
            for name, value in self.model.named_parameters()
            if is_adapter(name)
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        # Not by peft's own writer: it lists the modules in the order of a set, so that equal
        # trainings would have unequal files.
        facts = {**self.config.to_dict(), "inference_mode": True, "target_modules": self.names}
        text = json.dumps(facts, indent=2, sort_keys=True, default=str)
        atomic_write_text(folder / "adapter_config.json", text + "\n")

    @torch.no_grad()
    def merge(self) -> None:
        """Add every adapter to the weight it sits on; leave a model without adapters."""
        for name in self.names:
            layer: Any = self.model.get_submodule(name)
            delta = layer.get_delta_weight(_NAME)
            base = _plain(layer.get_base_layer())
            base.weight += delta.to(base.weight)
            self.model.set_submodule(name, base)
        del self.model.peft_config


def attach(model: VisionLanguageModel, section: TrainSection, seed: int) -> Adapters | None:
    """Put a section's adapters into a model, where it has any.

    Args:
        model: with what trains marked; the adapters train beside it.
        section: of the stage.
        seed: of the adapters' first values.

    Raises:
        UserError: a pattern fits no linear layer, or one that cannot have an adapter.
    """
    if section.lora is None:
        return None
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    lora = section.lora
    names = _chosen(model, lora)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if lora.quantise == "nf4":
        _quantise(model, names, section)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(names),
        bias="none",
    )
    with seeded(seed, "lora"):
        LoraModel(model, {_NAME: config}, _NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable or is_adapter(name))
    set_modes(model)
    return Adapters(model, names, config)


def is_adapter(name: str) -> bool:
    """Tell whether a parameter belongs to an adapter."""
    return _SIGN in name


def bitsandbytes(key: str, otherwise: str) -> Any:  # noqa: ANN401  (it ships no types)
    """Return the package that holds numbers in few bits.

    Args:
        key: of the recipe that needs it.
        otherwise: what to write in its place.

    Raises:
        UserError: it is not installed, or does not fit this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{key} needs the package bitsandbytes, which is not installed: install it "
            f"(pip install bitsandbytes), or write {otherwise}."
        )
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"{key} needs the package bitsandbytes, which does not work here ({error}): install "
            f"another version, or write {otherwise}."
        ) from None


def _chosen(model: VisionLanguageModel, lora: Lora) -> list[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        UserError: see ``attach``.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for pattern in lora.modules:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(
                f"lora.modules: the pattern {pattern!r} matches no linear layer. "
                f"The model has {', '.join(_kinds(list(layers)))}."
            )
    names = [n for n in layers if any(fnmatchcase(n, pattern) for pattern in lora.modules)]
    table = model.get_input_embeddings().weight
    for name in names:
        if layers[name].weight.requires_grad:
            raise UserError(
                f"lora.modules: {name} gets an adapter, so its weight must be frozen, but a "
                "pattern of train matches it; leave it out of one of the two."
            )
        if layers[name].weight is table:
            raise UserError(
                f"lora.modules: {name} shares its weight with the embedding table and cannot have "
                "an adapter; leave it out."
            )
    return names


def _kinds(names: Sequence[str]) -> list[str]:
    """Return patterns by which layers differ: ``llm.*.q_proj``."""
    found: dict[str, None] = {}
    for name in names:
        first, *_, last = name.split(".")
        found[f"{first}.*.{last}" if name.count(".") > 1 else name] = None
    return [kind for kind in found if not kind.split(".")[-1].isdigit()] or list(found)


def _quantise(model: VisionLanguageModel, names: Sequence[str], section: TrainSection) -> None:
    """Hold the weights of some layers in four bits."""
    library = bitsandbytes("lora.quantise: nf4", "quantise: none")
    dtype = torch.bfloat16 if section.precision == "bfloat16" else torch.float32
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        small = library.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
        )
        small.weight = library.nn.Params4bit(
            layer.weight.detach().clone(), requires_grad=False, quant_type="nf4"
        )
        if layer.bias is not None:
            small.bias = layer.bias
        model.set_submodule(name, small.to(layer.weight.device))


def _plain(layer: nn.Module) -> nn.Linear:
    """Return a layer as an ordinary one, dequantised where it is quantised."""
    if type(layer) is nn.Linear:
        return layer
    library = importlib.import_module("bitsandbytes")
    small: Any = layer
    weight: Tensor = library.functional.dequantize_4bit(
        small.weight.data, small.weight.quant_state
    ).float()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=small.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if small.bias is not None:
        plain.bias = nn.Parameter(small.bias.detach().float(), requires_grad=False)
    return plain
