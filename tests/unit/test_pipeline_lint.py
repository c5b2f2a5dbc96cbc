"""The checks of a compiled pipeline: each unsafe shape is found, and a safe one is left alone."""

import copy
from collections.abc import Callable
from typing import Any, List, NamedTuple  # noqa: UP035 - kfp's type check knows these names

import pytest
from google.protobuf import json_format
from kfp import dsl

from manyeyes.kubeflow.pipelines import lint

Spec = dict[str, Any]


def component(function: Callable[..., Any]) -> Any:
    return dsl.component(function, base_image="python", install_kfp_package=False)


def make_numbers() -> List[int]:  # noqa: UP006
    return [1, 2]


def make_named() -> NamedTuple("Outputs", [("numbers", List[int]), ("word", str)]):  # noqa: UP006
    return [1, 2], "yes"


def make_word() -> str:
    return "yes"


def make_data(data: dsl.Output[dsl.Dataset]) -> str:
    return data.path


def read_data(data: dsl.Input[dsl.Dataset]) -> None:
    assert data.path


def use(number: int = 1, word: str = "") -> int:
    return number + len(word)


def use_many(numbers: List[int]) -> None:  # noqa: UP006
    assert numbers


def hold(config: dict) -> None:
    assert config


numbers, named, word, data, reader, user, users, holder = map(
    component,
    (make_numbers, make_named, make_word, make_data, read_data, use, use_many, hold),
)


@dsl.container_component
def container() -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="busybox", command=["true"])


containerized = dsl.component(
    make_word, base_image="python", target_image="python", install_kfp_package=False
)


@dsl.pipeline
def nested_reader(given: dsl.Input[dsl.Dataset]) -> None:
    reader(data=given)


@dsl.pipeline
def nested_user(given: str) -> None:
    user(word=given)


def loop_reads_output() -> None:
    source = word()
    with dsl.ParallelFor([1, 2]) as item:
        user(number=item, word=source.output)


def loop_reads_output_through_nested_pipeline() -> None:
    source = word()
    with dsl.ParallelFor([1, 2]):
        nested_user(given=source.output)


def loop_over_named_output() -> None:
    with dsl.ParallelFor(named().outputs["numbers"]) as item:
        user(number=item)


def condition_on_named_output() -> None:
    with dsl.If(named().outputs["word"] == "yes"):
        user()


def nested_pipeline_takes_artifact() -> None:
    nested_reader(given=data().outputs["data"])


def one_of_artifacts() -> dsl.Dataset:
    with dsl.If(word().output == "yes"):
        first = data()
    with dsl.Else():
        second = data()
    return dsl.OneOf(first.outputs["data"], second.outputs["data"])


def number_in_a_mapping() -> None:
    holder(config={"steps": 4})


def python3_in_a_parameter() -> None:
    user(word="use python3 please")


def long_parameter() -> None:
    user(word="x" * 130_000)


def container_step() -> None:
    container()


def containerized_step() -> None:
    containerized()


def safe() -> None:
    end = user().set_caching_options(False)
    source, made = numbers(), data()
    with dsl.ParallelFor(source.output) as item:
        inner = user(number=item)
        reader(data=made.outputs["data"])
    users(numbers=dsl.Collected(inner.output))
    with dsl.If(word().output == "yes"):
        user(word=f"{made.outputs['Output']}").after(end)
    with dsl.If(named().outputs["word"] == "yes"):
        user()
    with dsl.Else():
        user()


def compiled(body: Callable[..., Any]) -> Spec:
    pipeline = dsl.pipeline(name="case")(body)
    spec: Spec = json_format.MessageToDict(pipeline.pipeline_spec)
    return spec


SHAPES = [
    (
        loop_reads_output,
        "root/for-loop-2 reads the output parameter pipelinechannel--make-word-Output "
        "inside a loop: put it into the loop's items.",
    ),
    (
        loop_reads_output_through_nested_pipeline,
        "root/for-loop-2 reads the output parameter pipelinechannel--make-word-Output "
        "inside a loop: put it into the loop's items.",
    ),
    (
        loop_over_named_output,
        "root/for-loop-1 loops over the named output "
        "pipelinechannel--make-named-numbers: return the list as the only value.",
    ),
    (
        condition_on_named_output,
        "root/condition-1 has a condition on the named output "
        "pipelinechannel--make-named-word: return it as the only value.",
    ),
    (
        nested_pipeline_takes_artifact,
        "comp-nested-reader is a nested pipeline with an artifact as input: given.",
    ),
    (
        one_of_artifacts,
        "comp-condition-branches-1 returns artifact "
        "pipelinechannel--condition-branches-1-oneof-1 of one of several branches.",
    ),
    (
        number_in_a_mapping,
        "root/hold has the input config with a number in a list, which becomes a float.",
    ),
    (
        python3_in_a_parameter,
        "root/use has the input word with 'python3', which kfp.local rewrites.",
    ),
    (
        long_parameter,
        "root/use has 130,000 bytes of inputs: too many for argv.",
    ),
    (
        container_step,
        "exec-container is a container component.",
    ),
    (
        containerized_step,
        "exec-make-word is a Containerized Python Component.",
    ),
]


@pytest.mark.parametrize(
    ("body", "problem"), SHAPES, ids=lambda part: getattr(part, "__name__", "")
)
def test_a_shape_that_kfp_local_runs_wrongly_is_found(
    body: Callable[..., Any], problem: str
) -> None:
    assert lint.problems([compiled(body)], local=True) == [problem]


def test_shapes_that_kfp_local_runs_rightly_are_left_alone() -> None:
    assert lint.problems([compiled(safe)], local=True) == []


def test_the_kind_of_a_step_matters_on_the_laptop_alone() -> None:
    assert lint.problems([compiled(containerized_step)], local=False) == []


def chain() -> None:
    source = word()
    made = data().after(source)
    user(word=source.output)
    reader(data=made.outputs["data"])


def at(spec: Spec, path: str) -> Any:
    node: Any = spec
    for key in path.split("/"):
        node = node[key]
    return node


MUTATIONS = [
    ("root/dag/tasks/use/componentRef", "name", "comp-nobody",
     "root/use refers to component comp-nobody, which does not exist."),
    ("components/comp-use", "executorLabel", "exec-nobody",
     "comp-use refers to executor exec-nobody, which does not exist."),
    ("root/dag/tasks/make-data", "dependentTasks", ["nobody"],
     "root/make-data depends on task nobody, which does not exist."),
    ("root/dag/tasks/use/inputs/parameters/word/taskOutputParameter", "producerTask", "nobody",
     "root/use reads word from nobody, which does not make it."),
    ("root/dag/tasks/read-data/inputs/artifacts/data/taskOutputArtifact", "outputArtifactKey", "no",
     "root/read-data reads data from make-data, which does not make it."),
    ("root/dag/tasks/use/inputs/parameters", "word", {"componentInputParameter": "nothing"},
     "root/use reads word from its parent's input nothing, which does not exist."),
    ("root/dag/tasks/read-data", "inputs", {},
     "root/read-data does not give comp-read-data its input data."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "key", "value", "problem"), MUTATIONS)
def test_a_dangling_reference_is_found(path: str, key: str, value: object, problem: str) -> None:
    spec = copy.deepcopy(compiled(chain))
    assert lint.problems([spec], local=True) == []
    at(spec, path)[key] = value
    assert lint.problems([spec], local=True) == [problem]


SCHEMA = [
    ("root/dag", "taskz", {}, "pipeline does not fit KFP's schema: "),
    ("components/comp-use", "executorLabel", 7, "pipeline does not fit KFP's schema: "),
    ("deploymentSpec/executors/exec-use/container", "imag", "x", "deploymentSpec does not fit"),
]


@pytest.mark.parametrize(("path", "key", "value", "problem"), SCHEMA)
def test_what_the_protobuf_schema_does_not_know_is_found(
    path: str, key: str, value: object, problem: str
) -> None:
    spec = copy.deepcopy(compiled(chain))
    at(spec, path)[key] = value
    (found,) = lint.problems([spec], local=True)
    assert found.startswith(problem)


def test_a_platform_document_is_held_against_its_schema() -> None:
    platform = {
        "platforms": {
            "kubernetes": {"deploymentSpec": {"executors": {"exec-use": {"nodeSelektor": {}}}}}
        }
    }
    found = lint.problems([compiled(chain), platform], local=True)
    assert found[0].startswith("exec-use does not fit KFP's schema: ")
