"""Published language models whose configs are known here, so that recipes can be read offline.

``show``, ``check`` and ``plan`` of a full recipe need a language model's shape, not its weights,
and must answer without a network. So the values of the published ``config.json`` files that the
full recipes name stand in one literal table. They are also the config of a training run: weights
that do not have these shapes are refused when they are loaded.

Sources: the ``config.json`` of each hub repository (widths, layers, heads, vocabulary, rotary base,
norm epsilon, special ids); the papers agree (Llama 2 arXiv:2307.09288, Llama 3 arXiv:2407.21783,
Gemma arXiv:2403.08295 table 1, Mixtral arXiv:2401.04088 table 1, Yi arXiv:2403.04652 table 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig


def _llama(**values: object) -> dict[str, object]:
    """Return what Llama-class configs agree on, with what they do not."""
    shared: dict[str, object] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    return shared | values


def _rotary(base: float) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": base}


VERSION = 1
"""Rises when a row's values change."""
PUBLISHED: dict[str, Mapping[str, object]] = {
    "lmsys/vicuna-7b-v1.5": _llama(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rope_parameters=_rotary(10_000.0),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "lmsys/vicuna-13b-v1.5": _llama(
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        max_position_embeddings=4096,
        rope_parameters=_rotary(10_000.0),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters=_rotary(500_000.0),
        bos_token_id=128000,
        eos_token_id=128009,
    ),
    "NousResearch/Nous-Hermes-2-Yi-34B": _llama(
        vocab_size=64000,
        hidden_size=7168,
        intermediate_size=20480,
        num_hidden_layers=60,
        num_attention_heads=56,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        rope_parameters=_rotary(5_000_000.0),
        bos_token_id=1,
        eos_token_id=7,
        pad_token_id=0,
    ),
    "google/gemma-2b-it": {
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rotary(10_000.0),
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rotary(1_000_000.0),
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rotary(1_000_000.0),
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rotary(10_000.0),
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}
"""Hub id to the values of its ``config.json`` that say what the model is."""


def published_config(reference: str) -> PreTrainedConfig | None:
    """Return the config of a published language model; None where the table has no such id."""
    if reference not in PUBLISHED:
        return None
    from transformers import AutoConfig

    values = dict(PUBLISHED[reference])
    config: PreTrainedConfig = AutoConfig.for_model(str(values.pop("model_type")), **values)
    return config
