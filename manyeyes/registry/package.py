"""Packs what MLflow needs to load a version: a small folder with code and a reference.

Models from code: MLflow keeps our loading code as a file and runs it, nothing is pickled. The
weights stay where they are; ``model_config`` in the folder's ``MLmodel`` says where.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.provenance import libraries
from manyeyes.runtime.locks import temporary
from manyeyes.tracking.store import Store, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

    from manyeyes.registry.weights import Weights

READY = "READY"
"""MLflow's word for a model whose files are all there."""
MAX_NEW_TOKENS = 64
"""Default length of an answer."""


def log_loader(
    client: MlflowClient, store: Store, name: str, weights: Weights, model_code: Path
) -> LoggedModel:
    """Log the loading folder as an MLflow model, once for the weights of one name.

    A registration that was killed has left one, whole or not: it is completed.
    """
    from mlflow.entities import LoggedModelStatus

    experiment = experiment_id(client, store)
    model = _find(client, experiment, name, weights.digest) or client.create_logged_model(
        experiment,
        name=name,
        tags={"source_digest": weights.digest, "source": weights.source},
        model_type="vision-language",
    )
    if model.status == READY:
        return model
    _upload(client, model, weights, model_code)
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _find(client: MlflowClient, experiment: str, name: str, digest: str) -> LoggedModel | None:
    wanted = f"name = '{name}' AND tags.source_digest = '{digest}'"
    found = list(client.search_logged_models([experiment], filter_string=wanted))
    return min(
        found, key=lambda model: (model.status != READY, model.creation_timestamp), default=None
    )


def _upload(client: MlflowClient, model: LoggedModel, weights: Weights, model_code: Path) -> None:
    """Write the folder that MLflow loads, and put it into its artifacts."""
    import mlflow

    with temporary() as folder:
        path = folder / "model"
        with warnings.catch_warnings():
            # It asks for an input example to run the model on: the weights would be loaded here.
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            mlflow.pyfunc.save_model(
                str(path),
                python_model=str(model_code),
                model_config={"weights": weights.model_dump_json()},
                signature=signature(),
                # Given, so that MLflow does not start a process to guess them.
                pip_requirements=[f"{name}=={version}" for name, version in libraries().items()],
            )
        client.log_model_artifacts(model.model_id, str(path))


def signature() -> ModelSignature:
    """Return what the model takes and gives: a parameter outside the signature would be dropped."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema(
        [
            ColSpec(DataType.string, "question"),
            # Bytes, a picture of Pillow, or text; bytes alone would refuse the text of JSON.
            ColSpec(AnyType(), "image", required=False),  # type: ignore[no-untyped-call]
            ColSpec(DataType.string, "image_base64", required=False),
        ]
    )
    params = ParamSchema([ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS)])
    return ModelSignature(inputs, Schema([ColSpec(DataType.string)]), params)
