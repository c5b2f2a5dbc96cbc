"""Splice invariants: nothing lost, nothing mislabelled, placeholders anywhere."""

import pytest
import torch

from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN
from manyeyes.errors import UserError
from manyeyes.model.splice import splice, widened

IMG = IMAGE_TOKEN
WIDTH = 5
VISUAL = 3
# Rows of ids; 0 pads on the right (or left). Every batch mixes no, one and two images.
BATCHES = {
    "one image first": [[IMG, 4, 5]],
    "one image last": [[4, 5, IMG]],
    "text only": [[4, 5, 6], [7, 0, 0]],
    "none, one and two": [[4, 5, 6, 7, 8], [9, IMG, 10, 0, 0], [IMG, 11, IMG, 12, 0]],
    "two side by side": [[4, IMG, IMG, 5], [6, 7, 0, 0]],
    "image alone": [[IMG, 0, 0], [4, IMG, 5]],
}


TABLE = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))


def embed(ids):
    """Return a row of the table for each id; only text has one."""
    assert ids.ndim == 1
    assert (ids >= 0).all()
    return TABLE[ids]


def inputs(rows):
    """Return ids, mask, labels, text embeddings and visual embeddings of a batch."""
    ids = torch.tensor(rows)
    mask = ids != 0
    generator = torch.Generator().manual_seed(0)
    text = TABLE[ids.clamp_min(0)]
    num_images = int((ids == IMG).sum())
    visual = torch.randn(num_images, VISUAL, WIDTH, generator=generator)
    labels = torch.where(ids > 5, ids, torch.full_like(ids, IGNORED))
    return ids, mask, labels, text, visual


def by_hand(ids, mask, labels, text, visual):
    """Splice row by row with Python lists; return (embeddings, labels, is visual) of each row."""
    images = iter(visual)
    rows = []
    for i in range(ids.shape[0]):
        parts, targets, kinds = [], [], []
        for j in range(ids.shape[1]):
            if not mask[i, j]:
                continue
            if ids[i, j] == IMG:
                parts.extend(next(images))
                targets += [IGNORED] * VISUAL
                kinds += [True] * VISUAL
            else:
                parts.append(text[i, j])
                targets.append(int(labels[i, j]))
                kinds.append(False)
        rows.append((torch.stack(parts), torch.tensor(targets), torch.tensor(kinds)))
    return rows


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_result_is_that_of_splicing_row_by_row(rows, side):
    ids, mask, labels, text, visual = inputs(rows)
    result = splice(
        ids, embed, visual, num_visual=VISUAL, attention_mask=mask, labels=labels, side=side
    )
    expected = by_hand(ids, mask, labels, text, visual)
    longest = max(len(row[0]) for row in expected)
    assert result.embeddings.shape == (len(rows), longest, WIDTH)
    for i, (embeddings, targets, kinds) in enumerate(expected):
        length = len(embeddings)
        span = slice(longest - length, longest) if side == "left" else slice(0, length)
        assert torch.equal(result.embeddings[i, span], embeddings)
        assert torch.equal(result.labels[i, span], targets)
        assert torch.equal(result.visual_mask[i, span], kinds)
        assert torch.equal(result.position_ids[i, span], torch.arange(length))
        real = torch.zeros(longest, dtype=torch.bool)
        real[span] = True
        assert torch.equal(result.attention_mask[i], real)
        assert not result.embeddings[i, ~real].any()
        assert (result.labels[i, ~real] == IGNORED).all()


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_tokens_are_conserved_and_images_never_labelled(rows):
    ids, mask, _, _, visual = inputs(rows)
    labels = torch.full_like(ids, 9)  # a careless caller labels everything, placeholders too
    result = splice(ids, embed, visual, num_visual=VISUAL, attention_mask=mask, labels=labels)
    num_text = int((mask & (ids != IMG)).sum())
    assert int(result.attention_mask.sum()) == num_text + VISUAL * len(visual)
    assert int(result.visual_mask.sum()) == VISUAL * len(visual)
    assert (result.labels[result.visual_mask] == IGNORED).all()
    assert int((result.labels == 9).sum()) == num_text


def test_input_padding_may_stand_on_either_side():
    left, right = [[0, 0, 4, IMG, 6]], [[4, IMG, 6, 0, 0]]
    ids, mask, labels, _, visual = inputs(right)
    expected = splice(ids, embed, visual, num_visual=VISUAL, attention_mask=mask, labels=labels)
    moved = splice(
        torch.tensor(left), embed, visual, num_visual=VISUAL,
        attention_mask=torch.tensor(left) != 0, labels=labels.roll(2, dims=1),
    )  # fmt: skip
    assert torch.equal(moved.embeddings, expected.embeddings)
    assert torch.equal(moved.labels, expected.labels)


def test_without_a_mask_every_token_counts():
    ids = torch.tensor([[0, IMG, 0]])
    result = splice(ids, embed, torch.zeros(1, VISUAL, WIDTH), num_visual=VISUAL)
    assert result.attention_mask.all()
    assert result.embeddings.shape[1] == 2 + VISUAL


def test_gradients_reach_text_and_images():
    ids, mask, labels, _, visual = inputs(BATCHES["none, one and two"])
    table = torch.nn.Embedding.from_pretrained(TABLE, freeze=False)
    visual.requires_grad_()
    result = splice(ids, table, visual, num_visual=VISUAL, attention_mask=mask, labels=labels)
    result.embeddings.sum().backward()
    assert torch.equal(visual.grad, torch.ones_like(visual))
    counts = ids[mask & (ids != IMG)].bincount(minlength=len(TABLE))
    assert torch.equal(table.weight.grad, counts.unsqueeze(1).expand(-1, WIDTH).float())


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_placeholders_and_images_must_match(num_images):
    ids = torch.tensor([[IMG, 4, IMG]])
    visual = torch.zeros(num_images, VISUAL, WIDTH) if num_images else None
    with pytest.raises(UserError) as caught:
        splice(ids, embed, visual, num_visual=VISUAL)
    assert str(caught.value) == (
        f"The batch has 2 image placeholders for {num_images} images: give exactly one image per "
        "placeholder."
    )


@pytest.mark.parametrize(
    ("multiple", "limit", "length"), [(8, None, 16), (8, 12, 12), (8, 5, 11), (1, None, 11)]
)
def test_a_wider_batch_has_the_same_at_the_same_places(multiple, limit, length):
    ids, mask, labels, _, visual = inputs(BATCHES["none, one and two"])
    narrow = splice(ids, embed, visual, num_visual=VISUAL, attention_mask=mask, labels=labels)
    assert narrow.labels.shape[1] == 8
    narrow = widened(narrow, 11)
    wide = widened(narrow, multiple, limit)
    assert wide.labels.shape[1] == length
    for name in ("embeddings", "attention_mask", "position_ids", "labels", "visual_mask"):
        before, after = getattr(narrow, name), getattr(wide, name)
        assert torch.equal(after[:, :11], before)
        assert (after[:, 11:] == (IGNORED if name == "labels" else 0)).all()
    flat = wide.visual_mask.flatten()
    assert flat[wide.image_starts].all()
    first = torch.cat([flat.new_zeros(1), flat[:-1]])[wide.image_starts]
    assert len(wide.image_starts) == 3
    assert int(first.sum()) == 0
