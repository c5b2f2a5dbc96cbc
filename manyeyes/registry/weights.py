"""Where a registered model's weights are: a reference, not a copy.

The registry uploads no weights. It keeps the digest of the checkpoint and two places to look: the
directory it was registered from, and its name in the content store, from which it is brought back
when the directory is gone or holds something else by now. A directory counts only when every byte
in it is what the digest says; a look at that is remembered (``verified``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from manyeyes.artifact.manifest import Manifest, open_artifact, read_manifest
from manyeyes.artifact.verified import first_damaged, just_checked, open_verified
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import NO_WRITING, until_the_end
from manyeyes.runtime.retry import RetryPolicy
from manyeyes.store import DamagedObjectError, Store, object_key, open_store
from manyeyes.store.retry import PATIENCE
from manyeyes.store.settings import is_named
from manyeyes.tracking.records import Stored

MODELS = "models"
"""Folder of the state directory with checkpoints that were brought back from the store."""

GLANCE = replace(PATIENCE, seconds=3.0)
"""For looking whether weights are there: nobody waits minutes for a list of models."""

State = Literal["present", "stored", "damaged", "missing"]


@dataclass(frozen=True)
class Condition:
    """What became of a registered model's weights."""

    state: State
    """``present``: whole in a folder; ``stored``: not in one, but in the content store;
    ``damaged``: a folder has them, but not every byte; ``missing``: nowhere."""
    stored: bool = False
    """Not ``present``, but the content store has them whole."""
    reason: str = ""
    """What is damaged."""

    def __str__(self) -> str:
        if self.state != "damaged":
            return self.state
        rest = "; the content store has them whole" if self.stored else ""
        return f"damaged: {self.reason.split('; ')[0]}{rest}"


class Weights(Stored):
    """A reference to a checkpoint."""

    digest: str
    """Content digest of its manifest."""
    directory: str
    """Where it was when it was registered; empty where that was a folder below home."""
    store: str = ""
    """The content store that has it, a path or ``s3://bucket/prefix``; empty if none had."""
    dir_id: str = ""
    """Its name there."""

    @property
    def source(self) -> str:
        """The most durable address, as URI."""
        if "://" in self.store:
            return f"{self.store}/{object_key(self.dir_id)}"
        if self.store:
            return (Path(self.store) / object_key(self.dir_id)).as_uri()
        return Path(self.directory).as_uri()

    @classmethod
    def of(cls, checkpoint: Path) -> Weights:
        """Describe a finished checkpoint.

        A folder below home is not named where the store has the weights: what lies there is gone
        with the next run.

        Raises:
            UserError: there is none at this path, or it is damaged.
        """
        manifest = open_artifact(checkpoint, "checkpoint", verify=False)
        directory = checkpoint.absolute()
        store = open_store()
        entry = store.lookup(manifest.fingerprint) if manifest.fingerprint else None
        if entry is None or entry.digest != manifest.digest:
            entry = store.find(manifest.digest)
        if entry is None:
            return cls(digest=manifest.digest, directory=str(directory))
        return cls(
            digest=manifest.digest,
            directory="" if directory.is_relative_to(home()) else str(directory),
            store=store.where,
            dir_id=entry.dir_id,
        )

    @property
    def condition(self) -> Condition:
        """Whether the checkpoint can be served as it is, can be brought back, or neither."""
        damage = ""
        for directory in self._places:
            said = self._damage(directory)
            if said == "":
                return Condition("present")
            damage = damage or said or ""
        found = [self._store_damage(store) for store in self._stores(GLANCE)]
        stored = "" in found
        damage = damage or next((said for said in found if said and not stored), "")
        if damage:
            return Condition("damaged", stored, damage)
        return Condition("stored" if stored else "missing", stored)

    def bring(self) -> Path:
        """Return a directory with exactly these weights, from the store if need be.

        Raises:
            UserError: they are neither in their directory nor in a content store here.
        """
        damage = ""
        for directory in self._places:
            said = self._damage(directory)
            if said == "":
                return directory
            damage = damage or said or ""
        for store in self._stores():
            entry = self._entry(store)
            brought = self._checkout(store, entry) if entry is not None else None
            if brought is not None:
                return brought
        if damage:
            raise UserError(damage)
        raise UserError(
            f"The weights with digest {self.digest[:12]} are neither in {self._places[0]} nor in "
            "the content store: run the pipeline again, or fetch them with 'dvc pull'."
        )

    @property
    def _kept(self) -> Path:
        return home() / MODELS / self.digest[:32]

    @property
    def _places(self) -> list[Path]:
        return [*([Path(self.directory)] if self.directory else []), self._kept]

    def _stores(self, policy: RetryPolicy | None = None) -> list[Store]:
        """Return the store of the environment and the one it was registered from.

        A bucket of the registry counts only where the user's own configuration names it: asking
        one shows it who asks.
        """
        registered = [self.store] if self.store else []
        trusted = [place for place in registered if "://" not in place or is_named(place)]
        places = dict.fromkeys([open_store().where, *trusted])
        return [open_store(place, policy) for place in places]

    def _entry(self, store: Store) -> str | None:
        """Return the name of these weights in a store that has them in the right sizes."""
        if not (store.is_remote or Path(store.where).is_dir()):
            return None
        try:
            if self.dir_id and store.entry(self.dir_id).digest == self.digest:
                return self.dir_id
            found = store.find(self.digest)
        except ManyeyesError:
            return None
        return found.dir_id if found is not None else None

    def _store_damage(self, store: Store) -> str | None:
        """Say what is wrong with the weights in a store: nothing, or a sentence; None without them.

        Of a folder, every byte was read once; of a bucket, sizes are asked.
        """
        entry = self._entry(store)
        if entry is None or store.is_remote:
            return None if entry is None else ""
        folder = Path(store.where)
        try:
            listed = store.manifest(entry).files.values()
        except ManyeyesError as error:
            return str(error)
        files = {folder / object_key(file.md5): file for file in listed}
        damaged = first_damaged(folder / object_key(entry), files)
        return f"{damaged} does not match its sha256" if damaged else ""

    def _checkout(self, store: Store, entry: str) -> Path | None:
        """Bring the weights from a store; it sets aside what it finds damaged.

        Where home can only be read they are brought anew for each process.
        """
        place = self._kept
        try:
            try:
                store.checkout(entry, place, link=True)
            except OSError as error:
                if error.errno not in NO_WRITING:
                    raise
                place = until_the_end() / place.name
                store.checkout(entry, place, link=True)
        except DamagedObjectError:
            return None
        just_checked(place)
        return place

    def _damage(self, directory: Path) -> str | None:
        """Say what is wrong with the weights in a directory: nothing, or one sentence.

        None when it does not hold them at all.
        """
        manifest = self._manifest(directory)
        if manifest is None:
            return None
        try:
            open_verified(directory, "checkpoint")
        except UserError as error:
            return str(error)
        return ""

    def _manifest(self, directory: Path) -> Manifest | None:
        try:
            manifest = read_manifest(directory)
        except (ManyeyesError, OSError):
            return None
        return manifest if manifest.digest == self.digest else None


def whole_copy(directory: Path) -> tuple[Path, str]:
    """Return a checkpoint as its manifest says, and what is wrong with ``directory`` if not that.

    Raises:
        UserError: it is damaged, and the content store has no whole copy.
    """
    try:
        open_verified(directory, "checkpoint")
    except UserError as error:
        try:
            digest = read_manifest(directory).digest
            return Weights(digest=digest, directory="").bring(), str(error)
        except ManyeyesError:
            raise error from None
    return directory, ""
