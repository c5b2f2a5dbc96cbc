"""Spatial vision aggregator, Cambrian-1's fusion (arXiv:2406.16860, section 4).

Learned queries on a grid gather, cell by cell, from the same spot of every expert's map: an expert
whose map is r times finer gives r x r keys to a query. The gathering goes on inside the language
model: after chosen decoder layers the image's hidden states are queries of further samplers. Each
row of visual tokens ends with a learned newline.

The authors' code finds the image in the sequence by a constant that holds for one system prompt and
one image. Here the splice says where visual tokens stand, so any prompt and any number of images
work.

Shapes: I images, G side of the query grid, N = G * G queries, R keys of one query, C width of the
aggregator, Q width of its queries, D width of the language model.
"""

# ruff: noqa: N803, N806  (a tensor's name ends in its shape)

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.errors import UserError
from manyeyes.model.fusion.base import Eyes, Fusion, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from manyeyes.config.recipe.fusions import SpatialVisionAggregator
    from manyeyes.model.splice import Spliced


class Sampler(nn.Module):
    """One layer: queries attend over the keys of their own cell, of all experts at once."""

    def __init__(self, query_width: int, width: int, ratios: Sequence[int], heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.context = nn.Linear(width, width, bias=False)
        self.into = nn.Linear(query_width + width, width, bias=False)
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.keys = nn.ModuleList(_norm_linear(width) for _ in ratios)
        self.values = nn.ModuleList(_norm_linear(width) for _ in ratios)
        # Only a window of several cells needs to tell its cells apart.
        self.positions = nn.ParameterDict(
            {str(i): torch.randn(r * r, width) for i, r in enumerate(ratios) if r > 1}
        )
        self.merge = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.GELU(),
            nn.Linear(width, query_width, bias=False),
        )

    def forward(
        self, query_INQ: Tensor, windows_INRC: Sequence[Tensor], mean_I1C: Tensor
    ) -> Tensor:
        """Return the queries (I, N, Q) with what they found added.

        Args:
            query_INQ: one query per cell.
            windows_INRC: per expert the keys of each cell, (I, N, r * r, C).
            mean_I1C: the image at a glance.
        """
        context_INC = self.context(mean_I1C).expand(-1, query_INQ.shape[1], -1)
        hidden_INC = self.into(torch.cat([query_INQ, context_INC], dim=-1))
        keys, values = [], []
        for index, window in enumerate(windows_INRC):
            placed = window
            if str(index) in self.positions:
                placed = window + self.positions[str(index)]
            keys.append(self.keys[index](placed))
            values.append(self.values[index](placed))
        found_INC = functional.scaled_dot_product_attention(
            self._split(self.query(hidden_INC).unsqueeze(2)),
            self._split(torch.cat(keys, dim=2)),
            self._split(torch.cat(values, dim=2)),
        )
        found_INC = found_INC.transpose(2, 3).flatten(3).squeeze(2)
        updated_INQ: Tensor = query_INQ + self.out(self.norm(hidden_INC + self.merge(found_INC)))
        return updated_INQ

    def _split(self, tensor: Tensor) -> Tensor:
        """Split (I, N, R, C) into heads: (I, N, heads, R, C / heads)."""
        return tensor.view(*tensor.shape[:-1], self.heads, -1).transpose(2, 3)


def _norm_linear(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))


class SpatialVisionAggregatorFusion(Fusion):
    """Queries over windows of every expert's map, before and inside the language model."""

    def __init__(self, section: SpatialVisionAggregator, eyes: Eyes) -> None:
        super().__init__()
        self.grid, width = eyes.grid, section.width
        self.ratios = tuple(self._ratio(n, g) for n, g in zip(eyes.names, eyes.grids, strict=True))
        self.layers_inside = tuple(
            section.first_layer + index * section.layer_stride
            for index in range(section.num_layers)
        )
        if self.layers_inside and self.layers_inside[-1] >= eyes.language_layers:
            raise UserError(
                f"model.fusion samples after decoder layer {self.layers_inside[-1]}, but the "
                f"language model has layers 0 to {eyes.language_layers - 1}: lower first_layer, "
                "layer_stride or num_layers."
            )
        self.into = nn.ModuleList(
            nn.Sequential(
                nn.Linear(each, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
            )
            for each in eyes.widths
        )
        self.query = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.samplers = nn.ModuleList(
            Sampler(width, width, self.ratios, section.heads) for _ in range(section.depth)
        )
        self.inside_samplers = nn.ModuleList(
            Sampler(eyes.language_width, width, self.ratios, section.heads)
            for _ in self.layers_inside
        )
        self.newline = nn.Parameter(torch.randn(eyes.language_width) / eyes.language_width**0.5)
        self.group_widths = (width,)
        self.num_tokens = self.grid * (self.grid + 1)

    def _ratio(self, name: str, side: int) -> int:
        ratio, rest = divmod(side, self.grid)
        if rest or not ratio:
            raise UserError(
                f"The map of {name} has {side} cells a side, which must be a multiple of the "
                f"query grid {self.grid}: set its grid in model.encoders."
            )
        return ratio

    def forward(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Map the experts' maps to one group (I, N, C)."""
        windows, mean_I1C = self._windows(maps_ICHW)
        query_INQ = self.query.expand(maps_ICHW[0].shape[0], self.grid**2, -1)
        for sampler in self.samplers:
            query_INQ = sampler(query_INQ, windows, mean_I1C)
        return [query_INQ]

    def arrange(self, visual_IVD: Tensor) -> Tensor:
        """End every row with the newline: (I, G * G, D) to (I, G * (G + 1), D)."""
        rows_IGGD = self._rows(visual_IVD)
        ends = self.newline.to(rows_IGGD.dtype).expand(*rows_IGGD.shape[:2], 1, -1)
        return torch.cat([rows_IGGD, ends], dim=2).flatten(1, 2)

    @contextmanager
    def inside(
        self,
        decoder: nn.Module,
        spliced: Spliced,
        maps_ICHW: Sequence[Tensor],
        idle_ICHW: Sequence[Tensor] = (),
    ) -> Iterator[None]:
        """Sample again after the chosen layers, wherever the splice put the images."""
        seen = maps_ICHW or idle_ICHW
        if not seen or not self.layers_inside:
            yield
            return
        windows, mean_I1C = self._windows(seen)
        length = spliced.visual_mask.shape[1]

        def after(sampler: nn.Module) -> Callable[..., Any]:
            def hook(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                if output.shape[1] != length:  # a decoding step: the images are behind it
                    return output
                if not maps_ICHW:
                    return self._sample_for_nothing(output, sampler, windows, mean_I1C)
                return self._resample(output, spliced.visual_mask, sampler, windows, mean_I1C)

            return hook

        layers = cast("nn.ModuleList", decoder.layers)
        handles = [
            layers[index].register_forward_hook(after(sampler))
            for index, sampler in zip(self.layers_inside, self.inside_samplers, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rehearse(self, maps_ICHW: Sequence[Tensor]) -> list[Tensor]:
        """Do the images' sampling of every layer, on queries of no meaning."""
        if not self.layers_inside:
            return []
        windows, mean_I1C = self._windows(maps_ICHW)
        query_INQ = self.newline.expand(maps_ICHW[0].shape[0], self.grid**2, -1)
        return [sampler(query_INQ, windows, mean_I1C) for sampler in self.inside_samplers]

    def _resample(
        self,
        hidden_BMD: Tensor,
        visual_BM: Tensor,
        sampler: nn.Module,
        windows: Sequence[Tensor],
        mean_I1C: Tensor,
    ) -> Tensor:
        """Replace the images' hidden states, but for the newlines, by what the sampler returns."""
        rows = hidden_BMD[visual_BM].view(-1, self.grid, self.grid + 1, hidden_BMD.shape[-1])
        query_INQ = rows[:, :, :-1].flatten(1, 2)
        dtype = self.newline.dtype
        updated = sampler(query_INQ.to(dtype), windows, mean_I1C).to(rows.dtype)
        updated = torch.cat([self._rows(updated), rows[:, :, -1:]], dim=2)
        places = visual_BM.flatten().nonzero().squeeze(1)
        flat = hidden_BMD.flatten(0, 1).index_copy(0, places, updated.flatten(0, 2))
        return flat.view_as(hidden_BMD)

    def _sample_for_nothing(
        self,
        hidden_BMD: Tensor,
        sampler: nn.Module,
        windows: Sequence[Tensor],
        mean_I1C: Tensor,
    ) -> Tensor:
        """Let text alone meet a sampler where pictures would, for processes that share it out."""
        size = (mean_I1C.shape[0], self.grid**2, hidden_BMD.shape[-1])
        found: Tensor = sampler(mean_I1C.new_zeros(size), windows, mean_I1C)
        met: Tensor = hidden_BMD + (0.0 * found).sum().to(hidden_BMD.dtype)
        return met

    def _rows(self, tokens_INC: Tensor) -> Tensor:
        """Return a query's tokens row by row: (I, G, G, C)."""
        return tokens_INC.reshape(tokens_INC.shape[0], self.grid, self.grid, -1)

    def _windows(self, maps_ICHW: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return every expert's keys by cell, (I, N, r * r, C), and the first expert's mean."""
        windows = []
        mean_I1C: Tensor | None = None
        for map_ICHW, into, ratio in zip(maps_ICHW, self.into, self.ratios, strict=True):
            tokens = into(tokens_of(map_ICHW).to(self.newline.dtype))  # (I, H * H, C)
            if mean_I1C is None:
                mean_I1C = tokens.mean(dim=1, keepdim=True)
            images, _, width = tokens.shape
            square = tokens.view(images, self.grid, ratio, self.grid, ratio, width)
            windows.append(square.transpose(2, 3).reshape(images, self.grid**2, ratio**2, width))
        assert mean_I1C is not None
        return windows, mean_I1C
