"""The kinds that the server serves: a table of built-in ones, and those that CRDs add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One resource; ``resource`` ("pods", "deployments.apps") names it everywhere in the emulator."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    """All served versions, the stored one first; empty: only ``version``."""
    status: bool = False
    """Has a status subresource."""
    generation: bool = False
    """``metadata.generation`` counts changes of the spec."""
    subresources: tuple[str, ...] = ()
    """Beside ``status``."""
    custom: bool = False
    immutable: tuple[str, ...] = ()
    """Dotted paths that an update cannot change."""
    returns_deleted: bool = False
    """DELETE answers with the object where others answer with a Status."""
    schemas: Mapping[str, Object] = field(default_factory=dict, compare=False, repr=False)
    """Of a custom kind: its OpenAPI schema by version."""

    @property
    def resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        return api_version(self.group, self.version)

    @property
    def served(self) -> tuple[str, ...]:
        return self.versions or (self.version,)

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"

    @property
    def singular(self) -> str:
        return self.kind.lower()


def api_version(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


def _core(plural: str, kind: str, **more: Any) -> Kind:
    return Kind("", "v1", plural, kind, **more)


def _apps(plural: str, kind: str, short: str) -> Kind:
    return Kind(
        "apps",
        "v1",
        plural,
        kind,
        short=(short,),
        status=True,
        generation=True,
        subresources=("scale",),
        immutable=("spec.selector",),
    )


def _wide(group: str, plural: str, kind: str, **more: Any) -> Kind:
    return Kind(group, "v1", plural, kind, namespaced=False, **more)


def _rbac(plural: str, kind: str, *, namespaced: bool) -> Kind:
    immutable = ("roleRef",) if kind.endswith("Binding") else ()
    return Kind("rbac.authorization.k8s.io", "v1", plural, kind, namespaced, immutable=immutable)


CRD = "customresourcedefinitions.apiextensions.k8s.io"
BUILT_IN = (
    _core("namespaces", "Namespace", namespaced=False, short=("ns",), status=True, subresources=("finalize",)),
    _core(
        "pods",
        "Pod",
        short=("po",),
        status=True,
        generation=True,
        subresources=("log", "exec", "portforward", "binding", "eviction"),
        returns_deleted=True,
    ),
    _core("services", "Service", short=("svc",), status=True, immutable=("spec.clusterIP",), returns_deleted=True),
    _core("endpoints", "Endpoints", short=("ep",)),
    _core("events", "Event", short=("ev",)),
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("secrets", "Secret", immutable=("type",)),
    _core("serviceaccounts", "ServiceAccount", short=("sa",), subresources=("token",), returns_deleted=True),
    _core(
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        short=("pvc",),
        status=True,
        immutable=("spec.accessModes", "spec.storageClassName"),
        returns_deleted=True,
    ),
    _core("persistentvolumes", "PersistentVolume", namespaced=False, short=("pv",), status=True, returns_deleted=True),
    _core("nodes", "Node", namespaced=False, short=("no",), status=True),
    _core("resourcequotas", "ResourceQuota", short=("quota",), status=True, returns_deleted=True),
    _core("limitranges", "LimitRange", short=("limits",)),
    _apps("deployments", "Deployment", "deploy"),
    _apps("replicasets", "ReplicaSet", "rs"),
    _apps("statefulsets", "StatefulSet", "sts"),
    Kind("apps", "v1", "daemonsets", "DaemonSet", short=("ds",), status=True, generation=True),
    Kind("batch", "v1", "jobs", "Job", status=True, generation=True, immutable=("spec.template", "spec.selector")),
    Kind("batch", "v1", "cronjobs", "CronJob", short=("cj",), status=True, generation=True),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", short=("hpa",), status=True),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short=("pdb",), status=True, generation=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress", short=("ing",), status=True, generation=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short=("netpol",), generation=True),
    Kind(
        "storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False, short=("sc",), returns_deleted=True
    ),
    _wide("scheduling.k8s.io", "priorityclasses", "PriorityClass", short=("pc",)),
    _rbac("roles", "Role", namespaced=True),
    _rbac("rolebindings", "RoleBinding", namespaced=True),
    _rbac("clusterroles", "ClusterRole", namespaced=False),
    _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    *(
        Kind("admissionregistration.k8s.io", "v1", f"{kind.lower()}s", kind, namespaced=False, generation=True)
        for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    ),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        status=True,
        generation=True,
    ),
)


def from_crd(crd: Object) -> Kind:
    """The kind that a CustomResourceDefinition serves."""
    spec = crd["spec"]
    served = [version for version in spec["versions"] if version.get("served", True)]
    stored = next(version for version in spec["versions"] if version.get("storage"))
    subresources = stored.get("subresources") or {}
    names = [version["name"] for version in sorted(served, key=lambda version: version is not stored)]
    return Kind(
        spec["group"],
        stored["name"],
        spec["names"]["plural"],
        spec["names"]["kind"],
        spec.get("scope", "Namespaced") == "Namespaced",
        tuple(spec["names"].get("shortNames", ())),
        tuple(names),
        status="status" in subresources,
        generation=True,
        custom=True,
        schemas={version["name"]: version.get("schema", {}).get("openAPIV3Schema", {}) for version in served},
    )
