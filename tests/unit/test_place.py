"""A checkpoint's content does not tell where it was made."""

import shutil

from test_recipe import TINY

from manyeyes.config.recipe import load_recipe
from manyeyes.model.saving import CIRCUMSTANCES, save_model
from manyeyes.model.transformer import load_tokenizer
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.model.weights.zoo import WEIGHTS


def saved(place, out):
    """Save the tiny model of weights that lie in a folder; file to its bytes."""
    shutil.copytree(WEIGHTS / "llama-tiny", place)
    model = load_recipe(TINY).model.alone("clip")
    llm = model.llm.model_copy(update={"weights": str(place)})
    vlm = VisionLanguageModel.from_recipe(model.model_copy(update={"llm": llm}), seed=0)
    tokenizer = load_tokenizer(str(place))
    save_model(vlm, tokenizer, vlm.fusion.processor(112), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_same_weights_in_two_folders_give_the_same_checkpoint(tmp_path):
    first = saved(tmp_path / "one" / "llm", tmp_path / "a")
    second = saved(tmp_path / "another" / "folder" / "llm", tmp_path / "b")
    assert [name for name in first if first[name] != second[name]] == []
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name
        if name.endswith(".json"):
            assert not [word for word in CIRCUMSTANCES if f'"{word}"'.encode() in data], name
