"""The Kubernetes API of the tests, spoken to by the real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes_server import KubernetesServer
from urllib3.exceptions import HTTPError

JOBS = {
    "group": "trainer.kubeflow.org",
    "version": "v1alpha1",
    "namespace": "research",
    "plural": "trainjobs",
}


def job(name: str, **spec: object) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": {"of": "test"}}, "spec": spec}


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with KubernetesServer() as server:
        yield server


@pytest.fixture
def api(server: KubernetesServer, tmp_path: Path) -> client.ApiClient:
    path = server.write_kubeconfig(tmp_path / "config")
    configuration = client.Configuration()
    config.load_kube_config(str(path), client_configuration=configuration)
    configuration.retries = False
    return client.ApiClient(configuration)


def status_of(call) -> int:
    with pytest.raises(ApiException) as failed:
        call()
    return failed.value.status


def test_a_custom_object_lives_through_create_patch_replace_and_delete(server, api):
    jobs = client.CustomObjectsApi(api)
    made = jobs.create_namespaced_custom_object(**JOBS, body=job("one", suspend=True))
    assert status_of(lambda: jobs.create_namespaced_custom_object(**JOBS, body=job("one"))) == 409
    patched = jobs.patch_namespaced_custom_object(
        **JOBS, name="one", body={"spec": {"suspend": False}}
    )
    assert patched["spec"] == {"suspend": False}
    assert int(patched["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    replace = lambda: jobs.replace_namespaced_custom_object(**JOBS, name="one", body=made)  # noqa: E731
    assert status_of(replace) == 409
    wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
    delete = lambda body: jobs.delete_namespaced_custom_object(**JOBS, name="one", body=body)  # noqa: E731
    assert status_of(lambda: delete(wrong)) == 409
    delete(None)
    assert status_of(lambda: jobs.get_namespaced_custom_object(**JOBS, name="one")) == 404


def test_a_list_selects_by_label_and_field_and_a_deletion_takes_what_is_owned(server, api):
    owner = server.create("trainjobs", job("one"))
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": "one",
        "uid": owner["metadata"]["uid"],
    }
    server.create("pods", {"metadata": {"name": "a", "ownerReferences": [reference]}})
    server.create("pods", {"metadata": {"name": "b"}, "status": {"phase": "Running"}})
    core = client.CoreV1Api(api)
    names = [pod.metadata.name for pod in core.list_namespaced_pod("research").items]
    running = core.list_namespaced_pod("research", field_selector="status.phase=Running").items
    labelled = client.CustomObjectsApi(api).list_namespaced_custom_object(
        **JOBS, label_selector="of=test"
    )["items"]
    server.delete("trainjobs", "one")
    left = [pod.metadata.name for pod in core.list_namespaced_pod("research").items]
    assert (names, [pod.metadata.name for pod in running]) == (["a", "b"], ["b"])
    assert ([found["metadata"]["name"] for found in labelled], left) == (["one"], ["b"])


def test_a_watch_tells_what_happens_until_its_time_is_over(server, api):
    jobs = client.CustomObjectsApi(api)
    server.create("trainjobs", job("one"))
    version = jobs.list_namespaced_custom_object(**JOBS)["metadata"]["resourceVersion"]
    server.clock.at(10, lambda: server.create("trainjobs", job("two")))
    server.clock.at(20, lambda: server.delete("trainjobs", "one"))
    server.clock.at(90, lambda: server.create("trainjobs", job("late")))
    seen = [
        (event["type"], event["object"]["metadata"]["name"])
        for event in watch.Watch().stream(
            jobs.list_namespaced_custom_object,
            **JOBS,
            resource_version=version,
            timeout_seconds=60,
        )
    ]
    assert seen == [("ADDED", "two"), ("DELETED", "one")]
    assert server.clock.now() == 60


@pytest.mark.parametrize("when", ["at the start", "amid the stream"])
def test_a_forgotten_version_is_gone(server, api, when):
    jobs = client.CustomObjectsApi(api)
    server.create("trainjobs", job("one"))
    version = jobs.list_namespaced_custom_object(**JOBS)["metadata"]["resourceVersion"]
    if when == "at the start":
        server.compact()
    else:
        server.fail("watch", "trainjobs", "gone")
    stream = watch.Watch().stream(
        jobs.list_namespaced_custom_object, **JOBS, resource_version=version, timeout_seconds=60
    )
    assert status_of(lambda: list(stream)) == 410


@pytest.mark.parametrize(
    ("verb", "what"), [("list", "drop"), ("create", "drop"), ("create", "lost"), ("watch", "cut")]
)
def test_a_planned_fault_breaks_the_connection_once(server, api, verb, what):
    jobs = client.CustomObjectsApi(api)
    server.fail(verb, "trainjobs", what)

    def call() -> None:
        if verb == "create":
            jobs.create_namespaced_custom_object(**JOBS, body=job("one"))
        elif verb == "list":
            jobs.list_namespaced_custom_object(**JOBS)
        else:
            list(
                watch.Watch().stream(jobs.list_namespaced_custom_object, **JOBS, timeout_seconds=1)
            )

    with pytest.raises(HTTPError):
        call()
    if what == "lost":
        assert status_of(call) == 409
    else:
        call()


def test_planned_statuses_and_expired_tokens_are_answered(server, api):
    core = client.CoreV1Api(api)
    server.fail("list", "nodes", 429, retry_after=7)
    with pytest.raises(ApiException) as busy:
        core.list_node()
    server.expire_token()
    assert (busy.value.status, busy.value.headers["Retry-After"]) == (429, "7")
    assert status_of(core.list_node) == 401


def test_a_log_is_followed_to_the_pods_end_and_read_again_since_a_time(server, api):
    core = client.CoreV1Api(api)
    server.create("pods", {"metadata": {"name": "a"}, "status": {"phase": "Pending"}})
    assert status_of(lambda: core.read_namespaced_pod_log("a", "research")) == 400
    server.change("pods", "a", lambda pod: pod["status"].update(phase="Running"))
    server.log("a", "one")
    server.clock.at(5, lambda: server.log("a", "two"))
    end = lambda: server.change("pods", "a", lambda pod: pod["status"].update(phase="Succeeded"))  # noqa: E731
    server.clock.at(9, end)
    lines = list(watch.Watch().stream(core.read_namespaced_pod_log, "a", "research"))
    again = api.call_api(
        "/api/v1/namespaces/research/pods/a/log",
        "GET",
        query_params=[("sinceTime", "2026-12-01T09:00:05Z"), ("timestamps", "true")],
        auth_settings=["BearerToken"],
        response_type="str",
        _return_http_data_only=True,
    )
    assert (lines, again) == (["one", "two"], "2026-12-01T09:00:05.000000000Z two\n")


def test_access_reviews_versions_and_groups_are_answered(server, api):
    server.denied.add(("create", "trainer.kubeflow.org", "trainjobs"))

    def allowed(verb: str) -> bool:
        attributes = client.V1ResourceAttributes(
            verb=verb, group="trainer.kubeflow.org", resource="trainjobs", namespace="research"
        )
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        answer = client.AuthorizationV1Api(api).create_self_subject_access_review(review)
        return answer.status.allowed

    jobs = client.CustomObjectsApi(api)
    groups = [group.name for group in client.ApisApi(api).get_api_versions().groups]
    assert (allowed("create"), allowed("get")) == (False, True)
    assert status_of(lambda: jobs.create_namespaced_custom_object(**JOBS, body=job("one"))) == 403
    assert client.VersionApi(api).get_code().git_version == "v1.34.1"
    assert {"trainer.kubeflow.org", "kueue.x-k8s.io", "jobset.x-k8s.io"} <= set(groups)
