"""Whether a manifest is one: Kubernetes' own schemas, and of Kubeflow's PyTorchJob what is used here."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

# Old enough that clusters have it, and what is used is in it: Job.spec.backoffLimitPerIndex (1.29).
KUBERNETES = "1.29"

_TEXT, _NUMBER = {"type": "string"}, {"type": "integer", "format": "int32"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


# The fields of the CRD that the example uses, by name and type, as kubeflow/trainer has them in its branch
# release-1.9 (manifests/base/crds/kubeflow.org_pytorchjobs.yaml). There `rdzvBackend` is a string without
# `enum`; the webhook (pkg/webhooks/pytorch) wants Worker with elasticPolicy and a container "pytorch".
PYTORCHJOB = _object(
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "PyTorchJob"},
    metadata=_object(name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}),
    spec=_object(
        nprocPerNode=_TEXT,
        elasticPolicy=_object(
            minReplicas=_NUMBER,
            maxReplicas=_NUMBER,
            maxRestarts=_NUMBER,
            rdzvBackend=_TEXT,
            rdzvHost=_TEXT,
            rdzvPort=_NUMBER,
            rdzvId=_TEXT,
            rdzvConf={"type": "array", "items": _object(key=_TEXT, value=_TEXT)},
        ),
        pytorchReplicaSpecs=_object(
            Worker=_object(
                replicas={"type": "integer", "minimum": 1},
                restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
                # Checked as what it is, a PodTemplateSpec, below.
                template={"type": "object"},
            )
        )
        | {"required": ["Worker"]},
    )
    | {"required": ["pytorchReplicaSpecs"]},
) | {"required": ["apiVersion", "kind", "metadata", "spec"]}


def check_manifest(document: dict[str, Any]) -> None:
    """Raise if a cluster would refuse it, or ignore a part of it."""
    if document["kind"] != "PyTorchJob":
        _validate(document)
        return
    jsonschema.validate(document, PYTORCHJOB)
    template = document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    containers = [container["name"] for container in template["spec"]["containers"]]
    assert "pytorch" in containers, "the operator hands its variables to a container of this name"
    # A PodTemplate is the kind that has nothing but such a template.
    _validate(
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    )


def _validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
