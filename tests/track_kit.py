"""What the tests of registry and chat share: checkpoints, with and without a model in them."""

import hashlib
import json

from manyeyes.artifact.manifest import Header, write_manifest

NUM_SPECIAL = 4


def write_checkpoint(folder, content="weights"):
    """Write a finished checkpoint whose one file holds ``content``; return its manifest."""
    folder.mkdir(parents=True)
    (folder / "llm.safetensors").write_text(content, encoding="utf-8")
    return finish(folder, content)


def finish(folder, name="sft"):
    """Write the manifest of a checkpoint."""
    header = Header(
        kind="checkpoint", stage="sft", name="sft", recipe_slice="a" * 64,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(), parents={}, code="c", revision="r", libraries={},
        seed=0,
    )  # fmt: skip
    return write_manifest(folder, header)


def write_model(folder):
    """Write a checkpoint of a tiny model with random weights, as the ``sft`` stage would."""
    from model_kit import WORDS, model_section, write_llama

    from manyeyes.model.processor import Processor
    from manyeyes.model.saving import save_model
    from manyeyes.model.transformer import load_tokenizer
    from manyeyes.model.vlm import VisionLanguageModel

    llm = write_llama(folder.parent / "llm", vocab_size=len(WORDS))
    section = model_section(llm, names=("clip",))
    model = VisionLanguageModel.from_recipe(section, seed=3)
    # Random weights shall speak words: the special tokens get a score of zero.
    model.llm.get_input_embeddings().weight.data[:NUM_SPECIAL] = 0.0
    save_model(model, load_tokenizer(section.llm.weights), Processor(canvas_size=64), folder)
    recipe = json.dumps({"seed": 3, "model": section.model_dump(mode="json")})
    (folder / "recipe.json").write_text(recipe, encoding="utf-8")
    return finish(folder)
