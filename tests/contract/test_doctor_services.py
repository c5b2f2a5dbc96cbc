"""Storage, MLflow, the KFP API and registries: each way to fail has its own sentence."""

from __future__ import annotations

from dataclasses import replace

import doctor_kit as kit
import pytest
from kubernetes_server import KubernetesServer
from web_kit import FakeBucket, FakeKubeflow, FakeMlflow, FakeRegistry, serving

from manyeyes.doctor import stores, tracking
from manyeyes.doctor.bucket import TriedBucket, try_bucket
from manyeyes.doctor.cluster.images import parse
from manyeyes.doctor.findings import Finding
from manyeyes.doctor.machine import this_machine
from manyeyes.store.bucket import S3Access

STORED = "Every result is stored there, and every step fetches its inputs from there."
TRACKED = "Every stage records its run there, and models are registered there."
PULLED = "Pods of its steps stay in ImagePullBackOff."
ARN = "arn:aws:s3:::results"
RIGHTS = f"Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on {ARN} and {ARN}/*"
BUCKET = "s3://results/manyeyes at http://HOST"


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with KubernetesServer() as server:
        kit.furnish(server)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "config")))
        yield server


def profile(**changes):
    content = kit.profile_content()
    for path, value in changes.items():
        content = kit.deep(content, path.replace("__", "."), value)
    return kit.parse(content)


def at(host, finding):
    """Put the address of a test's server into a finding."""
    texts = [text.replace("HOST", host) for text in (finding.what, finding.why, finding.mend)]
    return Finding(finding.state, *texts)


STORAGE = {
    "fine": (
        {},
        Finding(
            "ok",
            f"{BUCKET} can be written, read and deleted from, with the secret storage-keys.",
        ),
    ),
    "no-bucket": (
        {"name": "other"},
        Finding(
            "problem",
            "There is no bucket results at HOST.",
            STORED,
            "aws s3 --endpoint-url http://HOST mb s3://results",
        ),
    ),
    "unknown-key": (
        {"access_key": "another"},
        Finding(
            "problem",
            f"{BUCKET} does not accept the secret storage-keys (InvalidAccessKeyId).",
            f"The access key or the secret key is wrong. {STORED}",
            "aws sts get-caller-identity, with the same keys; then write the right ones",
        ),
    ),
    "wrong-secret-key": (
        {"faults": {"PUT": "SignatureDoesNotMatch"}},
        Finding(
            "problem",
            f"{BUCKET} does not accept the secret storage-keys (SignatureDoesNotMatch).",
            f"The access key or the secret key is wrong. {STORED}",
            "aws sts get-caller-identity, with the same keys; then write the right ones",
        ),
    ),
    "expired": (
        {"faults": {"PUT": "ExpiredToken"}},
        Finding(
            "problem",
            f"The session of the secret storage-keys for {BUCKET} has ended (ExpiredToken).",
            STORED,
            "Log in again, for example: aws sso login",
        ),
    ),
    "clock": (
        {"faults": {"PUT": "RequestTimeTooSkewed"}},
        Finding(
            "problem",
            f"{BUCKET} refuses requests because this machine's clock is wrong.",
            "S3 accepts signatures that are at most 15 minutes off.",
            "timedatectl set-ntp true",
        ),
    ),
    "may-not-write": (
        {"faults": {"PUT": "AccessDenied"}},
        Finding(
            "problem",
            f"The secret storage-keys may not do s3:PutObject on {BUCKET}.",
            STORED,
            RIGHTS,
        ),
    ),
    "may-not-read": (
        {"faults": {"GET": "AccessDenied"}},
        Finding(
            "problem",
            f"The secret storage-keys may not do s3:GetObject on {BUCKET}.",
            STORED,
            RIGHTS,
        ),
    ),
    "other-region": (
        {"faults": {"PUT": "PermanentRedirect"}},
        Finding(
            "problem",
            "The bucket results is not in the region eu-central-1.",
            "Requests signed for another region are refused.",
            "aws s3api get-bucket-location --bucket results",
        ),
    ),
    "strange": (
        {"faults": {"PUT": "SlowDown"}},
        Finding(
            "problem",
            f"{BUCKET} answers SlowDown to PutObject.",
            STORED,
            "aws s3 --endpoint-url http://HOST ls s3://results",
        ),
    ),
    "garbled": (
        {"garbles": True},
        Finding(
            "problem",
            f"{BUCKET} returns other bytes than were written.",
            "A cache or a faulty gateway stands before it; every result would count as damaged.",
            "Use the storage's own endpoint, without a proxy.",
        ),
    ),
}


@pytest.mark.parametrize("case", STORAGE)
def test_storage(server, case):
    settings, finding = STORAGE[case]
    bucket = FakeBucket(**settings)
    with serving(bucket.answer) as host:
        found = kit.look("storage", profile(storage__endpoint=f"http://{host}"))
    assert found == [at(host, finding)]
    assert bucket.objects == {}


def test_storage_from_which_nothing_can_be_deleted(server):
    bucket = FakeBucket(faults={"DELETE": "AccessDenied"})
    with serving(bucket.answer) as host:
        found = kit.look("storage", profile(storage__endpoint=f"http://{host}"))
    (left,) = (key.removeprefix("/results/") for key in bucket.objects)
    assert found == [
        Finding(
            "warning",
            f"s3://results/manyeyes at http://{host} can be written and read, but not deleted "
            "from.",
            f"Old results can never be cleared away; the object {left} stays there.",
            f"Allow s3:DeleteObject on {ARN}/*",
        )
    ]


def test_storage_that_is_not_there(server):
    assert kit.look("storage", profile()) == [
        Finding(
            "problem",
            "s3://results/manyeyes at http://127.0.0.1:1 does not answer "
            "(EndpointConnectionError).",
            STORED,
            "curl -v http://127.0.0.1:1",
        )
    ]


def test_storage_without_an_identity(server):
    assert kit.look("storage", profile(storage__secret=None)) == [
        Finding(
            "unchecked",
            "s3://results/manyeyes at http://127.0.0.1:1 was not tried.",
            "There are no credentials: the AWS identity of this shell.",
            "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...",
        )
    ]


def test_storage_whose_secret_is_not_complete(server):
    server.delete("secrets", "storage-keys")
    assert kit.look("storage", profile()) == [
        Finding(
            "unchecked",
            "Not tried, for want of a user and password.",
            "The secret storage-keys is missing or not complete.",
            "See the check 'secrets'",
        )
    ]


def test_storage_with_keys_of_the_shell_when_the_secret_may_not_be_read(server, monkeypatch):
    server.denied.add(("get", "", "secrets"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with serving(FakeBucket().answer) as host:
        found = kit.look("storage", profile(storage__endpoint=f"http://{host}"))
    text = "can be written, read and deleted from, with the keys of this shell."
    assert found == [Finding("ok", f"s3://results/manyeyes at http://{host} {text}")]


@pytest.mark.parametrize(
    ("check", "what", "path", "address"),
    [
        ("storage", "The bucket", "storage__endpoint", "http://s3.storage.svc:8333"),
        ("MLflow", "MLflow", "tracking__uri", "http://mlflow.research.svc.cluster.local:5000"),
        ("KFP API", "The KFP API", "kubeflow__endpoint", "http://ml-pipeline.kubeflow.svc:8888"),
    ],
    ids=["storage", "mlflow", "kubeflow"],
)
def test_names_that_exist_in_the_cluster_only(server, check, what, path, address):
    assert kit.look(check, profile(**{path: address})) == [
        Finding(
            "unchecked",
            f"{what} at {address} was not tried.",
            "This name exists inside the cluster only; a pod there can try it.",
            "manyeyes doctor --profile lab --pod | kubectl create -f -, then: "
            "kubectl -n research logs -f manyeyes-doctor",
        )
    ]


def test_a_dvc_remote_in_a_bucket(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    with serving(FakeBucket().answer) as host:
        (tmp_path / ".dvc" / "config").write_text(
            f"[core]\nremote = lab\n['remote \"lab\"']\nurl = s3://results/manyeyes\n"
            f"endpointurl = http://{host}\nregion = here\n"
        )
        (tmp_path / ".dvc" / "config.local").write_text(
            "['remote \"lab\"']\naccess_key_id = key\nsecret_access_key = hidden\n"
        )
        found = stores.dvc_repository(this_machine(None))
    text = "can be written, read and deleted from, with the keys of DVC's remote lab."
    assert found == [Finding("ok", f"s3://results/manyeyes at http://{host} {text}")]


def test_a_bucket_is_shown_without_its_keys():
    bucket = TriedBucket("b", "", "x", S3Access(access_key="hidden", secret_key="hidden"))
    assert "hidden" not in repr(bucket)
    assert bucket.shown == "s3://b"


MLFLOW = {
    "fine": (
        FakeMlflow(("kfp", "hidden-2")),
        {},
        Finding("ok", "MLflow at http://HOST answers and lets us in."),
    ),
    "wrong-password": (
        FakeMlflow(("kfp", "other")),
        {},
        Finding(
            "problem",
            "MLflow at http://HOST does not accept the user kfp.",
            TRACKED,
            "Write the right user and password into the secret mlflow-login",
        ),
    ),
    "no-login": (
        FakeMlflow(("kfp", "other")),
        {"tracking__secret": None},
        Finding(
            "problem",
            "MLflow at http://HOST wants a user and a password.",
            TRACKED,
            "Give the profile tracking.secret, with MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD",
        ),
    ),
    "unknown-host": (
        FakeMlflow(status=403),
        {},
        Finding(
            "problem",
            "MLflow at http://HOST refuses requests under this name (403).",
            "MLflow answers only names it was told, against DNS rebinding; or this user may not "
            "read experiments.",
            "Start the server with --allowed-hosts HOST, or give the user READ permission.",
        ),
    ),
    "broken": (
        FakeMlflow(status=500),
        {},
        Finding(
            "problem",
            "MLflow at http://HOST answers 500 to a search of experiments.",
            TRACKED,
            f"curl -v 'http://HOST{tracking.SEARCH}'",
        ),
    ),
}


@pytest.mark.parametrize("case", MLFLOW)
def test_mlflow(server, case):
    fake, changes, finding = MLFLOW[case]
    with serving(fake.answer) as host:
        found = kit.look("MLflow", profile(tracking__uri=f"http://{host}", **changes))
    assert found == [at(host, finding)]


def test_mlflow_that_is_not_there(server):
    assert kit.look("MLflow", profile()) == [
        Finding(
            "problem",
            "MLflow at http://127.0.0.1:1 does not answer: connection refused.",
            TRACKED,
            "curl -v http://127.0.0.1:1/health",
        )
    ]


def test_the_mlflow_server_of_this_shell(monkeypatch):
    with serving(FakeMlflow(("ada", "hidden")).answer) as host:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:hidden@{host}")
        assert stores.tracking_store(this_machine(None)) == [
            Finding("ok", f"MLflow at http://{host} answers and lets us in.")
        ]


KUBEFLOW = {
    "fine": (
        FakeKubeflow(token="hidden"),
        {"kubeflow__token_variable": "KFP_TOKEN"},
        Finding("ok", "The KFP API at http://HOST answers."),
    ),
    "no-variable": (
        FakeKubeflow(),
        {"kubeflow__token_variable": "NO_SUCH_TOKEN"},
        Finding(
            "problem",
            "NO_SUCH_TOKEN is not set.",
            "It holds the token with which a run is submitted.",
            "export NO_SUCH_TOKEN=...",
        ),
    ),
    "wrong-token": (
        FakeKubeflow(token="another"),
        {"kubeflow__token_variable": "KFP_TOKEN"},
        Finding(
            "problem",
            "The KFP API at http://HOST refuses the token in KFP_TOKEN (401).",
            "Nothing can be submitted.",
            "export KFP_TOKEN=...",
        ),
    ),
    "token-wanted": (
        FakeKubeflow(token="another"),
        {},
        Finding(
            "problem",
            "The KFP API at http://HOST refuses requests without a token (401).",
            "Nothing can be submitted.",
            "Set kubeflow.token_variable of the profile",
        ),
    ),
    "login-page": (
        FakeKubeflow(login_page=True),
        {},
        Finding(
            "problem",
            "At http://HOST something else than the KFP API answers (302).",
            "Nothing can be submitted. It may be a login page, which a token passes.",
            "curl -v http://HOST/apis/v2beta1/healthz",
        ),
    ),
}


@pytest.mark.parametrize("case", KUBEFLOW)
def test_the_kubeflow_api(server, monkeypatch, case):
    fake, changes, finding = KUBEFLOW[case]
    monkeypatch.setenv("KFP_TOKEN", "hidden")
    with serving(fake.answer) as host:
        found = kit.look("KFP API", profile(kubeflow__endpoint=f"http://{host}", **changes))
    assert found == [at(host, finding)]


def test_a_kubeflow_api_that_is_not_there(server):
    assert kit.look("KFP API", profile()) == [
        Finding(
            "problem",
            "The KFP API at http://127.0.0.1:1 does not answer: connection refused.",
            "Nothing can be submitted.",
            "curl -v http://127.0.0.1:1/apis/v2beta1/healthz",
        )
    ]


CONTROL = f"HOST/manyeyes/control@{kit.DIGEST[:19]}"
MANIFEST = f"/v2/manyeyes/control/manifests/{kit.DIGEST}"
LOGIN = (
    "kubectl -n research create secret docker-registry registry-login --docker-server=HOST "
    "--docker-username=... --docker-password=..."
)
REGISTRY = {
    "anybody": (
        FakeRegistry(manifests={MANIFEST}),
        {"images__pull_secrets": []},
        Finding("ok", f"The control image {CONTROL} can be pulled."),
    ),
    "with-a-login": (
        FakeRegistry(users={"u": "p"}, manifests={MANIFEST}),
        {},
        Finding("ok", f"The control image {CONTROL} can be pulled as u."),
    ),
    "basic": (
        FakeRegistry(users={"u": "p"}, manifests={MANIFEST}, scheme="Basic"),
        {},
        Finding("ok", f"The control image {CONTROL} can be pulled as u."),
    ),
    "not-pushed": (
        FakeRegistry(users={"u": "p"}),
        {},
        Finding(
            "problem",
            f"The control image {CONTROL} is not in the registry.",
            PULLED,
            "Push it, or write the digest of one that is there: skopeo inspect "
            f"docker://HOST/manyeyes/control@{kit.DIGEST}",
        ),
    ),
    "wrong-password": (
        FakeRegistry(users={"u": "other"}),
        {},
        Finding(
            "problem",
            "The registry of the control image, HOST, refuses u (or has no such image).",
            PULLED,
            LOGIN,
        ),
    ),
    "login-wanted": (
        FakeRegistry(users={"u": "p"}),
        {"images__pull_secrets": []},
        Finding(
            "problem",
            "The registry of the control image, HOST, gives it to nobody without a password (or "
            "has no such image).",
            PULLED,
            LOGIN.replace("registry-login", "registry")
            + ", and images.pull_secrets: [registry] in the profile",
        ),
    ),
    "token-from-elsewhere": (
        FakeRegistry(users={"u": "p"}, realm="http://tokens.example.com/token"),
        {},
        Finding(
            "problem",
            "The registry of the control image, HOST, refuses u (or has no such image).",
            PULLED,
            LOGIN,
        ),
    ),
}


@pytest.mark.parametrize("case", REGISTRY)
def test_images(server, case):
    fake, changes, finding = REGISTRY[case]
    with serving(fake.answer) as host:
        auths = f'{{"auths": {{"{host}": {{"username": "u", "password": "p"}}}}}}'
        login = kit.secret(**{".dockerconfigjson": auths})
        server.change("secrets", "registry-login", lambda kept: kept.update(data=login))
        control = f"{host}/manyeyes/control@{kit.DIGEST}"
        found = kit.look(
            "images", profile(images__control=control, images__trainer=control, **changes)
        )
    trainer = at(host, finding).what.replace("control image", "trainer image")
    assert found == [at(host, finding), replace(at(host, finding), what=trainer)]


def test_a_registry_that_does_not_answer_here(server):
    control = f"127.0.0.1:1/manyeyes/control@{kit.DIGEST}"
    found = kit.look("images", profile(images__control=control, images__trainer=control))
    assert found[0] == Finding(
        "unchecked",
        "The registry of the control image, 127.0.0.1:1, does not answer here: connection refused.",
        "The nodes pull the image, not this machine; they may reach it.",
        f"kubectl -n research run pull-test --image={control} --restart=Never",
    )


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("python@D", "https://registry-1.docker.io/v2/library/python/manifests/D"),
        ("python:3.11@D", "https://registry-1.docker.io/v2/library/python/manifests/D"),
        ("team/x@D", "https://registry-1.docker.io/v2/team/x/manifests/D"),
        ("ghcr.io/team/x:1@D", "https://ghcr.io/v2/team/x/manifests/D"),
        ("localhost:5000/x@D", "http://localhost:5000/v2/x/manifests/D"),
    ],
    ids=["official", "tagged", "hub", "other", "here"],
)
def test_where_a_manifest_is(reference, url):
    assert parse(reference).manifest == url


def test_a_bucket_of_amazon_has_an_address():
    bucket = TriedBucket("b", "p", "x", S3Access(None, "eu-west-1", "key", "hidden"))
    assert bucket.address == "https://s3.eu-west-1.amazonaws.com"
    elsewhere = TriedBucket("b", "p", "x", S3Access("not a url", "here", "key", "hidden"))
    assert try_bucket(elsewhere) == Finding(
        "problem",
        "s3://b/p at not a url does not answer (ValueError).",
        STORED,
        "curl -v not a url",
    )
