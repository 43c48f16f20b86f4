"""Whether a manifest is one: Kubernetes' own schemas, and of other kinds what is used here."""

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
_PYTORCHJOB_SPEC = _object(
    nprocPerNode=_TEXT,
    elasticPolicy=_object(
        minReplicas=_NUMBER,
        maxReplicas=_NUMBER,
        maxRestarts=_NUMBER,
        rdzvBackend=_TEXT,
        rdzvHost=_TEXT,
        rdzvPort=_NUMBER,
        rdzvId=_TEXT,
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
) | {"required": ["pytorchReplicaSpecs"]}

_LABELS = {"type": "object", "additionalProperties": _TEXT}
_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
_METADATA = _object(name=_NAME, labels=_LABELS, annotations=_LABELS)

# As kubernetes-sigs/jobset has it in api/jobset/v1alpha2/jobset_types.go. Templates are Jobs, checked below.
_JOBSET_SPEC = _object(
    failurePolicy=_object(maxRestarts=_NUMBER),
    replicatedJobs={
        "type": "array",
        "items": _object(
            name=_TEXT,
            replicas=_NUMBER,
            template=_object(metadata=_METADATA, spec={"type": "object"}),
        ),
    },
)

_KINDS = {
    ("kubeflow.org/v1", "PyTorchJob"): _PYTORCHJOB_SPEC,
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): _JOBSET_SPEC,
    # kubeflow/trainer, pkg/apis/trainer/v1alpha1.
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): _object(
        mlPolicy=_object(numNodes=_NUMBER), template=_object(spec=_JOBSET_SPEC)
    ),
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): _object(
        runtimeRef=_object(apiGroup=_TEXT, kind=_TEXT, name=_TEXT),
        trainer=_object(args={"type": "array", "items": _TEXT}),
    ),
    # prometheus-operator, pkg/apis/monitoring/v1/podmonitor_types.go.
    ("monitoring.coreos.com/v1", "PodMonitor"): _object(
        selector=_object(matchLabels=_LABELS),
        podMetricsEndpoints={"type": "array", "items": _object(port=_TEXT, interval=_TEXT)},
    ),
}


def check_manifest(document: dict[str, Any]) -> None:
    """Raise if a cluster would refuse it, or ignore a part of it."""
    kind = document["apiVersion"], document["kind"]
    if kind not in _KINDS:
        _validate(document)
        return
    known = {"const": kind[0]}, {"const": kind[1]}
    jsonschema.validate(
        document,
        _object(apiVersion=known[0], kind=known[1], metadata=_METADATA, spec=_KINDS[kind])
        | {"required": ["apiVersion", "kind", "metadata", "spec"]},
    )
    for job in replicated_jobs(document):
        _validate(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": job["name"]} | job["template"].get("metadata", {}),
                "spec": job["template"]["spec"],
            }
        )
    if kind[1] == "PyTorchJob":
        template = document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        containers = [container["name"] for container in template["spec"]["containers"]]
        assert "pytorch" in containers, (
            "the operator hands its variables to a container of this name"
        )
        # A PodTemplate is the kind that has nothing but such a template.
        pod = {"metadata": {"name": "x"}, "template": template}
        _validate({"apiVersion": "v1", "kind": "PodTemplate"} | pod)


def replicated_jobs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the Jobs that a JobSet, or the runtime of a TrainJob, is made of."""
    spec = document["spec"]
    if document["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]
    return list(spec.get("replicatedJobs", []))


def pod_template(document: dict[str, Any]) -> dict[str, Any]:
    """Return the template of its pods."""
    spec = document["spec"]
    if document["kind"] == "PyTorchJob":
        spec = spec["pytorchReplicaSpecs"]["Worker"]
    for job in replicated_jobs(document):
        spec = job["template"]["spec"]
    return dict(spec["template"])


def _validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
