"""The objects that OME makes for one component of an InferenceService."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.emulator.api.objects import copied
from tests.emulator.world.cluster_api import owner_reference
from tests.emulator.world.merge import merge
from tests.emulator.world.nodes import GPU

Object = dict[str, Any]
CONTAINER = "ome-container"
PORT = 8080
MAX_LABEL = 63
EXTENSIONS = [
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "labels",
    "annotations",
    "minAvailable",
    "maxUnavailable",
    "deploymentStrategy",
    "timeoutSeconds",
    "kedaConfig",
    "containerConcurrency",
    "batcher",
    "logger",
    "canaryTrafficPercent",
    "runner",
    "leader",
    "worker",
    "config",
    "acceleratorOverride",
]
"""Fields of a component that are not of its pod."""


class Unmergeable(Exception):
    """The reconciler stops here; ``reason`` is that of its event."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Component:
    """One of engine, decoder and router, merged with what the runtime says of it."""

    kind: str
    service: Object
    model: Object | None
    runtime: Object
    spec: Object

    @property
    def name(self) -> str:
        return f"{self.service['metadata']['name']}-{self.kind}"

    @property
    def namespace(self) -> str:
        return str(self.service["metadata"]["namespace"])

    @property
    def ports(self) -> list[Object]:
        """Of the first container, which is the runner unless the runtime has a sidecar."""
        first = self.pod_spec()["containers"][0]
        return first.get("ports") or [{"containerPort": PORT}]

    def labels(self) -> dict[str, str]:
        service = self.service["metadata"]
        found = {**(service.get("labels") or {}), **(self.spec.get("labels") or {})}
        found |= {
            "app": shortened(self.name),
            "component": self.kind,
            "ome.io/inferenceservice": service["name"],
            "serving-runtime": self.runtime["metadata"]["name"],
            "fine-tuned-serving": "false",
        }
        if self.model is not None:
            said = self.model["spec"]
            found |= {"base-model-name": self.model["metadata"]["name"], "base-model-type": "Serving"}
            for label, key in (("base-model-size", "modelParameterSize"), ("base-model-vendor", "vendor")):
                if said.get(key):
                    found[label] = said[key]
        return found

    def pod_spec(self) -> Object:
        """Stages 2 and 3 of the merge: model, environment, sidecars."""
        spec = {key: copied(value) for key, value in self.spec.items() if key not in EXTENSIONS}
        runner = copied(self.spec.get("runner") or {})
        if self.kind == "router":
            for name, value in (self.spec.get("config") or {}).items():
                runner.setdefault("env", []).append({"name": name, "value": value})
        if self.model is not None and self.kind != "router":
            _mount_model(spec, runner, self.model)
        if self.kind == "engine" and (gpus := ((runner.get("resources") or {}).get("limits") or {}).get(GPU)):
            runner.setdefault("env", []).append({"name": "PARALLELISM_SIZE", "value": str(gpus)})
        runner.setdefault("readinessProbe", _default_probe(runner))
        sidecars = spec.get("containers") or []
        same = next((each for each in sidecars if each.get("name") == runner.get("name")), None)
        if same is not None:
            runner = {**merge(same, runner), "args": [*(same.get("args") or ()), *(runner.get("args") or ())]}
        spec["containers"] = [each for each in sidecars if each is not same] + [runner]
        return spec

    def deployment(self) -> Object:
        labels = self.labels()
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        annotations = self.spec.get("annotations") or {}
        spec = {
            "replicas": self.spec.get("minReplicas", 1),
            "selector": {"matchLabels": {"app": labels["app"]}},
            "template": {"metadata": {"labels": labels, "annotations": dict(annotations)}, "spec": self.pod_spec()},
            "strategy": self.spec.get("deploymentStrategy") or rolling,
            "progressDeadlineSeconds": 600,
        }
        return self._object("apps/v1", "Deployment", self.name, spec)

    def network_service(self) -> Object:
        ports = [
            {"name": port.get("name") or "http", "port": port["containerPort"], "targetPort": port["containerPort"]}
            for port in self.ports
        ]
        spec = {"ports": ports, "selector": {"app": shortened(self.name)}}
        return self._object("v1", "Service", self.name, spec)

    def autoscaler(self) -> Object:
        target = {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
        }
        spec = {
            "minReplicas": self.spec.get("minReplicas", 1),
            "maxReplicas": self.spec.get("maxReplicas", 3),
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
            "metrics": [target],
        }
        return self._object("autoscaling/v2", "HorizontalPodAutoscaler", self.name, spec)

    def _object(self, version: str, kind: str, name: str, spec: Object) -> Object:
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [owner_reference(self.service)],
        }
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def components(service: Object, model: Object | None, runtime: Object) -> list[Component]:
    """The components that a service declares, merged; raises Unmergeable."""
    spec, said = service["spec"], runtime["spec"]
    if spec.get("engine") is None:
        raise Unmergeable("DeploymentModeError", "engine component is required")
    if spec["engine"].get("minReplicas") == 0:
        raise Unmergeable("ServerlessModeRejected", "Serverless deployments need Knative, which is not installed")
    if spec["engine"].get("leader") is not None:
        raise Unmergeable("InternalError", "the LeaderWorkerSet CRD is not installed")
    found = []
    for kind in ("engine", "decoder", "router"):
        if spec.get(kind) is not None:
            merged = merge(said.get(f"{kind}Config") or {}, spec[kind])
            if "{{" in str(merged.get("runner")) and "{{.Name}}" not in str(merged.get("runner")):
                raise Unmergeable("InternalError", "failed to replace placeholders: template: unexpected {{")
            found.append(Component(kind, service, model, runtime, merged))
    return found


def external_service(service: Object, parts: list[Component]) -> Object:
    """The Service that is named like the InferenceService, in front of the router or else the engine."""
    front = next((part for part in parts if part.kind == "router"), parts[0])
    port = front.ports[0]["containerPort"]
    name = service["metadata"]["name"]
    selector = {"ome.io/inferenceservice": name, "component": front.kind}
    metadata = {
        "name": name,
        "namespace": service["metadata"]["namespace"],
        "labels": {"ome.io/inferenceservice": name, "component": "external-service"},
        "ownerReferences": [owner_reference(service)],
    }
    spec = {"ports": [{"name": "http", "port": port, "targetPort": port}], "selector": selector}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def model_config(service: Object) -> Object:
    """Named by the last 20 characters, so that it may be somebody else's already."""
    name = service["metadata"]["name"]
    metadata = {
        "name": f"modelconfig-{name[-20:]}",
        "namespace": service["metadata"]["namespace"],
        "ownerReferences": [owner_reference(service)],
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"models.json": "[]"}}


def shortened(name: str) -> str:
    """A label value of at most 63 characters."""
    if len(name) <= MAX_LABEL:
        return name
    return f"{name[: MAX_LABEL - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def node_label(model: Object) -> str:
    """The label of the nodes on which a model is ready."""
    metadata = model["metadata"]
    if namespace := metadata.get("namespace"):
        return f"models.ome.io/{namespace}.basemodel.{metadata['name']}"
    return f"models.ome.io/clusterbasemodel.{metadata['name']}"


def storage_path(model: Object) -> str:
    return str((model["spec"].get("storage") or {}).get("path") or "")


def _mount_model(spec: Object, runner: Object, model: Object) -> None:
    spec.setdefault("nodeSelector", {})[node_label(model)] = "Ready"
    path, name = storage_path(model), model["metadata"]["name"]
    if not path:
        return
    environment = runner.setdefault("env", [])
    if not any(variable["name"] == "MODEL_PATH" for variable in environment):
        environment.append({"name": "MODEL_PATH", "value": path})
    volume = {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    spec.setdefault("volumes", []).append(volume)
    runner.setdefault("volumeMounts", []).append({"name": name, "mountPath": path, "readOnly": True})


def _default_probe(runner: Mapping[str, Any]) -> Object:
    ports = runner.get("ports") or [{"containerPort": PORT}]
    return {
        "tcpSocket": {"port": ports[0]["containerPort"]},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
