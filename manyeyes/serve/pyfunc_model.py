"""The file MLflow keeps with a registered version and runs to load it (models from code).

It is executed from MLflow's copy, so everything it needs is imported from the installed package,
and nothing heavy before the model is loaded. Rows in: ``question`` and optionally a picture in
``image`` or ``image_base64`` (``served_picture`` says in which forms); out: one answer each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # MLflow evaluates the type hints of predict
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from manyeyes.errors import UserError
from manyeyes.registry.package import MAX_NEW_TOKENS
from manyeyes.registry.weights import Weights
from manyeyes.serve.chat import Conversation
from manyeyes.serve.served_picture import read_served

if TYPE_CHECKING:
    from collections.abc import Mapping


class ManyeyesModel(PythonModel):
    """Answers questions about pictures, each row a conversation of its own."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401  # MLflow passes it by this name
        """Find the weights that the version refers to and load them."""
        from manyeyes.serve.assistant import Assistant

        weights = Weights.model_validate_json(context.model_config["weights"])
        self._assistant = Assistant.load(weights.bring())

    def predict(
        self,
        context: Any,  # noqa: ANN401, ARG002  # MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Answer each row of ``model_input``."""
        longest = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        if longest < 1:
            raise UserError(f"max_new_tokens is {longest}; give 1 or more.")
        return [self._answer(row, longest) for row in model_input.to_dict("records")]

    def _answer(self, row: Mapping[str, object], max_new_tokens: int) -> str:
        conversation = Conversation(self._assistant, max_new_tokens)
        for column in ("image", "image_base64"):
            picture = read_served(row.get(column), column)
            if picture is not None:
                conversation.waiting.append((Path(column), picture))
        return conversation.ask(str(row["question"])).answer


set_model(ManyeyesModel())
