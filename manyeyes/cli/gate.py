"""What the registry's gate said, for people and as an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from manyeyes.errors import GateRefused

if TYPE_CHECKING:
    from pydantic import JsonValue


def exit_code(registered: Mapping[str, JsonValue]) -> int:
    """Return 3 for a model that the gate refused or could not decide on, otherwise 0.

    Args:
        registered: the details of ``register``'s result.
    """
    return 0 if registered.get("passed") else GateRefused.exit_code


def percent(share: float | None) -> str:
    """Write the share of the headroom reached; ``none`` where a constant answer gets all."""
    return "none" if share is None else f"{100.0 * share:.0f} %"


def words(registered: Mapping[str, JsonValue]) -> str:
    """Say what the gate decided and why."""
    reasons = registered.get("reasons")
    told = "; ".join(str(reason) for reason in reasons) if isinstance(reasons, list) else ""
    match registered.get("decision"):
        case "promoted":
            return f"The gate says yes: {told}."
        case "undecided":
            return f"The gate is undecided, not champion: {told}."
    return f"The gate says no, not champion: {told}."
