"""Renders the overlays, reads their golden copies, and says who may talk to whom.

``python tests/manifest_kit.py`` writes the golden copies by ``kubectl kustomize``. Each carries the
digest of the files it was made from, so that a stale one is found without kubectl too.
"""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "infra" / "kubernetes"
GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
OVERLAYS = ("gke-like", "on-prem")
POD_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
Json = dict[str, Any]


def sources_digest() -> str:
    """Return one digest over all files that the overlays are made from."""
    digest = hashlib.sha256()
    for path in sorted(path for path in KUBERNETES.rglob("*") if path.is_file()):
        digest.update(path.relative_to(KUBERNETES).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def header() -> str:
    """Return the first line of a golden copy."""
    return f"# python tests/manifest_kit.py; sources {sources_digest()}\n"


def kustomize() -> list[str] | None:
    """Return the command that renders, or None where there is none."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


def render(overlay: str) -> str:
    """Render an overlay."""
    command = kustomize()
    assert command is not None
    folder = str(KUBERNETES / "overlays" / overlay)
    return subprocess.run([*command, folder], capture_output=True, text=True, check=True).stdout


def golden_text(overlay: str) -> str:
    """Return the golden copy of an overlay as it stands."""
    return (GOLDEN / f"{overlay}.yaml").read_text(encoding="utf-8")


def parse(text: str) -> list[Json]:
    """Return the objects of a rendered overlay."""
    return list(YAML(typ="safe", pure=True).load_all(text))


@cache
def objects(overlay: str) -> tuple[Json, ...]:
    """Return the objects of an overlay's golden copy."""
    return tuple(parse(golden_text(overlay)))


def of_kind(overlay: str, kind: str) -> list[Json]:
    """Return an overlay's objects of one kind."""
    return [item for item in objects(overlay) if item["kind"] == kind]


def named(overlay: str, kind: str, name: str) -> Json:
    """Return one object."""
    (found,) = [item for item in of_kind(overlay, kind) if item["metadata"]["name"] == name]
    return found


def pod_templates(overlay: str) -> Iterator[tuple[str, Json]]:
    """Yield every pod that an overlay starts, with the name of what starts it."""
    for item in objects(overlay):
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in POD_TEMPLATES:
            template = item
            for key in POD_TEMPLATES[item["kind"]]:
                template = template[key]
            yield name, template
        if item["kind"] == "TrainingRuntime":
            for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
                yield name, job["template"]["spec"]["template"]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside."""

    labels: Mapping[str, str] | None = None
    namespace: str = ""
    """Empty for the namespace of the overlay."""
    address: str | None = None


def may_connect(overlay: str, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Evaluate the network policies of an overlay the way a cluster does.

    A pod that no policy selects for a direction is free in it; others need one rule that fits.
    """
    own = not target.namespace and target.address is None
    return _allows(overlay, "Egress", source, target, port, protocol) and (
        not own or _allows(overlay, "Ingress", target, source, port, protocol)
    )


def _allows(overlay: str, direction: str, pod: Peer, other: Peer, port: int, protocol: str) -> bool:
    selected = [
        policy["spec"]
        for policy in of_kind(overlay, "NetworkPolicy")
        if direction in policy["spec"]["policyTypes"]
        and not pod.namespace
        and _selects(policy["spec"]["podSelector"], pod.labels or {})
    ]
    rules = [rule for spec in selected for rule in spec.get(direction.lower(), [])]
    key = "to" if direction == "Egress" else "from"
    return not selected or any(
        any(_is_peer(entry, other) for entry in rule.get(key, [{}]))
        and _has_port(rule.get("ports"), port, protocol)
        for rule in rules
    )


def _is_peer(entry: Json, other: Peer) -> bool:
    if "ipBlock" in entry:
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        block = entry["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in block.get("except", [])
        )
    if other.labels is None:
        return False
    if "namespaceSelector" in entry:
        labels = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(entry["namespaceSelector"], labels):
            return False
    elif other.namespace:
        return False
    return _selects(entry.get("podSelector", {}), other.labels)


def _selects(selector: Json, labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        match expression["operator"]:
            case "Exists":
                holds = value is not None
            case "In":
                holds = value in expression["values"]
            case "NotIn":
                holds = value not in expression["values"]
            case operator:
                raise AssertionError(operator)
        if not holds:
            return False
    return True


def _has_port(ports: list[Json] | None, port: int, protocol: str) -> bool:
    return ports is None or any(
        entry["port"] == port and entry["protocol"] == protocol for entry in ports
    )


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for each in OVERLAYS:
        (GOLDEN / f"{each}.yaml").write_text(header() + render(each), encoding="utf-8")
