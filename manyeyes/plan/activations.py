"""What a forward pass keeps for backward, measured on the meta device.

Every tensor that autograd saves is seen by a hook; its storage is counted once, and parameters are
not counted. Nothing is computed, so any model and any length can be measured on a laptop.

Attention is the exception: on the meta device torch would take the path that writes the square of
scores, which no GPU does. A stand-in keeps what flash kernels keep: queries, keys, values, output.

With recomputation a block keeps its input only, and one block at a time keeps everything. A block
is a member of a row of equal modules (decoder layers, ViT blocks, the blocks of a ConvNeXt stage).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Kept:
    """Bytes kept for backward."""

    everything: int = 0
    """Without recomputation."""
    recomputed: int = 0
    """With: inputs of blocks, what stands outside of blocks, and one block's all."""

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.everything + other.everything, self.recomputed + other.recomputed)

    def times(self, count: float) -> Kept:
        """Return the bytes of so many."""
        return Kept(int(self.everything * count), int(self.recomputed * count))

    def of(self, *, recompute: bool) -> int:
        """Return the bytes with or without recomputation."""
        return self.recomputed if recompute else self.everything


def measure(root: nn.Module, run: Callable[[], object]) -> Kept:
    """Run a forward pass and return what it keeps.

    Args:
        root: whose parameters are not counted and whose blocks are recomputed.
        run: does the pass; its result is dropped afterwards.
    """
    ledger = _Ledger(root)
    with ledger.watching(), torch.enable_grad(), _FlashStandIn():
        result = run()
    del result
    return ledger.total()


class _Ledger:
    """Counts storages, by block."""

    def __init__(self, root: nn.Module) -> None:
        self.blocks = list(_blocks(root))
        # References are kept so that no address is used twice.
        self.seen: dict[int, Any] = {
            p.untyped_storage()._cdata: p.untyped_storage() for p in root.parameters()
        }
        self.outside = self.inputs = 0
        self.inside: dict[int, int] = {}
        self.current: int | None = None

    def pack(self, tensor: Tensor) -> Tensor:
        size = self._count(tensor)
        if self.current is None:
            self.outside += size
        else:
            self.inside[self.current] = self.inside.get(self.current, 0) + size
        return tensor

    def total(self) -> Kept:
        inside = list(self.inside.values())
        everything = self.outside + sum(inside)
        recomputed = self.outside + self.inputs + max(inside, default=0)
        return Kept(everything, min(everything, recomputed))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count for a while."""
        with ExitStack() as hooks:
            for number, block in enumerate(self.blocks):
                before, after = self._enter(number), self._leave
                hooks.callback(block.register_forward_pre_hook(before).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            with saved_tensors_hooks(self.pack, lambda tensor: tensor):
                yield

    def _enter(self, number: int) -> Callable[..., None]:
        def before(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.current = number
            first = next((item for item in inputs if isinstance(item, Tensor)), None)
            if first is not None and first.requires_grad:
                self.inputs += first.numel() * first.element_size()

        return before

    def _leave(self, *_: object) -> None:
        self.current = None

    def _count(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self.seen:
            return 0
        self.seen[storage._cdata] = storage
        return int(storage.nbytes())


def _blocks(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the innermost rows of equal modules with parameters."""
    for child in root.children():
        members = list(child.children())
        if _is_row(child) and not any(_is_row(part) for m in members for part in m.modules()):
            yield from members
        else:
            yield from _blocks(child)


def _is_row(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
        return False
    kinds = {type(member) for member in module}
    # A row of bare layers (two linear maps, some norms) is no row of blocks.
    return len(kinds) == 1 and all(list(member.children()) for member in module)


class _Flash(torch.autograd.Function):
    """Keeps what a flash kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401  (torch's)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:  # noqa: ANN401, ARG004  (torch's)
        return None, None, None


class _FlashStandIn(TorchFunctionMode):
    """Replaces scaled dot product attention while measuring."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (whatever func returns)
        """Call what was called, but for attention."""
        if func is functional.scaled_dot_product_attention:
            call: Callable[..., Any] = _Flash.apply
            return call(*args[:3]) if len(args) >= 3 else _from_names(call, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _from_names(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
    names = ("query", "key", "value")[len(args) :]
    return call(*args, *(named[name] for name in names))
