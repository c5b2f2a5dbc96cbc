"""What a saved model says about itself in ``config.json``: enough to build it with no recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from manyeyes.errors import UserError

if TYPE_CHECKING:
    from manyeyes.config.recipe import ModelSection


class VisionLanguageConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Everything needed to build the model: encoder specs in channel order, grid, LLM config."""

    model_type = "manyeyes_vlm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers reads the class)

    encoders: list[dict[str, Any]] | None = None
    """One ``{"name": ..., "spec": {...}}`` per expert."""
    grid: int = 8
    normalization: str = "per_encoder"
    fusion: dict[str, Any] | None = None
    """The recipe's section, its kind and settings; None for channel concatenation."""
    projector: str = "mlp2x_gelu"
    max_length: int = 2048
    num_visual_tokens: int = 0
    """Of one image, the most it can have; the fusion says it when the model is built."""
    text_config: dict[str, Any] | PreTrainedConfig | None = None

    @property
    def language(self) -> PreTrainedConfig:
        """The language model's config as the recipe changed it; its own may be as published."""
        assert isinstance(self.text_config, PreTrainedConfig)
        return self.text_config

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401  (transformers' signature)
        """Turn the language model's plain values into a config."""
        if self.fusion is None:
            self.fusion = {"kind": "channel_concat"}
        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            self.text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def check_length(model: ModelSection, text_config: PreTrainedConfig) -> None:
    """Refuse sequences beyond the language model's positions.

    Raises:
        UserError: ``max_length`` is.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and model.max_length > positions:
        raise UserError(
            f"model.max_length is {model.max_length}, but the language model "
            f"{model.llm.weights!r} has {positions} positions: lower max_length."
        )


def check_names(model: ModelSection) -> None:
    """Refuse experts whose names cannot be parts of parameter names.

    Raises:
        UserError: one has such a name.
    """
    for section in model.encoders:
        if "." in section.name or hasattr(nn.ModuleDict, section.name):
            raise UserError(
                f"An encoder cannot be called {section.name!r}, because parameters are named "
                "after it: use a name without dots, like 'clip'."
            )
