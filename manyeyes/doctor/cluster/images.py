"""Can the images be pulled? One HEAD request per image, as the OCI distribution protocol has it.

A registry answers 401 with the address of its token service; we ask there, with the pull secret's
user where it has one for this registry, else as anybody. User and password go over https only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from manyeyes.doctor.cluster.api import Cluster, NoAnswerError, NotAllowedError
from manyeyes.doctor.cluster.secrets import PULL_KEYS, registry_logins, values
from manyeyes.doctor.findings import Finding, ok, problem, unchecked
from manyeyes.doctor.web import Answered, UnreachableError, ask

MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DOCKER_HUB = "docker.io"
DOCKER_HUB_LOGIN = "index.docker.io"
DOCKER_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True)
class Image:
    """A reference, taken apart."""

    registry: str
    repository: str
    digest: str

    @property
    def manifest(self) -> str:
        """URL of the manifest."""
        host = DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry
        name = urlsplit(f"//{host}").hostname
        scheme = "http" if name in LOOPBACK else "https"
        return f"{scheme}://{host}/v2/{self.repository}/manifests/{self.digest}"


class LoginRefusedError(Exception):
    """The token service gives no token."""


def parse(reference: str) -> Image:
    """Take ``[registry/]repository[:tag]@sha256:...`` apart."""
    name, _, digest = reference.partition("@")
    first, _, rest = name.partition("/")
    if not rest or not ("." in first or ":" in first or first == "localhost"):
        repository = name.partition(":")[0]
        return Image(DOCKER_HUB, repository if rest else f"library/{repository}", digest)
    return Image(first, rest.partition(":")[0], digest)


def images(cluster: Cluster) -> list[Finding]:
    """Does the registry have the images, and give them to us?"""
    pinned = {"control": cluster.profile.images.control, "trainer": cluster.profile.images.trainer}
    logins = _logins(cluster)
    return [_judge(cluster, which, parse(text), logins) for which, text in pinned.items()]


def _logins(cluster: Cluster) -> dict[str, tuple[str, str]]:
    """Return the registries' users of all pull secrets; a secret we may not read gives none."""
    found: dict[str, tuple[str, str]] = {}
    for name in cluster.profile.images.pull_secrets:
        try:
            secret = values(cluster, name)
        except (NotAllowedError, NoAnswerError):
            continue
        found |= registry_logins((secret or {}).get(PULL_KEYS[0], ""))
    return found


def _judge(
    cluster: Cluster, which: str, image: Image, logins: dict[str, tuple[str, str]]
) -> Finding:
    shown = f"{image.registry}/{image.repository}@{image.digest[:19]}"
    login = logins.get(DOCKER_HUB_LOGIN if image.registry == DOCKER_HUB else image.registry)
    why = "Pods of its steps stay in ImagePullBackOff."
    inspect = f"skopeo inspect docker://{image.registry}/{image.repository}@{image.digest}"
    try:
        answer = head(image, login)
    except UnreachableError as error:
        return unchecked(
            f"The registry of the {which} image, {image.registry}, does not answer here: {error}.",
            "The nodes pull the image, not this machine; they may reach it.",
            f"kubectl -n {cluster.namespace} run pull-test --image={image.registry}/"
            f"{image.repository}@{image.digest} --restart=Never",
        )
    except LoginRefusedError:
        return _no_login(cluster, which, image, login)
    match answer.status:
        case 200:
            who = f" as {login[0]}" if login else ""
            return ok(f"The {which} image {shown} can be pulled{who}.")
        case 404:
            what = f"The {which} image {shown} is not in the registry."
            return problem(
                what, why, f"Push it, or write the digest of one that is there: {inspect}"
            )
        case 401 | 403:
            return _no_login(cluster, which, image, login)
        case status:
            what = f"The registry answers {status} for the {which} image {shown}."
            return unchecked(what, why, inspect)


def _no_login(cluster: Cluster, which: str, image: Image, login: tuple[str, str] | None) -> Finding:
    who = f"refuses {login[0]}" if login else "gives it to nobody without a password"
    secrets = cluster.profile.images.pull_secrets
    name = secrets[0] if secrets else "registry"
    mend = (
        f"kubectl -n {cluster.namespace} create secret docker-registry {name} "
        f"--docker-server={image.registry} --docker-username=... --docker-password=..."
    )
    if not secrets:
        mend += f", and images.pull_secrets: [{name}] in the profile"
    return problem(
        f"The registry of the {which} image, {image.registry}, {who} (or has no such image).",
        "Pods of its steps stay in ImagePullBackOff.",
        mend,
    )


def head(image: Image, login: tuple[str, str] | None) -> Answered:
    """Ask for an image's manifest, with a token if the registry wants one.

    Raises:
        UnreachableError: registry or token service do not answer.
        LoginRefusedError: the token service refuses us.
    """
    accept = {"Accept": ", ".join(MEDIA_TYPES)}
    answer = ask(image.manifest, method="HEAD", headers=accept, follow=True)
    if answer.status != 401:
        return answer
    challenge = answer.headers.get("WWW-Authenticate", "")
    scheme = challenge.partition(" ")[0].lower()
    if scheme == "basic" and login and _is_safe(image.manifest):
        return ask(image.manifest, method="HEAD", headers=accept, login=login, follow=True)
    if scheme != "bearer":
        return answer
    token = _token(image, dict(CHALLENGE.findall(challenge)), login)
    accept["Authorization"] = f"Bearer {token}"
    return ask(image.manifest, method="HEAD", headers=accept, follow=True)


def _token(image: Image, challenge: dict[str, str], login: tuple[str, str] | None) -> str:
    realm = challenge.get("realm", "")
    if not _is_safe(realm):
        raise LoginRefusedError
    query = {
        "service": challenge.get("service", ""),
        "scope": challenge.get("scope", f"repository:{image.repository}:pull"),
    }
    answer = ask(f"{realm}?{urlencode(query)}", login=login)
    try:
        body = json.loads(answer.body) if answer.status == 200 else {}
        return str(body.get("token") or body["access_token"])
    except (ValueError, KeyError, AttributeError):
        raise LoginRefusedError from None


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
