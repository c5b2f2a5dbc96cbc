"""Compiling the pipeline of a recipe to KFP IR YAML: the same recipe gives the same bytes.

Nothing is written that would not run: the result is held against KFP's schema, its references and
the shapes that kfp.local runs wrongly, for laptop and cluster, since both run one graph. For a
cluster, what is about to be written is also searched for secrets.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyeyes.artifact.destination import claim_file
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.config.profile import ClusterProfile
from manyeyes.config.recipe import Recipe
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.kubeflow.pipelines.secrets import refuse_secrets
from manyeyes.runtime.locks import temporary

if TYPE_CHECKING:
    from manyeyes.kubeflow.pipelines.lint import Node


@dataclass(frozen=True)
class Compiled:
    """A recipe's pipeline for one cluster, as KFP stores it."""

    pipeline: str
    """Name of the pipeline; one per recipe."""
    text: str
    """The IR YAML."""

    @property
    def digest(self) -> str:
        """Return the sha256 of the IR YAML."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def version(self) -> str:
        """Name of the pipeline version: equal content has equal names."""
        return f"{self.pipeline}-{self.digest[:12]}"


def compile_pipeline(
    recipe: Recipe, profile: ClusterProfile | None, out: Path, *, gitops: bool = False
) -> None:
    """Write the pipeline of a recipe.

    Args:
        recipe: the checked recipe.
        profile: the cluster it shall run on; None compiles what ``run`` runs.
        out: the ``.yaml`` file to write, atomically.
        gitops: write KFP's Kubernetes resources around the IR, for ``kubectl apply``.

    Raises:
        UserError: the recipe is too long for KFP, a secret would be written, or ``out`` cannot be
            written.
    """
    if out.is_dir() or not out.name.endswith((".yaml", ".yml")):
        raise UserError(f"Cannot compile to {out}: give the path of a .yaml file with -o.")
    real = claim_file(out, is_ours=_is_compiled, option="-o")
    if gitops and profile is None:
        raise UserError("--gitops writes resources of a cluster: name its profile with --profile.")
    text = pipeline_yaml(recipe, profile)
    if gitops and profile is not None:
        text = manifest_yaml(recipe, profile, text)
    try:
        atomic_write_text(real, text)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror}; choose another -o.") from None


def _is_compiled(text: str) -> bool:
    """Say whether a file is a compiled pipeline, which may be compiled again."""
    lines = text.splitlines()
    ir = any(line.startswith("schemaVersion:") for line in lines) and "pipelineInfo:" in lines
    return ir or "kind: PipelineVersion" in lines


def pipeline_yaml(recipe: Recipe, profile: ClusterProfile | None) -> str:
    """Return the checked IR YAML of a recipe's pipeline."""
    from manyeyes.kubeflow.pipelines import lint
    from manyeyes.kubeflow.pipelines.training import build

    text = _compile(build(recipe, profile))
    found = lint.problems(read_documents(text), local=profile is None)
    if found:  # a bug in the definition of the pipeline, which the tests would have shown
        raise ManyeyesError("\n".join(found))
    if profile is not None:
        refuse_secrets({"the compiled pipeline": text}, profile.kubeflow.token_variable)
    return text


def compile_for(recipe: Recipe, profile: ClusterProfile) -> Compiled:
    """Return a recipe's pipeline under the names it has in KFP."""
    return Compiled(_resource_name(recipe.name), pipeline_yaml(recipe, profile))


def manifest_yaml(recipe: Recipe, profile: ClusterProfile, text: str) -> str:
    """Return the resources Pipeline and PipelineVersion that hold a compiled pipeline.

    Args:
        recipe: the checked recipe.
        profile: the cluster, whose namespace the resources are for.
        text: the IR YAML; the version is named by its digest.
    """
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from manyeyes.kubeflow.pipelines.training import build

    compiled = Compiled(_resource_name(recipe.name), text)
    options = KubernetesManifestOptions(
        pipeline_name=compiled.pipeline,
        pipeline_display_name=recipe.name,
        pipeline_version_name=compiled.version,
        pipeline_version_display_name=compiled.version,
        namespace=profile.kubeflow.namespace,
        include_pipeline_manifest=True,
    )
    return _compile(
        build(recipe, profile),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )


def read_documents(text: str) -> list[Node]:
    """Return the YAML documents of a compiled pipeline, read by what kfp writes them with."""
    import yaml

    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _compile(pipeline: Any, **options: Any) -> str:  # noqa: ANN401  (kfp ships no types)
    """Return what kfp's compiler writes (it writes files only), without the comment above it.

    The comment repeats the inputs' defaults in the order of a protobuf map, which differs from one
    process to the next.
    """
    from kfp import compiler

    with temporary() as folder:
        path = folder / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path), **options)
        text = path.read_text(encoding="utf-8")
    return "".join(dropwhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def _resource_name(name: str) -> str:
    """Return a recipe's name as Kubernetes allows it for a resource."""
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
