"""The loss in pieces is the loss in one piece, and no piece's logits outlive it."""

import pytest
import torch
from torch import nn

from manyeyes.data.loading.conversation import IGNORED
from manyeyes.model.loss import Learned, supervised_loss

VOCABULARY = 11
CPU = torch.device("cpu")


class Watched(nn.Linear):
    """A head that notes how many positions it saw at a time."""

    def __init__(self):
        super().__init__(6, VOCABULARY)
        self.seen = []

    def forward(self, hidden):
        self.seen.append(len(hidden))
        return super().forward(hidden)


def batch(num_learned=7):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 6, generator=generator)
    labels = torch.randint(0, VOCABULARY, (2, 9), generator=generator)
    labels.view(-1)[: 18 - num_learned - (num_learned >= 9)] = IGNORED
    return hidden.requires_grad_(), labels


def gradients(limit):
    torch.manual_seed(1)
    head = Watched()
    hidden, labels = batch()
    loss, count = supervised_loss(hidden, Learned.of(labels, CPU), head, VOCABULARY, limit)
    loss.backward()
    return loss.detach(), int(count), hidden.grad, head.weight.grad, head.bias.grad, head.seen


def saved_bytes(limit):
    kept = {}
    hidden, labels = batch()
    head = Watched()

    def pack(tensor):
        if tensor.shape[-1:] == (VOCABULARY,) and tensor.ndim == 2:
            kept[tensor.data_ptr()] = tensor.numel() * 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        supervised_loss(hidden, Learned.of(labels, CPU), head, VOCABULARY, limit)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("positions", "pieces"), [(3, [3, 3, 1]), (1, [1] * 7), (0, [1] * 7), (6, [6, 1])]
)
def test_pieces_give_the_loss_and_gradients_of_the_whole(positions, pieces):
    *whole, seen = gradients(limit=1 << 20)
    assert seen == [7]
    *cut, seen = gradients(limit=positions * 4 * VOCABULARY)
    assert seen[: len(pieces)] == pieces
    assert sorted(seen[len(pieces) :]) == sorted(pieces)  # once more, in the backward pass
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_logits_in_pieces_are_not_kept_for_the_backward_pass():
    assert saved_bytes(limit=1 << 20) > 0
    assert saved_bytes(limit=2 * 4 * VOCABULARY) == 0


def test_without_gradients_nothing_is_computed_twice():
    head = Watched()
    hidden, labels = batch()
    with torch.no_grad():
        supervised_loss(hidden, Learned.of(labels, CPU), head, VOCABULARY, limit=3 * 4 * VOCABULARY)
    assert head.seen == [3, 3, 1]


def test_nothing_learned_is_a_loss_of_zero():
    hidden, labels = batch()
    labels.fill_(IGNORED)
    loss, count = supervised_loss(hidden, Learned.of(labels, CPU), Watched(), VOCABULARY)
    assert (loss.item(), int(count)) == (0.0, 0)
    loss.backward()
