"""Reading a profile: by name from ``infra/profiles``, or by path."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from manyeyes.config.profile.sections import Profile
from manyeyes.config.recipe import strict_yaml
from manyeyes.errors import unknown

PROFILES = Path(__file__).parents[3] / "infra" / "profiles"


class _File(BaseModel):
    """What a profile's file holds; pydantic needs a model around a union."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    profile: Profile = Field(discriminator="kind")


def load_profile(reference: str) -> Profile:
    """Read and check a profile.

    Args:
        reference: the name of a file in ``infra/profiles``, or a path that ends in ``.yaml``.

    Raises:
        UserError: there is no such profile, or it breaks the schema; one line per problem.
    """
    path = Path(reference)
    if path.suffix not in {".yaml", ".yml"}:
        names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        if reference not in names:
            raise unknown("profile", reference, names)
        path = PROFILES / f"{reference}.yaml"
    return parse_profile(strict_yaml.read_text(path, "profile"), str(path))


def parse_profile(text: str, where: str) -> Profile:
    """Check a profile's text; ``where`` names it in errors."""
    return strict_yaml.parse(text, where, _File, "profile").profile
