"""A config of a language model whose values no model has: one sentence, at once, no memory."""

import json

import pytest

from manyeyes.errors import UserError
from manyeyes.model.transformer import build_language_model, load_language_model_config

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 16,
}
NO_MODEL = "makes no model ("
ODD = {
    "a negative width": ({"hidden_size": -8}, "says hidden_size: -8, and no model has that"),
    "a width beyond memory": ({"hidden_size": 2**40}, "says hidden_size: 1099511627776, and"),
    "layers without end": ({"num_hidden_layers": 10**9}, "says num_hidden_layers: 1000000000, and"),
    "a table beyond memory": ({"vocab_size": 2**50}, "says vocab_size: "),
    "no heads": ({"num_attention_heads": 0}, NO_MODEL + "ZeroDivisionError: "),
    "half a width": ({"hidden_size": 8.5}, "Field 'hidden_size' expected int, got float"),
    "a width in words": ({"hidden_size": "8"}, "Field 'hidden_size' expected int, got str"),
    "an unknown rotation": ({"rope_scaling": {"type": "zzz"}}, NO_MODEL + "KeyError: 'zzz')"),
    "a rotation in words": ({"rope_scaling": "x"}, "Field 'rope_parameters'"),
    "an unknown activation": ({"hidden_act": "os.system"}, NO_MODEL + "KeyError: 'os.system')"),
    "an unknown kind of number": ({"torch_dtype": "evil"}, NO_MODEL + "AttributeError: "),
    "codes of nobody": ({"quantization_config": 3}, NO_MODEL + "AttributeError: "),
    "padding outside the table": ({"pad_token_id": 10**9}, NO_MODEL + "AssertionError: "),
    "heads without width": ({"head_dim": 0}, NO_MODEL + "ZeroDivisionError: "),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_config_is_refused_in_one_sentence(case, tmp_path):
    values, told = ODD[case]
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **values}))
    with pytest.raises(UserError) as caught:
        build_language_model(load_language_model_config(str(tmp_path)))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_config_without_oddities_makes_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = build_language_model(load_language_model_config(str(tmp_path)))
    assert model.config.hidden_size == CONFIG["hidden_size"]
