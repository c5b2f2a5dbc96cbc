"""The registry: by reference, one version per weights, and a gate before the champion."""

import base64
import io
import os
import threading

import pytest
from track_kit import write_checkpoint, write_model

from manyeyes.artifact import manifest as artifact
from manyeyes.artifact import verified
from manyeyes.artifact.manifest import read_manifest
from manyeyes.config.recipe import GateSection
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.evaluation.statistics import Outcomes
from manyeyes.registry.catalogue import lineage, list_models, locate_weights
from manyeyes.registry.reference import parse
from manyeyes.registry.registry import Candidate, is_registered, register
from manyeyes.registry.scores import KeptScores, KeptTaskScore, Measurement
from manyeyes.registry.versions import Provenance
from manyeyes.registry.versions import measured as measured_of
from manyeyes.registry.weights import Weights
from manyeyes.runtime.home import home as state_home
from manyeyes.serve.pyfunc import MODEL_CODE
from manyeyes.store import Store, object_key
from manyeyes.tracking.store import experiment_id, locate, open_store

pytestmark = pytest.mark.usefixtures("home")
GATE = GateSection(max_regression=1.0, min_gain=0.3)
PROVENANCE = Provenance(
    recipe="eagle-x5-tiny",
    recipe_digest="r" * 64,
    data={"dataset": "d" * 64},
    experts={"clip": "c" * 64, "sam": "s" * 64},
    revision="abc+dirty",
)


NUM = 1000
"""Questions, so that a difference of a point is decided."""


def measured(value, *, questions="q" * 64, name="charts", count=NUM, code="c", **changes):
    """Return a measurement of one task: ``value`` points of 100, a hit or a miss each."""
    hits = round(count * value / 100)
    task = KeptTaskScore.model_validate({
        "value": value, "blind": 10.0, "floor": 20.0, "constant": "5", "count": count,
        "num_equal": 1, "commonest": "5", "num_equal_labels": 1, "metric": "exact_match",
        "version": 1, "questions": questions, **changes,
    })  # fmt: skip
    outcomes = Outcomes(
        "mean", (1.0,) * hits + (0.0,) * (count - hits), (True,) * count, ("",) * count
    )
    return Measurement.of(KeptScores(tasks={name: task}, split="test", code=code), {name: outcomes})


def enter(folder, content, value, **changes):
    """Register a checkpoint of its own content with one score."""
    path = folder / content
    if not path.exists():
        write_checkpoint(path, content)
    candidate = Candidate("eagle", Weights.of(path), measured(value, **changes), PROVENANCE)
    return register(candidate, GATE, MODEL_CODE)


def aliases():
    return {row.version: row.aliases for row in list_models()}


def test_aliases_move_with_every_promotion_and_evidence_is_kept(tmp_path):
    first = enter(tmp_path, "a", 60.0)
    assert (first.version, first.aliases) == (1, ("candidate", "champion"))
    second = enter(tmp_path, "b", 70.0)
    assert (second.version, second.aliases) == (2, ("candidate", "champion"))
    refused = enter(tmp_path, "c", 40.0)
    assert (refused.version, refused.aliases) == (3, ("candidate",))
    assert not refused.verdict.passed
    assert aliases() == {1: ("previous",), 2: ("champion",), 3: ("candidate",)}
    tags = open_store().get_model_version("eagle", "2").tags
    assert (tags["promoted_from"], tags["evidence"], tags["gate"]) == (
        "1", second.evidence, "passed",
    )  # fmt: skip
    tags = open_store().get_model_version("eagle", "3").tags
    assert tags["gate"] == "refused"
    assert "promoted_at" not in tags


def test_a_champion_is_judged_again_and_nothing_recorded_is_overwritten(tmp_path):
    enter(tmp_path, "a", 80.0)
    before = open_store().get_model_version("eagle", "1").tags
    again = enter(tmp_path, "a", 10.0)
    assert again.verdict.decision == "refused"
    assert again.verdict.reasons == (
        "charts scores 10.0, which is -12 % of the way from 20.0 (always '5') to 100.0, but at "
        "least 30 % is required",
        "version 1 stays champion until another model takes its place",
    )
    after = open_store().get_model_version("eagle", "1").tags
    assert after["scores"] == before["scores"]
    assert {key: after[key] for key in before if key.startswith(("score.", "measured."))} == {
        key: before[key] for key in before if key.startswith(("score.", "measured."))
    }
    kept = [scores.tasks["charts"].value for scores in measured_of(
        open_store().get_model_version("eagle", "1"))]  # fmt: skip
    assert kept == [10.0, 80.0]
    assert list_models()[0].scores["average"] == 80.0
    # The worse measurement makes the champion no easier to beat.
    refused = enter(tmp_path, "b", 60.0)
    assert refused.verdict.decision == "refused"
    assert refused.verdict.reasons[0].startswith(
        "average 60.0 against 80.0 of the champion, version 1, on the same 1,000 questions: -20.0"
    )
    assert aliases() == {1: ("champion",), 2: ("candidate",)}


def test_other_questions_are_undecided_until_the_champion_was_asked_them(tmp_path):
    enter(tmp_path, "a", 80.0)
    other = enter(tmp_path, "b", 90.0, questions="p" * 64, count=500)
    assert (other.verdict.decision, other.aliases) == ("undecided", ("candidate",))
    assert other.verdict.reasons == (
        "the champion, version 1, was not asked the same questions: charts: other questions (500 "
        "here, 1000 there). Ask it the same: run eval of this recipe with --checkpoint on the "
        f"champion's weights ({(tmp_path / 'a').as_uri()}), register these weights with that "
        "report, then register this model again",
    )
    asked = enter(tmp_path, "a", 70.0, questions="p" * 64, count=500)
    assert (asked.version, asked.aliases) == (1, ("candidate", "champion"))
    assert asked.standing != other.standing
    again = enter(tmp_path, "b", 90.0, questions="p" * 64, count=500)
    assert again.verdict.decision == "promoted"
    assert aliases() == {1: ("previous",), 2: ("candidate", "champion")}


def test_a_champion_of_an_older_release_is_asked_again(tmp_path):
    enter(tmp_path, "a", 60.0)
    client = open_store()
    old = KeptScores(tasks={"charts": KeptTaskScore(value=60.0, blind=10.0)})
    client.set_model_version_tag("eagle", "1", "scores", '{"tasks":{"charts":{"value":60.0}}}')
    for key in client.get_model_version("eagle", "1").tags:
        if key.startswith("measured."):
            client.delete_model_version_tag("eagle", "1", key)
    assert list_models()[0].scores["average"] == old.average
    verdict = enter(tmp_path, "b", 90.0).verdict
    assert verdict.decision == "undecided"
    assert "charts: it is not recorded which questions the champion was asked" in verdict.reasons[0]


def test_a_champion_of_someone_else_is_not_taken_for_measured(tmp_path):
    client = open_store()
    client.create_registered_model("eagle")
    client.create_model_version("eagle", source="s3://bucket/model", tags={"scores": "no json"})
    client.set_registered_model_alias("eagle", "champion", "1")
    verdict = enter(tmp_path, "a", 90.0).verdict
    assert verdict.decision == "undecided"
    assert verdict.reasons[0].startswith(
        "the champion, version 1, was not asked the same questions: its registration has no "
        "scores. Ask it the same: run eval of this recipe with --checkpoint on the champion's "
        "weights (s3://bucket/model)"
    )


def test_answers_that_were_lost_are_not_guessed(tmp_path, home):
    enter(tmp_path, "a", 60.0)
    for path in home.glob("mlartifacts/**/measurements/*.json"):
        path.unlink()
    verdict = enter(tmp_path, "b", 90.0).verdict
    assert verdict.decision == "undecided"
    assert "its answers were not kept" in verdict.reasons[0]


def test_the_same_weights_are_the_same_version(tmp_path):
    first = enter(tmp_path, "a", 60.0)
    enter(tmp_path, "b", 70.0)
    again = enter(tmp_path, "a", 60.0)
    assert (again.version, again.adopted, again.aliases) == (1, True, ("candidate", "previous"))
    assert first.adopted is False
    champion = enter(tmp_path, "b", 70.0)
    assert champion.aliases == ("candidate", "champion")
    assert champion.verdict.reasons == (
        "version 2 is the champion already",
        "the task nearest its floor is charts, 62 % of the way up",
    )
    assert aliases() == {1: ("previous",), 2: ("candidate", "champion")}


def test_registrations_at_once_take_turns(tmp_path):
    results = []
    contents = ["a", "b", "b", "c"]
    for content in set(contents):
        write_checkpoint(tmp_path / content, content)

    def register_one(content):
        results.append(enter(tmp_path, content, 60.0))

    threads = [threading.Thread(target=register_one, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result.version for result in results} == {1, 2, 3}
    assert sum(result.adopted for result in results) == 1
    held = [alias for names in aliases().values() for alias in names]
    assert sorted(held) == ["candidate", "champion", "previous"]


def test_the_list_says_what_the_json_promises(tmp_path):
    enter(tmp_path, "a", 60.0)
    (row,) = list_models()
    assert (row.name, row.version, row.aliases) == ("eagle", 1, ("candidate", "champion"))
    assert row.source_digest == read_manifest(tmp_path / "a").digest
    assert row.source == (tmp_path / "a").as_uri()
    assert row.scores == {"average": 60.0, "charts": 60.0, "charts_blind": 10.0}
    assert row.created.endswith("+00:00")


def test_a_list_of_nothing_makes_nothing(home):
    assert list_models() == []
    assert not is_registered("eagle", 1, "d" * 64)
    assert not home.exists()


def test_lineage_names_recipe_data_experts_and_code(tmp_path):
    done = enter(tmp_path, "a", 60.0)
    found = lineage("models:/eagle@champion")
    assert found.provenance == PROVENANCE
    assert found.checkpoint == read_manifest(tmp_path / "a").digest
    assert (found.version, str(found.weights)) == (1, "present")
    assert found.promotion["promoted_from"] == "none"
    assert found.promotion["evidence"] == done.evidence
    assert lineage("models:/eagle/1") == found


def test_a_version_that_knows_its_run_shows_its_scores_there(tmp_path):
    write_checkpoint(tmp_path / "a")
    client = open_store()
    experiment = experiment_id(client, locate())
    run = client.create_run(experiment).info.run_id
    one = measured(60.0)
    candidate = Candidate("eagle", Weights.of(tmp_path / "a"), one, PROVENANCE, run)
    register(candidate, GATE, MODEL_CODE)
    assert client.get_model_version("eagle", "1").run_id == run
    (model,) = client.search_logged_models([experiment])
    assert {metric.key: metric.value for metric in model.metrics} == {
        "score/average": 60.0, "score/charts": 60.0, "score/charts_blind": 10.0,
    }  # fmt: skip


def test_a_version_is_registered_while_it_is_there(tmp_path):
    enter(tmp_path, "a", 60.0)
    digest = read_manifest(tmp_path / "a").digest
    assert is_registered("eagle", 1, digest)
    assert not is_registered("eagle", 2, digest)
    assert not is_registered("eagle", 1, "0" * 64)
    assert not is_registered("other", 1, digest)


def stored_checkpoint(folder, content="weights"):
    """Write a checkpoint that the content store has, too; return its manifest."""
    manifest = write_checkpoint(folder, content)
    store = Store(state_home() / "store")
    store.remember(manifest.fingerprint, store.put(folder, manifest), manifest.digest)
    return manifest


def test_weights_come_back_from_the_store_when_their_folder_is_gone(tmp_path):
    stored_checkpoint(tmp_path / "a")
    enter(tmp_path, "a", 60.0)
    weights = locate_weights("models:/eagle@champion")
    assert weights.source.endswith(".dir")
    assert weights.bring() == tmp_path / "a"
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert str(weights.condition) == "stored"
    path = weights.bring()
    assert (path / "llm.safetensors").read_text(encoding="utf-8") == "weights"
    assert (str(weights.condition), weights.bring()) == ("present", path)


def test_a_folder_that_the_next_run_empties_is_not_named(tmp_path):
    """A pipeline registers from a work folder below home: the store's digest is the address."""
    folder = state_home() / "kfp/eagle-1/sft/model"
    stored_checkpoint(folder)
    weights = Weights.of(folder)
    assert (weights.directory, weights.store) == ("", str(state_home() / "store"))
    assert str(weights.condition) == "stored"


def damage(path, how):
    """Change a file's content and keep its size, times included; or remove it."""
    if how == "missing":
        path.unlink()
        return
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


SAID = {
    "changed": "damaged: {path} does not match the sha256 in the manifest",
    "missing": "damaged: {path} is missing, though the manifest lists it",
}


@pytest.mark.parametrize("how", SAID)
def test_damaged_weights_are_told_and_served_from_the_store(tmp_path, how):
    stored_checkpoint(tmp_path / "a")
    enter(tmp_path, "a", 60.0)
    assert str(lineage("models:/eagle@champion").weights) == "present"
    damage(tmp_path / "a/llm.safetensors", how)
    found = lineage("models:/eagle@champion").weights
    said = SAID[how].format(path=tmp_path / "a/llm.safetensors")
    assert str(found) == f"{said}; the content store has them whole"
    assert (found.state, found.stored) == ("damaged", True)
    kept = locate_weights("models:/eagle@champion").bring()
    assert (kept / "llm.safetensors").read_text(encoding="utf-8") == "weights"
    damage(kept / "llm.safetensors", how)
    assert locate_weights("models:/eagle@champion").bring() == kept
    assert (kept / "llm.safetensors").read_text(encoding="utf-8") == "weights"


@pytest.mark.parametrize("how", SAID)
def test_damaged_weights_without_a_whole_copy_are_not_served(tmp_path, how):
    write_checkpoint(tmp_path / "a", "weights")
    weights = Weights.of(tmp_path / "a")
    damage(tmp_path / "a/llm.safetensors", how)
    said = SAID[how].format(path=tmp_path / "a/llm.safetensors")
    assert str(weights.condition) == said
    with pytest.raises(UserError) as error:
        weights.bring()
    assert str(error.value) == (
        f"{said.removeprefix('damaged: ')}; fetch the artifact again or run its stage again."
    )


def test_a_damaged_object_of_the_store_is_no_whole_copy(tmp_path):
    manifest = stored_checkpoint(tmp_path / "a")
    weights = Weights.of(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    store = Store(state_home() / "store")
    assert str(weights.condition) == "stored"
    path = store.root / object_key(manifest.files["llm.safetensors"].md5)
    damage(path, "changed")
    assert str(weights.condition) == f"damaged: {path} does not match its sha256"
    damage(path, "missing")
    assert str(weights.condition) == "missing"


def test_whole_weights_are_read_once(tmp_path, monkeypatch):
    stored_checkpoint(tmp_path / "a")
    weights = Weights.of(tmp_path / "a")
    assert str(weights.condition) == "present"

    def read(path):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(artifact, "hash_file", read)
    monkeypatch.setattr(verified, "hash_file", read)
    assert str(weights.condition) == "present"
    assert weights.bring() == tmp_path / "a"


def test_weights_that_are_nowhere_are_one_sentence(tmp_path):
    manifest = write_checkpoint(tmp_path / "a", "weights")
    weights = Weights.of(tmp_path / "a")
    # Something else lies in their place now.
    (tmp_path / "a" / "llm.safetensors").unlink()
    (tmp_path / "a" / "manifest.json").unlink()
    assert str(weights.condition) == "missing"
    with pytest.raises(UserError) as error:
        weights.bring()
    assert str(error.value) == (
        f"The weights with digest {manifest.digest[:12]} are neither in {tmp_path}/a nor in the "
        "content store: run the pipeline again, or fetch them with 'dvc pull'."
    )


@pytest.mark.parametrize(
    "name",
    [
        "create_logged_model", "log_model_artifacts", "finalize_logged_model",
        "create_model_version", "set_registered_model_alias",
    ],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registration_that_was_killed_is_completed_not_repeated(
    tmp_path, monkeypatch, name, when
):
    from mlflow import MlflowClient

    class Killed(BaseException):
        """Ends the process there: nothing after it happens."""

    call = getattr(MlflowClient, name)

    def die(*arguments, **options):
        if when == "after":
            call(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, name, die)
        with pytest.raises(Killed):
            enter(tmp_path, "a", 60.0)
    done = enter(tmp_path, "a", 60.0)
    assert (done.version, done.aliases) == (1, ("candidate", "champion"))
    client = open_store()
    (model,) = client.search_logged_models([experiment_id(client, locate())])
    (version,) = client.search_model_versions("name = 'eagle'")
    assert (model.status, version.source) == ("READY", model.artifact_location)
    files = {path.name for path in state_home().glob("mlartifacts/**/*") if path.is_file()}
    assert {"MLmodel", "pyfunc_model.py"} <= files


def test_a_model_is_registered_and_found_whatever_the_folder_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "job%2Fx ?" / "home"))
    enter(tmp_path, "a", 60.0)
    assert [row.aliases for row in list_models()] == [("candidate", "champion")]
    assert lineage("models:/eagle@champion").version == 1
    assert is_registered("eagle", 1, read_manifest(tmp_path / "a").digest)


REFERENCE = (
    "{!r} is not a model reference: write models:/NAME@champion (or another alias) or "
    "models:/NAME/3 (a version); 'manyeyes models' lists what there is."
)


@pytest.mark.parametrize(
    "text", ["eagle", "models:/", "models:/eagle", "models:/e@", "models:/a/b/3"]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(UserError) as error:
        parse(text)
    assert str(error.value) == REFERENCE.format(text)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("models:/eagel@champion", "Unknown model 'eagel': known are eagle; did you mean 'eagle'?"),
        ("models:/eagle@champ", "Unknown alias of eagle 'champ': known are candidate, champion; "
         "did you mean 'champion'?"),
        ("models:/eagle/7", "Unknown version of eagle '7': known are 1."),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_one_sentence(tmp_path, reference, text):
    enter(tmp_path, "a", 60.0)
    with pytest.raises(UserError) as error:
        lineage(reference)
    assert str(error.value) == text


def test_an_empty_registry_says_how_to_fill_it(home):
    with pytest.raises(UserError) as error:
        lineage("models:/eagle@champion")
    assert str(error.value) == (
        f"There is no model 'eagle': nothing was registered in {home}/mlflow.db yet; "
        "'manyeyes run RECIPE' trains and registers one."
    )


def test_a_model_of_someone_else_is_listed_and_has_no_lineage(tmp_path):
    enter(tmp_path, "a", 60.0)
    client = open_store()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source="s3://bucket/model")
    assert [row.name for row in list_models()] == ["eagle", "foreign"]
    with pytest.raises(UserError) as error:
        lineage("models:/foreign/1")
    assert str(error.value) == (
        "models:/foreign/1 was not registered by manyeyes: it names no checkpoint and no lineage."
    )


def test_a_dead_registry_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ManyeyesError) as error:
        enter(tmp_path, "a", 60.0)
    assert str(error.value).startswith("MLflow at http://127.0.0.1:9 did not answer as it should")


def test_a_registered_model_loads_with_mlflow_alone_and_answers(tmp_path, monkeypatch, home):
    write_model(tmp_path / "sft")
    one = measured(60.0)
    candidate = Candidate("eagle", Weights.of(tmp_path / "sft"), one, PROVENANCE)
    register(candidate, GATE, MODEL_CODE)
    import mlflow
    import pandas as pd
    from PIL import Image

    red = Image.new("RGB", (64, 64), "red")
    file = io.BytesIO()
    red.save(file, "PNG")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", locate().uri)
    model = mlflow.pyfunc.load_model("models:/eagle@champion")
    forms = [file.getvalue(), base64.b64encode(file.getvalue()).decode(), red]
    same = pd.DataFrame({"question": ["what is this"] * 3, "image": forms})
    assert len(set(model.predict(same, params={"max_new_tokens": 4}))) == 1
    for path in (__file__, "/etc/passwd", "/dev/zero", "file:///etc/passwd"):
        with pytest.raises(UserError, match="a served model opens no file by its path"):
            model.predict(pd.DataFrame({"question": ["what"], "image": [path]}))
    frame = pd.DataFrame({"question": ["what is this", "what"], "image": [forms[0], None]})
    answers = model.predict(frame, params={"max_new_tokens": 4})
    assert all(answers), answers
    assert answers == model.predict(frame, params={"max_new_tokens": 4})
    assert model.predict(frame, params={"max_new_tokens": 1}) != answers
    stored = [path.name for path in home.glob("mlartifacts/**/*") if path.is_file()]
    assert not [name for name in stored if name.endswith((".pkl", ".safetensors"))]
    assert "pyfunc_model.py" in stored
    # MLflow writes beside the code it loads; the checkpoint stays as its manifest says.
    assert {path.name for path in (tmp_path / "sft").iterdir()} == {
        "manifest.json", *read_manifest(tmp_path / "sft").files,
    }  # fmt: skip
