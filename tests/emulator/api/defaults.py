"""What the real server fills into built-in objects, and what it refuses of them beyond their schema."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterator, Mapping

from tests.emulator.api.errors import FieldFault
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.objects import at
from tests.emulator.api.schema import invalid, required

RBAC = "rbac.authorization.k8s.io"
WORKLOADS = ("deployments.apps", "replicasets.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch")


def apply(kind: Kind, value: Object) -> None:
    """Fill in the defaults of a built-in object, in place; any number of times."""
    if kind.resource in DEFAULTS:
        DEFAULTS[kind.resource](value)
    if kind.resource in WORKLOADS and "template" in value.get("spec", {}):
        _pod_spec(value["spec"]["template"].setdefault("spec", {}))


def _missing(part: Object, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        part.setdefault(key, value)


def _pod(value: Object) -> None:
    _pod_spec(value.setdefault("spec", {}))
    _missing(value.setdefault("status", {}), {"phase": "Pending", "qosClass": "BestEffort"})


def _pod_spec(spec: Object) -> None:
    given = {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    _missing(spec, given | {"terminationGracePeriodSeconds": 30, "securityContext": {}})
    for container in [*spec.get("containers", ()), *spec.get("initContainers", ())]:
        _container(container)


def _container(container: Object) -> None:
    image = container.get("image", "").rpartition("/")[2]
    policy = "Always" if image.endswith(":latest") or (":" not in image and "@" not in image) else "IfNotPresent"
    given = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
    _missing(container, given | {"imagePullPolicy": policy, "resources": {}})
    resources = container["resources"]
    if resources.get("limits"):
        resources["requests"] = dict(resources["limits"]) | (resources.get("requests") or {})
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        if name in container:
            times = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
            _missing(container[name], times)
            if "httpGet" in container[name]:
                _missing(container[name]["httpGet"], {"scheme": "HTTP", "path": "/"})


def _service(value: Object) -> None:
    spec = value.setdefault("spec", {})
    _missing(spec, {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"})
    if spec["type"] != "ExternalName":
        spec.setdefault("clusterIP", _loopback_address())
        spec["clusterIPs"] = [spec["clusterIP"]]
        _missing(spec, {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})
    for port in spec.get("ports", ()):
        _missing(port, {"protocol": "TCP", "targetPort": port.get("port")})
    value.setdefault("status", {"loadBalancer": {}})


def _loopback_address() -> str:
    """An address of its own in 127.64.0.0 .. 127.255.255.254: what listens there is reached from this machine only."""
    return f"127.{64 + secrets.randbelow(192)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


def _deployment(value: Object) -> None:
    spec = value.setdefault("spec", {})
    spec.setdefault("strategy", {}).setdefault("type", "RollingUpdate")
    if spec["strategy"]["type"] == "RollingUpdate":
        _missing(spec["strategy"].setdefault("rollingUpdate", {}), {"maxSurge": "25%", "maxUnavailable": "25%"})
    _missing(spec, {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600})
    value.setdefault("status", {})


def _replicas(value: Object) -> None:
    value.setdefault("spec", {}).setdefault("replicas", 1)
    value.setdefault("status", {}).setdefault("replicas", 0)


def _job(value: Object) -> None:
    spec = value.setdefault("spec", {})
    _missing(spec, {"completions": 1, "parallelism": 1, "backoffLimit": 6})
    _missing(spec, {"completionMode": "NonIndexed", "suspend": False})
    uid = value["metadata"].get("uid")
    if uid and not spec.get("manualSelector"):
        label = "batch.kubernetes.io/controller-uid"
        spec.setdefault("selector", {"matchLabels": {label: uid}})
        metadata = spec.setdefault("template", {}).setdefault("metadata", {})
        name = value["metadata"]["name"]
        names = {"job-name": name, "batch.kubernetes.io/job-name": name, "controller-uid": uid, label: uid}
        metadata["labels"] = names | (metadata.get("labels") or {})
    value.setdefault("status", {})


def _namespace(value: Object) -> None:
    if "deletionTimestamp" not in value["metadata"]:
        value.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    value.setdefault("status", {}).setdefault("phase", "Active")
    labels = value["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = value["metadata"].get("name", "")


def _secret(value: Object) -> None:
    value.setdefault("type", "Opaque")
    for key, text in value.pop("stringData", {}).items():
        value.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _binding(value: Object) -> None:
    value.get("roleRef", {}).setdefault("apiGroup", RBAC)
    for subject in value.get("subjects", ()):
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", RBAC)


def _claim(value: Object) -> None:
    value.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    value.setdefault("status", {}).setdefault("phase", "Pending")


def _event(value: Object) -> None:
    _missing(value, {"source": {}, "reportingComponent": "", "reportingInstance": ""})


DEFAULTS: Mapping[str, Callable[[Object], None]] = {
    "pods": _pod,
    "services": _service,
    "namespaces": _namespace,
    "secrets": _secret,
    "events": _event,
    "persistentvolumeclaims": _claim,
    "persistentvolumes": lambda value: value.setdefault("status", {}).setdefault("phase", "Available"),
    "nodes": lambda value: value.setdefault("status", {}),
    "deployments.apps": _deployment,
    "replicasets.apps": _replicas,
    "statefulsets.apps": _replicas,
    "jobs.batch": _job,
    "horizontalpodautoscalers.autoscaling": lambda value: value.setdefault("spec", {}).setdefault("minReplicas", 1),
    f"rolebindings.{RBAC}": _binding,
    f"clusterrolebindings.{RBAC}": _binding,
}


def faults(kind: Kind, value: Object) -> Iterator[FieldFault]:
    """What the real server refuses of a built-in object beyond its schema."""
    if kind.resource == "pods":
        yield from _pod_faults(value.get("spec") or {}, "spec")
    elif kind.resource in WORKLOADS:
        yield from _workload_faults(kind, value.get("spec") or {})
    elif kind.resource == "services" and _needs_ports(value["spec"]):
        yield required("spec.ports")


def _needs_ports(spec: Object) -> bool:
    return not spec.get("ports") and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None"


def _workload_faults(kind: Kind, spec: Object) -> Iterator[FieldFault]:
    template = spec.get("template") or {}
    yield from _pod_faults(template.get("spec") or {}, "spec.template.spec")
    wanted = at(spec, "selector.matchLabels") or {}
    labels = at(template, "metadata.labels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        why = "`selector` does not match template `labels`"
        yield invalid("spec.template.metadata.labels", str(labels), why)
    if kind.resource == "jobs.batch" and at(template, "spec.restartPolicy") == "Always":
        detail = 'Unsupported value: "Always": supported values: "OnFailure", "Never"'
        yield FieldFault("spec.template.spec.restartPolicy", "FieldValueNotSupported", detail)


def _pod_faults(spec: Object, path: str) -> Iterator[FieldFault]:
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    seen: set[str] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        place = f"{path}.containers[{index}]"
        name = container.get("name", "")
        if container.get("name") == "":
            yield required(f"{place}.name")
        if name in seen:
            yield FieldFault(f"{place}.name", "FieldValueDuplicate", f'Duplicate value: "{name}"')
        seen.add(name)
        if not container.get("image"):
            yield required(f"{place}.image")
        yield from _resource_faults(container.get("resources") or {}, f"{place}.resources")
        for number, variable in enumerate(container.get("env") or ()):
            if variable.get("value") and variable.get("valueFrom"):
                why = "may not be specified when `value` is not empty"
                yield invalid(f"{place}.env[{number}].valueFrom", '""', why)


def _resource_faults(resources: Object, path: str) -> Iterator[FieldFault]:
    """Extended resources (GPUs) cannot be overcommitted: a limit, and a request that equals it."""
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name, amount in requests.items():
        if "/" not in name:
            continue
        if name not in limits:
            why = "Limit must be set for non overcommitable resources"
            yield FieldFault(f"{path}.limits", "FieldValueRequired", f"Required value: {why}")
        elif str(limits[name]) != str(amount):
            yield invalid(f"{path}.requests", f'"{amount}"', f"must be equal to {name} limit of {limits[name]}")
