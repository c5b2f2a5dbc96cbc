"""Splice: put each image's visual tokens where its placeholder stands; labels follow.

Positions are *recorded* from the placeholders (id -200), never assumed, so that any number of
images may stand anywhere in a sample. One text token takes one place, one placeholder takes
``num_visual`` places (one number, or one per image), padding takes none; a running sum of that
gives every token's destination, and two scatters fill the result. No loop over samples or tokens,
and only real text is embedded.

What goes where is computed on the device of ``input_ids``. Where those stay on the CPU, an
accelerator is never asked for a number, so it is not waited for.

Shapes: B samples, N input tokens, I images in the batch, V visual tokens of an image, M longest
spliced sequence, D width of the language model.
"""

# ruff: noqa: N803, N806, N815  (a tensor's name ends in its shape)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Spliced:
    """A batch ready for the language model."""

    embeddings: Tensor
    """(B, M, D); zeros at padding."""
    attention_mask: Tensor
    """(B, M) bool; True where there is a token."""
    position_ids: Tensor
    """(B, M); counts tokens from 0 in each sample, 0 at padding."""
    labels: Tensor
    """(B, M); -100 at images, at padding, and everywhere when no labels were given. They stay on
    the device of ``input_ids``."""
    visual_mask: Tensor
    """(B, M) bool; True where an image's tokens stand."""
    image_starts: Tensor
    """(I,) place of each image's first token in the flattened batch (B * M)."""


@dataclass(frozen=True)
class Layout:
    """Where every input token goes."""

    starts_BN: Tensor
    is_text_BN: Tensor
    is_image_BN: Tensor
    lengths_B: Tensor
    longest: int


def plan_layout(
    input_ids: Tensor, attention_mask: Tensor | None, num_visual: int | Tensor, side: Side
) -> Layout:
    """Compute destinations for ids (B, N) whose padding is where ``attention_mask`` is 0.

    Raises:
        UserError: there is a number of visual tokens per image, but not one per placeholder.
    """
    present = (
        torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is None
        else attention_mask.bool()
    )
    is_image = (input_ids == IMAGE_TOKEN) & present
    is_text = present & ~is_image
    if isinstance(num_visual, Tensor):
        _check_count(int(is_image.sum()), len(num_visual))
        # The counts are in reading order, as a mask reads them.
        places = is_text.long().masked_scatter(is_image, num_visual.to(input_ids.device))
    else:
        places = is_text.long() + is_image.long() * num_visual
    ends = places.cumsum(dim=1)
    lengths = ends[:, -1]
    longest = int(lengths.max())
    starts = ends - places
    if side == "left":
        starts = starts + (longest - lengths).unsqueeze(1)
    return Layout(starts, is_text, is_image, lengths, longest)


def splice(
    input_ids: Tensor,
    embed: Callable[[Tensor], Tensor],
    visual_embeddings: Tensor | None,
    *,
    num_visual: int | Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    side: Side = "right",
    device: torch.device | None = None,
) -> Spliced:
    """Replace placeholders by visual tokens.

    Args:
        input_ids: (B, N) with ``IMAGE_TOKEN`` at images.
        embed: maps ids (K,) to (K, D); it is shown the text alone, in reading order.
        visual_embeddings: (I, V, D), images in reading order over the batch; None for no images.
        num_visual: V, or (I,) int64 how many of its V each image has; the rest is not read.
        attention_mask: (B, N); 0 at padding, on whichever side. None means no padding.
        labels: (B, N) or None.
        side: where the result is padded; left for generation.
        device: where the model is; None for where ``input_ids`` are.

    Raises:
        UserError: the number of placeholders is not the number of images.
    """
    device = device or input_ids.device
    layout = plan_layout(input_ids, attention_mask, num_visual, side)
    num_images = 0 if visual_embeddings is None else visual_embeddings.shape[0]
    _check_count(int(layout.is_image_BN.sum()), num_images)
    batch, longest = input_ids.shape[0], layout.longest
    row_offsets_B1 = torch.arange(batch, device=input_ids.device).unsqueeze(1) * longest
    flat_starts_BN = layout.starts_BN + row_offsets_B1
    text_places_K = flat_starts_BN[layout.is_text_BN]
    image_starts_I = flat_starts_BN[layout.is_image_BN]

    text_KD = embed(input_ids[layout.is_text_BN].to(device))
    # One piece of memory, written to in place, and zeroed only where padding would stay as it was:
    # what is written twice, or copied again, is most of the time.
    padded = int(layout.lengths_B.sum()) < batch * longest
    room = text_KD.new_zeros if padded else text_KD.new_empty
    embeddings = room(batch * longest, text_KD.shape[-1])
    embeddings.index_copy_(0, text_places_K.to(device), text_KD)
    visual_mask = torch.zeros(batch * longest, dtype=torch.bool, device=input_ids.device)
    if visual_embeddings is not None and num_images:
        places, rows = _visual_places(image_starts_I, visual_embeddings.shape[1], num_visual)
        visual = visual_embeddings.flatten(0, 1).to(embeddings.dtype)
        visual = visual if rows is None else visual[rows.to(device)]
        embeddings.index_copy_(0, places.to(device), visual)
        visual_mask[places] = True

    spliced_labels = torch.full((batch * longest,), IGNORED, device=input_ids.device)
    if labels is not None:
        spliced_labels[text_places_K] = labels[layout.is_text_BN]
    mask_BM, position_ids_BM = _mask_and_positions(layout, side)
    return Spliced(
        embeddings.view(batch, longest, -1),
        mask_BM.to(device),
        position_ids_BM.to(device),
        spliced_labels.view(batch, longest),
        visual_mask.view(batch, longest).to(device),
        image_starts_I.to(device),
    )


def widened(spliced: Spliced, multiple: int, limit: int | None = None) -> Spliced:
    """Pad a batch on the right until its length is a multiple, so that batches share few lengths.

    Args:
        spliced: padded on the right, where decoders that look back see nothing of it.
        multiple: of positions.
        limit: most positions that the language model has; None for any number.
    """
    length = spliced.labels.shape[1]
    wanted = -(-length // multiple) * multiple
    added = max(0, (wanted if limit is None else min(wanted, limit)) - length)
    if not added:
        return spliced
    rows_I = spliced.image_starts.div(length, rounding_mode="floor")
    return Spliced(
        pad(spliced.embeddings, (0, 0, 0, added)),
        pad(spliced.attention_mask, (0, added), value=False),
        pad(spliced.position_ids, (0, added)),
        pad(spliced.labels, (0, added), value=IGNORED),
        pad(spliced.visual_mask, (0, added), value=False),
        spliced.image_starts + rows_I * added,
    )


def _visual_places(
    starts_I: Tensor, longest_visual: int, num_visual: int | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return where visual tokens go, and which of the flattened ones (I * V); None for all."""
    place_V = torch.arange(longest_visual, device=starts_I.device)
    places = (starts_I.unsqueeze(1) + place_V).flatten()
    if isinstance(num_visual, Tensor):
        real = _real_rows(num_visual, longest_visual).to(places.device)
        return places[real], real
    assert longest_visual == num_visual, (longest_visual, num_visual)
    return places, None


def _check_count(num_placeholders: int, num_images: int) -> None:
    if num_placeholders != num_images:
        raise UserError(
            f"The batch has {num_placeholders} image placeholders for {num_images} images: "
            "give exactly one image per placeholder."
        )


def _real_rows(num_visual_I: Tensor, longest: int) -> Tensor:
    """Return which rows of flattened visual tokens (I * V) are an image's own, as indices."""
    counts_I1 = num_visual_I.cpu().unsqueeze(1)
    return (torch.arange(longest) < counts_I1).flatten().nonzero().squeeze(1)


def _mask_and_positions(layout: Layout, side: Side) -> tuple[Tensor, Tensor]:
    """Return the mask of real tokens and each token's index in its sample, both (B, M)."""
    places_M = torch.arange(layout.longest, device=layout.lengths_B.device)
    lengths_B1 = layout.lengths_B.unsqueeze(1)
    index_BM = places_M - (layout.longest - lengths_B1 if side == "left" else 0 * lengths_B1)
    mask_BM = (index_BM >= 0) & (index_BM < lengths_B1)
    return mask_BM, index_BM * mask_BM
