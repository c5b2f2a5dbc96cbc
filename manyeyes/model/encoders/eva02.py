"""EVA-02's detection backbone, written from the paper and under its official key names.

transformers does not have it. Design (arXiv:2303.11331; ViTDet, arXiv:2203.16527):

- plain ViT with pre-norm blocks; most attend inside windows, a few globally; no class token in the
  sequence (its row of the position table is dropped) and no final norm;
- absolute positions trained at a small grid and interpolated (bicubic, float32) to the real one,
  plus 2-D rotary positions in every block. Rotary angles are *interpolated*: position i of a side
  of n cells turns by i / n * 16, so that a window (n = window) and the whole map (n = G) both span
  the 16 cells of pretraining. Half of a head's channels turn with the row, half with the column,
  in neighbouring pairs;
- query and value have biases, the key has none (a key bias cancels in the softmax);
- SwiGLU of width int(8/3 C) with a norm inside (``ffn_ln``).

``state_dict`` has the official names of EVA-02-det (``blocks.N.attn.q_bias``, ``mlp.w1``,
``mlp.ffn_ln`` ...). The rotary tables are computed, not stored; checkpoints that carry them are
accepted. Shapes: B images, H = W grid, C width, N tokens, K heads, D head width.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.model.encoders.base import Encoder, Normalization, resample_positions
from manyeyes.model.encoders.spec import Architecture

if TYPE_CHECKING:
    from manyeyes.model.encoders.spec import EncoderSpec

NORM_EPSILON = 1e-6
ROTARY_BASE = 10000.0
INITIAL_STD = 0.02
PUBLISHED_PREFIX = "backbone.net."
NOT_IN_TOWER = ("backbone.simfp", "backbone.fpn", "proposal_generator.", "roi_heads.")


@dataclass(frozen=True)
class Eva02Architecture(Architecture):
    """EVA-02's detection backbone (arXiv:2303.11331): windows, global blocks, 2-D rotary."""

    depth: int
    heads: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    pretrained_image_size: int
    pretrained_sequence: int = 16
    """Side of the grid whose rotary frequencies were trained; other sides interpolate them."""
    family: Literal["eva02"] = "eva02"


class PatchEmbed(nn.Module):
    """One convolution per patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, P, P) to (B, H, W, C)."""
        return self.proj(pixels).permute(0, 2, 3, 1)  # type: ignore[no-any-return]  # nn.Module call


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions over a (window of a) square grid."""

    def __init__(self, width: int, heads: int, pretrained_sequence: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.pretrained_sequence = pretrained_sequence
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_BHWC: Tensor) -> Tensor:
        """Attend over all cells of each (B, H, W, C) map."""
        batch, side, _, width = hidden_BHWC.shape
        tokens_BNC = hidden_BHWC.reshape(batch, side * side, width)
        query = self._heads(functional.linear(tokens_BNC, self.q_proj.weight, self.q_bias))
        key = self._heads(self.k_proj(tokens_BNC))
        value = self._heads(functional.linear(tokens_BNC, self.v_proj.weight, self.v_bias))
        cosine, sine = rotary_tables(
            side, self.head_width, self.pretrained_sequence, hidden_BHWC.device
        )
        mixed_BKND = functional.scaled_dot_product_attention(
            rotate(query, cosine, sine), rotate(key, cosine, sine), value
        )
        mixed_BNC = mixed_BKND.transpose(1, 2).reshape(batch, side * side, width)
        projected: Tensor = self.proj(mixed_BNC)
        return projected.view(batch, side, side, width)

    def _heads(self, tokens_BNC: Tensor) -> Tensor:
        batch, num_tokens, _ = tokens_BNC.shape
        split = tokens_BNC.view(batch, num_tokens, self.heads, self.head_width)
        return split.transpose(1, 2)  # (B, K, N, D)


class SwiGLU(nn.Module):
    """Gated MLP: w3(norm(silu(w1 x) * w2 x)) (arXiv:2002.05202, with EVA-02's inner norm)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        gated = functional.silu(self.w1(hidden)) * self.w2(hidden)
        output: Tensor = self.w3(self.ffn_ln(gated))
        return output


class Block(nn.Module):
    """Pre-norm attention and MLP; ``window`` 0 attends globally."""

    def __init__(self, width: int, heads: int, window: int, pretrained_sequence: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, heads, pretrained_sequence)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = SwiGLU(width, int(width * (4 * 2 / 3)))

    def forward(self, hidden_BHWC: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        normed = self.norm1(hidden_BHWC)
        if self.window:
            windows = partition_windows(normed, self.window)
            mixed = merge_windows(self.attn(windows), self.window, hidden_BHWC.shape[1])
        else:
            mixed = self.attn(normed)
        hidden_BHWC = hidden_BHWC + mixed
        output: Tensor = hidden_BHWC + self.mlp(self.norm2(hidden_BHWC))
        return output


class Eva02Backbone(nn.Module):
    """The ViT of EVA-02-det: (B, 3, P, P) to (B, C, G, G)."""

    def __init__(self, architecture: Eva02Architecture, width: int) -> None:
        super().__init__()
        pretrained_grid = architecture.pretrained_image_size // architecture.patch
        self.patch_embed = PatchEmbed(architecture.patch, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, pretrained_grid**2 + 1, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                architecture.heads,
                0 if index in architecture.global_blocks else architecture.window,
                architecture.pretrained_sequence,
            )
            for index in range(architecture.depth)
        )
        nn.init.trunc_normal_(self.pos_embed, std=INITIAL_STD)
        self.apply(_initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels of any side that is a multiple of the patch."""
        hidden_BHWC: Tensor = self.patch_embed(pixels)
        side, width = hidden_BHWC.shape[1], hidden_BHWC.shape[3]
        positions = resample_positions(self.pos_embed[0, 1:], side, antialias=False)
        hidden_BHWC = hidden_BHWC + positions.view(1, side, side, width)
        for block in self.blocks:
            hidden_BHWC = block(hidden_BHWC)
        return hidden_BHWC.permute(0, 3, 1, 2)


class Eva02Encoder(Encoder):
    """EVA-02 detection features."""

    tower: Eva02Backbone

    def __init__(
        self,
        spec: EncoderSpec,
        architecture: Eva02Architecture,
        grid: int,
        normalization: Normalization,
    ) -> None:
        super().__init__(spec, grid, normalization)
        self.tower = Eva02Backbone(architecture, spec.width)
        self.drop_blocks(self.tower.blocks)

    def native(self, pixels: Tensor) -> Tensor:
        """Return (B, C, G, G)."""
        features: Tensor = self.tower(pixels.to(self.dtype))
        return features

    def rename(self, key: str) -> str | None:
        """Accept the backbone alone or a whole detector; skip stored rotary tables."""
        key = key.removeprefix("module.")
        if key.startswith(NOT_IN_TOWER):
            return None
        key = key.removeprefix(PUBLISHED_PREFIX)
        stored_table = key.endswith((".freqs_cos", ".freqs_sin"))
        return None if stored_table or key in self.unused_keys else key


def partition_windows(maps_BHWC: Tensor, window: int) -> Tensor:
    """Cut square maps into windows, padding right and below with zeros where they do not divide.

    Returns:
        (B * number of windows, window, window, C), windows of an image in row-major order.
    """
    batch, side, _, width = maps_BHWC.shape
    padding = -side % window
    padded = functional.pad(maps_BHWC, (0, 0, 0, padding, 0, padding))
    count = (side + padding) // window
    split = padded.view(batch, count, window, count, window, width)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(-1, window, window, width)


def merge_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """Undo ``partition_windows`` for maps of the given side: (B, side, side, C)."""
    count = -(-side // window)
    width = windows.shape[-1]
    split = windows.view(-1, count, count, window, window, width)
    maps = split.permute(0, 1, 3, 2, 4, 5).reshape(-1, count * window, count * window, width)
    return maps[:, :side, :side]


@functools.lru_cache(maxsize=64)
def rotary_tables(
    side: int, head_width: int, pretrained_sequence: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each (side * side, head_width) float32, for a square of cells.

    Cell (row, column) turns channel pair j of the first half of the head by
    ``row / side * pretrained_sequence * base**(-2j / (D / 2))``, and of the second half by the
    same with its column (EVA-02, section 2; frequencies interpolated as in its detection code).
    """
    half = head_width // 2
    # A tensor made under inference mode could not be used for training later on.
    with torch.inference_mode(mode=False):
        exponents = torch.arange(0, half, 2, device=device).float() / half
        frequencies = ROTARY_BASE**-exponents  # (D / 4)
        places = torch.arange(side, device=device).float() / side * pretrained_sequence
        angles = torch.outer(places, frequencies).repeat_interleave(2, dim=1)  # (side, D / 2)
        rows = angles[:, None, :].expand(side, side, half)
        columns = angles[None, :, :].expand(side, side, half)
        table = torch.cat([rows, columns], dim=2).reshape(side * side, head_width)
        return table.cos(), table.sin()


def rotate(heads_BKND: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn neighbouring channel pairs by the tables' angles, in float32."""
    pairs = heads_BKND.float().view(*heads_BKND.shape[:-1], -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (heads_BKND.float() * cosine + turned * sine).to(heads_BKND.dtype)


def _initialize(module: nn.Module) -> None:
    """Initialise as EVA-02 does: truncated normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
