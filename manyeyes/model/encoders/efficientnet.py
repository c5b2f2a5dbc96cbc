"""EfficientNet-Lite: inverted residuals without squeeze-and-excite, with ReLU6.

The variant that Google derived from EfficientNet (arXiv:1905.11946) for small devices: the mobile
blocks of MobileNetV2 in EfficientNet's sizes. Neither transformers has it nor is timm a
dependency, so the tower is written out here. Tensors are named as in timm's
``tf_efficientnet_lite*``; ``rename`` also takes the flat names of the PyTorch port (``_blocks.N``).

- Padding is TensorFlow's SAME: at stride 2 an even input is padded below and to the right only.
  The usual symmetric padding loads the same weights without complaint and sees everything shifted.
- The statistics of the batch norms are fixed. Batches here are small and of drawings; statistics
  learned from them would belong to neither the pretrained network nor the blank picture that a
  model is shown for its blind score. Gains and biases train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional

from manyeyes.model.encoders.base import Encoder, Normalization
from manyeyes.model.encoders.spec import CLOSED, Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

NORM_EPSILON = 1e-3
EXPANDED: dict[str, str] = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""The port's names of a block's layers, and timm's."""
SEPARABLE: dict[str, str] = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""The same for a block that does not expand."""
STEM: dict[str, str] = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
NOT_IN_TOWER = ("conv_head.", "bn2.", "classifier.", "_conv_head.", "_bn1.", "_fc.")


@dataclass(frozen=True)
class EfficientNetStage:
    """Blocks of one width; the first of them has the stride."""

    __pydantic_config__ = CLOSED

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


@dataclass(frozen=True)
class EfficientNetArchitecture(Architecture):
    """An EfficientNet-Lite (arXiv:1905.11946, without squeeze-and-excite)."""

    stem_width: int
    stages: tuple[EfficientNetStage, ...]
    family: Literal["efficientnet"] = "efficientnet"


class SamePadConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Map (B, C, H, W) to (B, D, ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for size in (input.shape[3], input.shape[2]):  # functional.pad begins with the last axis
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads) if any(pads) else input)


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPSILON)
        self.train()

    def train(self, mode: bool = True) -> FixedBatchNorm:  # noqa: ARG002  (torch's signature)
        """Stay in evaluation mode."""
        super().train(mode=False)
        return self


class SeparableBlock(nn.Module):
    """Depthwise convolution, then a linear pointwise one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SamePadConv(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = FixedBatchNorm(inputs)
        self.conv_pw = SamePadConv(inputs, outputs, 1)
        self.bn2 = FixedBatchNorm(outputs)
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H / stride, W / stride)."""
        hidden = functional.relu6(self.bn1(self.conv_dw(features)))
        result: Tensor = self.bn2(self.conv_pw(hidden))
        return result + features if self.keeps_shape else result


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.conv_pw = SamePadConv(inputs, width, 1)
        self.bn1 = FixedBatchNorm(width)
        self.conv_dw = SamePadConv(width, width, kernel, stride, groups=width)
        self.bn2 = FixedBatchNorm(width)
        self.conv_pwl = SamePadConv(width, outputs, 1)
        self.bn3 = FixedBatchNorm(outputs)
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H / stride, W / stride)."""
        hidden = functional.relu6(self.bn1(self.conv_pw(features)))
        hidden = functional.relu6(self.bn2(self.conv_dw(hidden)))
        result: Tensor = self.bn3(self.conv_pwl(hidden))
        return result + features if self.keeps_shape else result


class EfficientNetTower(nn.Module):
    """Stem and stages, without the classifier."""

    def __init__(self, architecture: EfficientNetArchitecture) -> None:
        super().__init__()
        self.conv_stem = SamePadConv(3, architecture.stem_width, 3, stride=2)
        self.bn1 = FixedBatchNorm(architecture.stem_width)
        self.blocks = nn.ModuleList()
        inputs = architecture.stem_width
        for stage in architecture.stages:
            self.blocks.append(_stage(inputs, stage))
            inputs = stage.width

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the map of the last stage there is."""
        features: Tensor = functional.relu6(self.bn1(self.conv_stem(pixels)))
        for stage in self.blocks:
            features = stage(features)
        return features


class EfficientNetEncoder(Encoder):
    """EfficientNet-Lite features of one stage."""

    tower: EfficientNetTower

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: EfficientNetArchitecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = EfficientNetTower(architecture)
        self._places = [
            (number, index)
            for number, stage in enumerate(architecture.stages)
            for index in range(stage.repeats)
        ]
        self._separable = {
            number for number, stage in enumerate(architecture.stages) if stage.expansion == 1
        }
        self.drop_blocks(self.tower.blocks)

    def native(self, pixels: Tensor) -> Tensor:
        """Return the last kept stage's map (B, C, G, G)."""
        features: Tensor = self.tower(pixels.to(self.dtype))
        return features

    def rename(self, key: str) -> str | None:
        """Accept timm's names and those of the flat PyTorch port."""
        if key.startswith(NOT_IN_TOWER):
            return None
        flat = re.fullmatch(r"_blocks\.(\d+)\.([a-z0-9_]+)\.(\w+)", key)
        if flat is not None:
            key = self._block_key(int(flat[1]), flat[2], flat[3])
        else:
            module, _, tail = key.rpartition(".")
            key = f"{STEM.get(module, module)}.{tail}"
        return None if key in self.unused_keys else key

    def _block_key(self, index: int, layer: str, tail: str) -> str:
        if index >= len(self._places):
            return f"_blocks.{index}.{layer}.{tail}"
        stage, block = self._places[index]
        names = SEPARABLE if stage in self._separable else EXPANDED
        return f"blocks.{stage}.{block}.{names.get(layer, layer)}.{tail}"


def _stage(inputs: int, stage: EfficientNetStage) -> nn.Sequential:
    """Return the blocks of one stage; the first has its stride and widens."""
    blocks: list[nn.Module] = []
    for index in range(stage.repeats):
        stride = stage.stride if index == 0 else 1
        before = inputs if index == 0 else stage.width
        if stage.expansion == 1:
            blocks.append(SeparableBlock(before, stage.width, stage.kernel, stride))
        else:
            blocks.append(
                InvertedResidual(before, stage.width, stage.kernel, stride, stage.expansion)
            )
    return nn.Sequential(*blocks)
