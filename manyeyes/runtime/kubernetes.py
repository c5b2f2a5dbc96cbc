"""One way to the Kubernetes API: the credentials, the client, and what we read of objects.

The launcher, the doctor and the logs of pods ask for different things and say different sentences
when they fail; how they get there is the same.
The client repeats nothing by itself; ``retry`` does.

Objects are read by small models of our own. The published ones (``kubeflow_trainer_api``) describe
what may be *sent*, and the launcher checks its TrainJobs with them; as readers they would refuse a
whole pod for one word that a newer Kubernetes says.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

INSIDE = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in every pod."""
KUBECONFIG = "KUBECONFIG"
CONNECTIONS = 32
"""The checks of the doctor ask all at once."""


class NoKubernetesError(Exception):
    """There is neither a kubeconfig nor a pod's service account, or it cannot be used."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__
        """The error's class, for those who show no text of foreign code."""


def connect(context: str | None = None) -> Any:  # noqa: ANN401  # the client has no types
    """Return an ``ApiClient`` of the server that the kubeconfig, or the pod we are in, names.

    Args:
        context: of the kubeconfig; None for the current one.

    Raises:
        NoKubernetesError: there is neither, or it is broken.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if os.environ.get(INSIDE) and not os.environ.get(KUBECONFIG):
            config.load_incluster_config(client_configuration=settings)
        else:
            # Read now: the client's own default is what the variable said at its import.
            path = os.environ.get(KUBECONFIG) or "~/.kube/config"
            config.load_kube_config(path, context, client_configuration=settings)
    except Exception as error:
        # Whatever foreign code makes of a foreign file: we cannot use it.
        raise NoKubernetesError(error) from None
    settings.retries = False  # urllib3 would repeat, and sleep where no clock sees it
    settings.connection_pool_maxsize = CONNECTIONS
    return client.ApiClient(settings)


class View(BaseModel):
    """What we read of an object: fields by their names in the API, null taken for absent."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: object) -> object:
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if value is not None}
        return given


class Owner(View):
    """An owner reference."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""


class Metadata(View):
    """The metadata of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[Owner, ...] = ()
    deletion_timestamp: datetime | None = None


class Condition(View):
    """One line of an object's status."""

    type: str
    status: str
    """``True``, ``False`` or ``Unknown``."""
    reason: str = ""
    message: str = ""


class Named(View):
    """Any object."""

    metadata: Metadata = Metadata()
