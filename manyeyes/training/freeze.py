"""What trains: patterns over real parameter names, checked against the model that is there.

Design decisions:

- A pattern is matched against parameter names (``encoders.clip.layers.0.weight``), so a recipe says
  exactly what it means and a pattern that matches nothing is an error, not a silently frozen model.
- Frozen means frozen: no gradient is asked for, the optimizer never hears of it, and a module whose
  parameters are all frozen is in evaluation mode (dropout off, running statistics still), as if
  it were at inference.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from manyeyes.errors import UserError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn


def apply_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let the parameters that match train and freeze all others.

    Args:
        model: its ``requires_grad`` flags and modes are set.
        patterns: shell patterns over parameter names, ``projector.*``.

    Returns:
        The names of the parameters that train, in the model's order.

    Raises:
        UserError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        require_match(pattern, names, where="train")
    trainable = []
    for name, parameter in model.named_parameters():
        trains = any(fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(trains)
        parameter.grad = None
        if trains:
            trainable.append(name)
    set_modes(model)
    return trainable


def require_match(pattern: str, names: Sequence[str], *, where: str) -> None:
    """Check that a pattern matches a parameter.

    Raises:
        UserError: it matches none; the text names the nearest part of the model.
    """
    if any(fnmatchcase(name, pattern) for name in names):
        return
    hint = suggest(pattern, _patterns_of(names))
    top = sorted({name.split(".")[0] + ".*" for name in names})
    raise UserError(
        f"{where}: the pattern {pattern!r} matches no parameter{hint or '.'} "
        f"The model has {', '.join(top)}."
    )


def _patterns_of(names: Iterable[str]) -> list[str]:
    """Return ``module.*`` for every module that holds parameters."""
    prefixes: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            prefixes[".".join(parts[:depth]) + ".*"] = None
    return list(prefixes)


def set_modes(model: nn.Module) -> None:
    """Put modules that train into training mode and wholly frozen ones into evaluation mode."""
    _set_mode(model, inherited=True)


def _set_mode(module: nn.Module, *, inherited: bool) -> None:
    """Set one module's mode; a module without parameters (dropout) does as the one it is in."""
    parameters = list(module.parameters())
    training = any(p.requires_grad for p in parameters) if parameters else inherited
    module.training = training
    for child in module.children():
        _set_mode(child, inherited=training)


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a sha256 over names, types, shapes and bytes of tensors, wherever they are."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def digest_frozen(model: nn.Module) -> str:
    """Return the digest of every frozen parameter: equal before and after a stage."""
    return digest_tensors((n, p) for n, p in model.named_parameters() if not p.requires_grad)
