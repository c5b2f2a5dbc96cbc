"""A book of the bytes of tensors that are alive, operation by operation, on any device.

Every operation's new storages are entered, and crossed out when the last tensor on them is gone.
On the meta device nothing is computed and nothing is allocated, yet storages have their sizes and
live and die as on a real one, so a step of any model can be kept book of on a laptop.

What a kernel allocates for itself and frees before it returns is not seen.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of the tensors made while it is active; those of gradients apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.alive = self.gradients = self.peak = 0
        self.moments: list[tuple[int, int]] = []
        """After each operation: (bytes alive that are no gradients, bytes of gradients)."""
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[UntypedStorage]] = {}
        self._of_gradients: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (whatever the operation returns)
        """Run an operation and enter what it made."""
        del types
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in _tensors((result,)):
            if (key := _key(tensor)) in self._sizes:
                continue
            if given is None:
                given = {_key(each) for each in _tensors((*args, *(kwargs or {}).values()))}
            if key not in given:
                self._enter(tensor.untyped_storage(), key)
        self.moments.append((self.alive, self.gradients))
        return result

    def is_gradient(self, tensor: Tensor | None) -> None:
        """From now on count a tensor among the gradients."""
        key = None if tensor is None else _key(tensor)
        if key in self._sizes and key not in self._of_gradients:
            self._of_gradients.add(key)
            self.alive -= self._sizes[key]
            self.gradients += self._sizes[key]

    def _enter(self, storage: UntypedStorage, key: int) -> None:
        size = self._sizes[key] = storage.nbytes()
        self._references[key] = weakref.ref(storage, lambda _: self._cross_out(key))
        self.alive += size
        self.peak = max(self.peak, self.alive + self.gradients)

    def _cross_out(self, key: int) -> None:
        size = self._sizes.pop(key)
        del self._references[key]
        if key in self._of_gradients:
            self._of_gradients.discard(key)
            self.gradients -= size
        else:
            self.alive -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
