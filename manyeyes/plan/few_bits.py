"""Weights in four bits and moments in eight, as bitsandbytes holds them, without that package.

A plan needs no package that only training needs, and bitsandbytes quantises values, which the meta
device has not. So its layer is stood in for, and its bytes are worked out from its formats (QLoRA,
arXiv:2305.14314, section 3; 8-bit optimizers, arXiv:2110.02861, section 2):

- Four bits: a byte for two weights, a scale in a byte for every 64 weights, and a float32 scale
  for every 256 of those; per layer the mean of the scales and the table of 16 values.
- Eight bits: each moment is a byte and has a float32 scale for every 256. Parameters of fewer than
  4,096 numbers keep float32 moments.

``tests/unit/test_plan_extras.py`` compares both with what the package holds, where it is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manyeyes.model.vlm import VisionLanguageModel

WEIGHT_BLOCK = 64
"""Weights that share a scale."""
BLOCK = 256
"""Scales, or moments, that share a scale."""
TABLE = 16
"""Values that four bits choose from."""
FEWEST = 4096
"""Numbers of a parameter from which on its moments have eight bits."""


def four_bit_bytes(numbers: int) -> int:
    """Return the bytes of a layer's weight of so many numbers in four bits."""
    scales = -(-numbers // WEIGHT_BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // BLOCK) + 4 * (1 + TABLE)


def eight_bit_bytes(numbers: int) -> int:
    """Return the bytes of both moments of a parameter of so many numbers."""
    if numbers < FEWEST:
        return 2 * 4 * numbers
    return 2 * (numbers + 4 * -(-numbers // BLOCK))


class FourBitLinear(nn.Linear):
    """Stands in for a layer in four bits in a model on the meta device.

    Its weight has the plain layer's shape, so that parameters and operations are counted as ever;
    what it takes is :func:`four_bit_bytes`.
    """

    @classmethod
    def of(cls, plain: nn.Linear) -> FourBitLinear:
        """Return the stand-in of a layer; it shares its parameters."""
        layer = cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        layer.weight, layer.bias = plain.weight, plain.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Multiply by a whole weight that exists meanwhile; copy, as peft does behind four bits."""
        multiply: Callable[..., Tensor] = _Dequantised.apply
        return multiply(input, self.weight, self.bias).clone()


class _Dequantised(torch.autograd.Function):
    """Keeps nothing of its inputs: the weight does not train, and is made whole again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401  (torch's)
        ctx.weight = weight
        return functional.linear(rows, torch.empty_like(weight, dtype=rows.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (torch's)
        (gradient,) = gradients
        whole = torch.empty_like(ctx.weight).to(gradient.dtype)
        return gradient @ whole, None, None


def hold_in_four_bits(model: VisionLanguageModel, names: Sequence[str]) -> None:
    """Put stand-ins under the adapters of some layers."""
    for name in names:
        layer: Any = model.get_submodule(name)  # peft's
        layer.base_layer = FourBitLinear.of(layer.base_layer)


def bytes_spared(model: nn.Module) -> int:
    """Return by how much weights in four bits take less than in float32."""
    layers = (each for each in model.modules() if isinstance(each, FourBitLinear))
    sizes = (layer.weight.numel() for layer in layers)
    return sum(4 * size - four_bit_bytes(size) for size in sizes)
