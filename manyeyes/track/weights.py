"""Where a registered model's weights are: a reference, not a copy.

The registry uploads no weights. It keeps the digest of the checkpoint and two places to look: the
directory it was registered from, and its name in the content store, from which it is brought back
when the directory is gone or holds something else by now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from manyeyes.artifact import Manifest, open_artifact, read_manifest
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.home import INPUTS, home
from manyeyes.store import Store, object_key, open_store
from manyeyes.store.retry import Patience
from manyeyes.track.records import Stored

MODELS = "models"
"""Folder of the state directory with checkpoints that were brought back from the store."""

GLANCE = Patience(seconds=3.0)
"""For looking whether weights are there: nobody waits minutes for a list of models."""

State = Literal["present", "stored", "missing"]


class Weights(Stored):
    """A reference to a checkpoint."""

    digest: str
    """Content digest of its manifest."""
    directory: str
    """Where it was when it was registered; empty where that was a step's own folder."""
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

        Raises:
            UserError: there is none at this path, or it is damaged.
        """
        manifest = open_artifact(checkpoint, "checkpoint", verify=False)
        directory = str(checkpoint.absolute())
        store = open_store()
        entry = store.lookup(manifest.fingerprint)
        if entry is None or entry.digest != manifest.digest:
            return cls(digest=manifest.digest, directory=directory)
        if checkpoint.absolute().is_relative_to(home() / INPUTS):
            directory = ""
        return cls(
            digest=manifest.digest,
            directory=directory,
            store=store.where,
            dir_id=entry.dir_id,
        )

    @property
    def state(self) -> State:
        """Whether the checkpoint can be opened as it is, can be brought back, or neither."""
        if any(self._manifest(place) for place in self._places):
            return "present"
        return "stored" if any(self._has(store) for store in self._stores(GLANCE)) else "missing"

    def bring(self) -> Path:
        """Return a directory with exactly these weights, from the store if need be.

        Raises:
            UserError: they are neither in their directory nor in a content store here.
        """
        for directory in self._places:
            if self._manifest(directory):
                return directory
        for store in self._stores():
            if self._has(store):
                store.checkout(self.dir_id, self._kept, link=True)
                return self._kept
        raise UserError(
            f"The weights with digest {self.digest[:12]} are neither in {self._places[0]} nor in "
            "the content store: run the pipeline again, or fetch them with 'dvc pull'."
        )

    @property
    def _kept(self) -> Path:
        return home() / MODELS / self.digest[:32]

    def _stores(self, patience: Patience | None = None) -> list[Store]:
        """Return the store of the environment and the one it was registered from."""
        places = dict.fromkeys([open_store().where, *([self.store] if self.store else [])])
        return [open_store(place, patience) for place in places]

    def _has(self, store: Store) -> bool:
        if not self.dir_id or not (store.is_remote or Path(store.where).is_dir()):
            return False
        try:
            return store.entry(self.dir_id).digest == self.digest
        except ManyeyesError:
            return False

    @property
    def _places(self) -> list[Path]:
        """Folders in which the checkpoint may lie here."""
        return [*([Path(self.directory)] if self.directory else []), self._kept]

    def _manifest(self, directory: Path) -> Manifest | None:
        try:
            manifest = read_manifest(directory)
        except (ManyeyesError, OSError):
            return None
        return manifest if manifest.digest == self.digest else None
