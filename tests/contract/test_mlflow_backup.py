"""The backup of MLflow's database arrives whole, is read back, and the oldest goes."""

import io
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from manifest_kit import KUBERNETES

SCRIPT = KUBERNETES / "base" / "upload.py"
OLD = [f"mlflow/2026-01-0{day}T021700Z/{name}.dump" for day in (1, 2) for name in ("mlflow", "x")]


class Bucket:
    """What the script uses of boto3's client."""

    def __init__(self) -> None:
        self.kept = dict.fromkeys(["other/file", *OLD], b"old")
        self.damage = False

    def upload_file(self, path: str, bucket: str, key: str) -> None:
        assert bucket == "backups"
        self.kept[key] = Path(path).read_bytes()

    def get_object(self, Bucket: str, Key: str) -> dict[str, object]:  # noqa: N803  # boto3's names
        content = self.kept[Key]
        return {"Body": io.BytesIO(content[:-1] if self.damage else content)}

    def delete_object(self, Bucket: str, Key: str) -> None:  # noqa: N803
        del self.kept[Key]

    def get_paginator(self, name: str) -> "Bucket":
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, object]]:  # noqa: N803
        found = [{"Key": key} for key in self.kept if key.startswith(Prefix)]
        return [{"Contents": found[:1]}, {"Contents": found[1:]}, {}]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    boto3 = ModuleType("boto3")
    boto3.client = lambda _service: made
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    for name, value in {
        "BACKUP_BUCKET": "backups",
        "BACKUP_PREFIX": "/mlflow/",
        "BACKUP_KEEP": "2",
        "BACKUP_FOLDER": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    return made


def run() -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_dumps_are_sent_and_the_oldest_backup_goes(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("mlflow", "mlflow_auth"):
        (tmp_path / f"{name}.dump").write_bytes(name.encode() * 1000)
    run()
    new = {key: value for key, value in bucket.kept.items() if value != b"old"}
    assert [key.split("/")[-1] for key in new] == ["mlflow.dump", "mlflow_auth.dump"]
    assert list(new.values()) == [b"mlflow" * 1000, b"mlflow_auth" * 1000]
    assert sorted(set(bucket.kept) - set(new)) == [
        "mlflow/2026-01-02T021700Z/mlflow.dump",
        "mlflow/2026-01-02T021700Z/x.dump",
        "other/file",
    ]


def test_a_damaged_copy_fails_the_job_and_drops_nothing(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "mlflow.dump").write_bytes(b"whole")
    bucket.damage = True
    with pytest.raises(SystemExit, match="is not what was sent"):
        run()
    assert set(OLD) <= set(bucket.kept)


def test_no_dump_is_a_failure(bucket: Bucket) -> None:
    with pytest.raises(SystemExit, match="There is nothing to send"):
        run()
    assert set(OLD) <= set(bucket.kept)
