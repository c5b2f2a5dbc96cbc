"""The router of a mixture of experts: the loss that keeps its experts equally busy.

A language model like Mixtral sends each token through a few of its experts. Without a counterweight
training favours the ones that happen to be ahead, so a load balancing loss is added (Switch
Transformers, arXiv:2101.03961, equations 4 to 6). Transformers adds it where it computes the loss
over all positions, which we do not (``loss``), so it is added here, over real tokens only.

It is part of the loss whenever the language model trains: a frozen router cannot be balanced, and
the gradient would bend the projector instead. MGM's released 8x7B was trained without it (the
published configuration leaves the router's output off); ``router_loss: 0`` does the same.

ZeRO-3 needs no leaf modules here: each layer's experts are one tensor in the installed
transformers, gathered by every process whichever experts its tokens go to.
"""

# ruff: noqa: N803  (a tensor's name ends in its shape)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from manyeyes.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

WEIGHT = "router_aux_loss_coef"


def set_router_weight(config: PreTrainedConfig, weight: float) -> None:
    """Set the weight of the router's loss in a language model's config.

    Raises:
        UserError: the language model has no router.
    """
    if not hasattr(config, WEIGHT):
        raise UserError(
            f"model.llm.router_loss is {weight:g}, but a language model of kind "
            f"{config.model_type!r} has no router: leave the key out."
        )
    setattr(config, WEIGHT, weight)


def router_options(config: PreTrainedConfig, *, trains: bool) -> dict[str, bool]:
    """Return what a decoder must be asked for so that ``router_loss`` can be computed."""
    weight: float | None = getattr(config, WEIGHT, None)
    return {"output_router_logits": True} if trains and weight else {}


def router_loss(config: PreTrainedConfig, output: Any, mask_BM: Tensor) -> Tensor | None:  # noqa: ANN401  # a decoder's output of any kind
    """Return the weighted load balancing loss over real tokens, or None if it was not asked for.

    Args:
        config: of the language model.
        output: of its decoder; ``router_logits`` has one (B x M, experts) tensor per layer.
        mask_BM: (B, M), 0 at padding.
    """
    logits = getattr(output, "router_logits", None)
    if not logits:
        return None
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    num_experts = getattr(config, "num_local_experts", None) or config.num_experts
    balance = load_balancing_loss_func(
        tuple(logits), num_experts, config.num_experts_per_tok, mask_BM
    )
    return cast("Tensor", balance) * float(getattr(config, WEIGHT))
