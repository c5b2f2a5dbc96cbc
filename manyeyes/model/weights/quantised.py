"""Language models from packages: dequantised once, kept as safetensors.

Reading a GGUF file takes most of a minute of two cores (its vocabulary is parsed in Python, once
each for config, tokenizer and weights), and five stages of a run would each do it. So the first
one writes the model as an ordinary Hugging Face folder under ``.manyeyes/packages`` and the others
load that. The folder is named after the sha256 of the file it was made of, appears by one rename,
and can be deleted at any time.
"""

from __future__ import annotations

from pathlib import Path

from manyeyes.errors import ManyeyesError, UserError
from manyeyes.model.weights.packages import PREFIX, find_package, package_file
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import held, scratch


def language_model_folder(reference: str) -> Path:
    """Return the folder of a package's language model in float32, making it on first use.

    Raises:
        UserError: the package is missing, another, or holds no language model.
        ManyeyesError: the folder cannot be written.
    """
    package = find_package(reference)
    if package.form != "gguf":
        raise UserError(
            f"The weights {reference!r} are no language model ({package.network}): name them for "
            "an encoder, not in model.llm.weights."
        )
    source = package_file(reference)
    name = reference.removeprefix(PREFIX)
    target = home() / "packages" / f"{name}-{package.sha256[:16]}"
    try:
        if not target.is_dir():
            with held(target.with_name(f"{target.name}.lock")):
                if not target.is_dir():
                    _dequantise(source.parent, target)
    except OSError as error:
        raise ManyeyesError(
            f"{target}: the weights of {name} cannot be written ({error.strerror or error}); make "
            "room or the folder writable and run the same command again."
        ) from None
    return target


def _dequantise(source: Path, target: Path) -> None:
    """Write model and tokenizer of a GGUF folder to ``target``, whole or not at all."""
    from manyeyes.model.transformer import (
        build_language_model,
        load_language_model,
        load_language_model_config,
        load_tokenizer,
    )

    place = str(source)
    with scratch(target.parent, f".{target.name}.") as folder:
        work = folder / target.name
        load_tokenizer(place).save_pretrained(work)
        read = load_language_model(place)
        # transformers will not save what came from GGUF, though nothing in it is quantised now.
        plain = build_language_model(load_language_model_config(place))
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
        plain.save_pretrained(work)
        work.rename(target)
