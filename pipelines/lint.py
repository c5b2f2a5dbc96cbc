"""Checks of a compiled pipeline, without a cluster: schema, references, shapes unsafe on a laptop.

kfp.local 2.17.0 runs some graphs wrongly and says nothing: a loop body gets the loop's item in
place of another task's output, a condition on a named output is skipped. The protobuf schema
accepts references to tasks that do not exist. These checks read the IR as plain dictionaries and
return every problem as one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manyeyes.pipeline.worker import EXECUTOR_REWRITES

Node = dict[str, Any]
"""A part of the IR: JSON whose schema ``schema_problems`` has checked."""

EXECUTOR = "kfp.dsl.executor_main"
CONTAINERIZED = ["python3", "-m", EXECUTOR]
CHANNEL = "pipelinechannel--"
SINGLE_OUTPUT = "Output"
"""Key of a function's only return value; kfp.local resolves no other inside control flow."""
MAX_STEP_BYTES = 120_000
"""Inputs of one step travel in one command line argument, which Linux limits to 128 KiB."""


def problems(documents: list[Node], *, local: bool) -> list[str]:
    """Return everything that is wrong with a compiled pipeline.

    Args:
        documents: the YAML documents of the file: the pipeline, and perhaps its platform part.
        local: the steps shall run under kfp.local too, not only the graph's shape.
    """
    found = schema_problems(documents)
    if found:
        return found
    spec = documents[0]
    found = [*reference_problems(spec), *shape_problems(spec), *value_problems(spec)]
    for document in documents[1:]:
        found += platform_problems(spec, document)
    return [*found, *kind_problems(spec)] if local else found


def schema_problems(documents: list[Node]) -> list[str]:
    """Hold the documents against KFP's protobuf schema."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as schema

    spec = documents[0]
    parts: list[tuple[str, Any, Any]] = [
        ("pipeline", spec, schema.PipelineSpec()),
        ("deploymentSpec", spec.get("deploymentSpec", {}), schema.PipelineDeploymentConfig()),
    ]
    for document in documents[1:]:
        parts.append(("platform", document, schema.PlatformSpec()))
        platform = document.get("platforms", {}).get("kubernetes", {})
        executors = platform.get("deploymentSpec", {}).get("executors", {})
        parts += [
            (name, config, kubernetes.KubernetesExecutorConfig())
            for name, config in executors.items()
        ]
    found = []
    for name, part, message in parts:
        try:
            json_format.ParseDict(part, message)
        except json_format.ParseError as error:
            found.append(f"{name} does not fit KFP's schema: {error}.")
    return found


def reference_problems(spec: Node) -> list[str]:
    """Find names that point nowhere; the schema accepts them."""
    found = []
    components, executors = spec.get("components", {}), spec["deploymentSpec"].get("executors", {})
    for name, component in components.items():
        label = component.get("executorLabel")
        if label is not None and label not in executors:
            found.append(f"{name} refers to executor {label}, which does not exist.")
    for name, component in _dags(spec):
        dag = component["dag"]
        for task_name, task in dag.get("tasks", {}).items():
            where = f"{name}/{task_name}"
            found += [f"{where} {text}" for text in _task_references(task, component, components)]
        for key, selector in _output_selectors(dag):
            producer = selector.get("producerSubtask")
            if not _produces(dag, components, producer, selector):
                found.append(f"{name} returns {key} of {producer}, which does not make it.")
    return found


def _task_references(task: Node, parent: Node, components: Node) -> Iterator[str]:
    tasks = parent["dag"]["tasks"]
    reference = task["componentRef"]["name"]
    if reference not in components:
        yield f"refers to component {reference}, which does not exist."
        return
    for needed in task.get("dependentTasks", []):
        if needed not in tasks:
            yield f"depends on task {needed}, which does not exist."
    for key, source in _inputs(task):
        for output in ("taskOutputParameter", "taskOutputArtifact"):
            selector = source.get(output)
            if selector and not _produces(
                parent["dag"], components, selector.get("producerTask"), selector
            ):
                yield f"reads {key} from {selector.get('producerTask')}, which does not make it."
        outer = source.get("componentInputParameter") or source.get("componentInputArtifact")
        item = task.get("parameterIterator", {}).get("itemInput")
        if outer and outer != item and outer not in _definitions(parent, "inputDefinitions"):
            yield f"reads {key} from its parent's input {outer}, which does not exist."
    given = {key for key, _ in _inputs(task)} | _iterated(task)
    for key, definition in _definitions(components[reference], "inputDefinitions").items():
        optional = definition.get("isOptional") or "defaultValue" in definition
        if key not in given and not optional:
            yield f"does not give {reference} its input {key}."


def platform_problems(spec: Node, document: Node) -> list[str]:
    """Find Kubernetes settings of executors or inputs that do not exist; KFP accepts them."""
    found = []
    inputs = _inputs_around_executors(spec)
    platform = document.get("platforms", {}).get("kubernetes", {})
    for executor, config in platform.get("deploymentSpec", {}).get("executors", {}).items():
        if executor not in inputs:
            found.append(f"There are Kubernetes settings for {executor}, which does not exist.")
            continue
        found += [
            f"The Kubernetes settings of {executor} read the input {name}, which does not exist."
            for name in _values_of("componentInputParameter", config)
            if name not in inputs[executor]
        ]
    return found


def _inputs_around_executors(spec: Node) -> dict[str, set[str]]:
    """Return per executor the inputs of the graph its task stands in: its settings read those."""
    found = {}
    for _, component in _dags(spec):
        for task in component["dag"].get("tasks", {}).values():
            label = spec["components"].get(task["componentRef"]["name"], {}).get("executorLabel")
            if label is not None:
                found[label] = set(_definitions(component, "inputDefinitions"))
    return found


def _values_of(key: str, node: object) -> Iterator[str]:
    """Yield what stands under a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield str(value)
            else:
                yield from _values_of(key, value)
    elif isinstance(node, list):
        for value in node:
            yield from _values_of(key, value)


def shape_problems(spec: Node) -> list[str]:
    """Find the graph shapes that kfp.local runs wrongly or refuses."""
    found = []
    for name, component in _dags(spec):
        for task_name, task in component["dag"].get("tasks", {}).items():
            where = f"{name}/{task_name}"
            found += [f"{where} {text}" for text in _loop_problems(task)]
            found += [f"{where} {text}" for text in _condition_problems(task)]
        for key, output in component["dag"].get("outputs", {}).get("artifacts", {}).items():
            if len(output.get("artifactSelectors", [])) > 1:
                found.append(f"{name} returns artifact {key} of one of several branches.")
        if name != "root":
            artifacts = component.get("inputDefinitions", {}).get("artifacts", {})
            found += [
                f"{name} is a nested pipeline with an artifact as input: {key}."
                for key in artifacts
                if not key.startswith(CHANNEL)
            ]
    return found


def _loop_problems(task: Node) -> Iterator[str]:
    iterator = task.get("parameterIterator")
    if iterator is None and "artifactIterator" not in task:
        return
    items = (iterator or {}).get("items", {}).get("inputParameter")
    for key, source in task.get("inputs", {}).get("parameters", {}).items():
        selector = source.get("taskOutputParameter")
        if selector is None:
            continue
        if key != items:
            yield f"reads the output parameter {key} inside a loop: put it into the loop's items."
        elif selector.get("outputParameterKey") != SINGLE_OUTPUT:
            yield f"loops over the named output {key}: return the list as the only value."


def _condition_problems(task: Node) -> Iterator[str]:
    condition = task.get("triggerPolicy", {}).get("condition")
    if not condition:
        return
    for key, source in task.get("inputs", {}).get("parameters", {}).items():
        selector = source.get("taskOutputParameter")
        if selector and key in condition and selector.get("outputParameterKey") != SINGLE_OUTPUT:
            yield f"has a condition on the named output {key}: return it as the only value."


def value_problems(spec: Node) -> list[str]:
    """Find constants that change on their way to a step, or do not fit through a command line."""
    found = []
    for name, component in _dags(spec):
        for task_name, task in component["dag"].get("tasks", {}).items():
            size = 0
            for key, source in task.get("inputs", {}).get("parameters", {}).items():
                value = source.get("runtimeValue", {}).get("constant")
                where = f"{name}/{task_name} has the input {key}"
                size += len(str(value).encode())
                found += [
                    f"{where} with {text!r}, which kfp.local rewrites."
                    for text in EXECUTOR_REWRITES
                    if text in str(value)
                ]
                if isinstance(value, dict | list) and _has_number(value):
                    found.append(f"{where} with a number in a list, which becomes a float.")
            if size > MAX_STEP_BYTES:
                found.append(f"{name}/{task_name} has {size:,} bytes of inputs: too many for argv.")
    return found


def kind_problems(spec: Node) -> list[str]:
    """Find steps that kfp.local's SubprocessRunner cannot run."""
    found = []
    for name, executor in spec["deploymentSpec"].get("executors", {}).items():
        command = executor.get("container", {}).get("command", [])
        if "container" in executor and not any(EXECUTOR in part for part in command):
            found.append(f"{name} is a container component.")
        elif command[: len(CONTAINERIZED)] == CONTAINERIZED:
            found.append(f"{name} is a Containerized Python Component.")
    return found


def _dags(spec: Node) -> Iterator[tuple[str, Node]]:
    yield "root", spec["root"]
    for name, component in spec.get("components", {}).items():
        if "dag" in component:
            yield name, component


def _inputs(task: Node) -> Iterator[tuple[str, Node]]:
    for sort in ("parameters", "artifacts"):
        yield from task.get("inputs", {}).get(sort, {}).items()


def _iterated(task: Node) -> set[str]:
    iterators = (task.get("parameterIterator", {}), task.get("artifactIterator", {}))
    return {iterator["itemInput"] for iterator in iterators if "itemInput" in iterator}


def _definitions(component: Node, side: str) -> Node:
    definitions = component.get(side, {})
    return {**definitions.get("parameters", {}), **definitions.get("artifacts", {})}


def _output_selectors(dag: Node) -> Iterator[tuple[str, Node]]:
    outputs = dag.get("outputs", {})
    for key, output in outputs.get("artifacts", {}).items():
        for selector in output.get("artifactSelectors", []):
            yield key, selector
    for key, output in outputs.get("parameters", {}).items():
        single = output.get("valueFromParameter")
        several = output.get("valueFromOneof", {}).get("parameterSelectors", [])
        for selector in [single] if single else several:
            yield key, selector


def _produces(dag: Node, components: Node, producer: str | None, selector: Node) -> bool:
    """Say whether a task of this graph makes the output that a selector names."""
    task = dag.get("tasks", {}).get(producer)
    if task is None:
        return False
    component = components.get(task["componentRef"]["name"], {})
    key = selector.get("outputParameterKey") or selector.get("outputArtifactKey")
    return key in _definitions(component, "outputDefinitions")


def _has_number(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_number(part) for part in value.values())
    if isinstance(value, list):
        return any(_has_number(part) for part in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
