"""Every right that the program uses in a cluster: ``configs/kubernetes/rbac.yaml`` grants exactly these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raytune_autotuner.kube import (
    BASE_MODEL,
    BENCHMARK_JOB,
    CLUSTER_BASE_MODEL,
    CLUSTER_SERVING_RUNTIME,
    CONFIG_MAP,
    CRD,
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    NAMESPACE,
    NODE,
    POD,
    PVC,
    REPLICA_SET,
    SERVICE,
    SERVING_RUNTIME,
    Kind,
)

Scope = Literal["namespace", "cluster"]


@dataclass(frozen=True)
class Right:
    """One thing that has to be allowed."""

    verb: str
    kind: Kind
    subresource: str = ""
    scope: Scope = "namespace"

    @property
    def resource(self) -> str:
        name = f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural
        return f"{name}.{self.kind.group}" if self.kind.group else name


_TABLE: tuple[tuple[Kind, str, Scope, str], ...] = (
    (INFERENCE_SERVICE, "", "namespace", "create get list watch delete"),
    (BENCHMARK_JOB, "", "namespace", "create get list watch delete"),
    (BASE_MODEL, "", "namespace", "get"),
    (SERVING_RUNTIME, "", "namespace", "get"),
    (CONFIG_MAP, "", "namespace", "create get list update delete"),  # the anchor
    (POD, "", "namespace", "create get list watch delete"),  # created: the reader of results
    (POD, "log", "namespace", "get"),
    (POD, "portforward", "namespace", "create get"),
    (SERVICE, "", "namespace", "get"),
    (EVENT, "", "namespace", "list watch"),
    (PVC, "", "namespace", "get"),
    (DEPLOYMENT, "", "namespace", "list watch"),
    (REPLICA_SET, "", "namespace", "list watch"),
    (CLUSTER_BASE_MODEL, "", "cluster", "get"),
    (CLUSTER_SERVING_RUNTIME, "", "cluster", "get"),
    (CRD, "", "cluster", "get"),
    (NAMESPACE, "", "cluster", "get"),
    (NODE, "", "cluster", "get list"),
    (POD, "", "cluster", "list"),  # to know the free GPUs
)


def rights(benchmark_job: bool = True, port_forward: bool = True) -> tuple[Right, ...]:
    """Every verb that the program uses; by default all of them, as ``configs/kubernetes/rbac.yaml`` grants them.

    BenchmarkJobs are looked for in either case: an earlier run may have left some.
    """
    return tuple(
        Right(verb, kind, subresource, scope)
        for kind, subresource, scope, verbs in _TABLE
        if (benchmark_job or kind is not PVC) and (port_forward or subresource != "portforward")
        for verb in verbs.split()
    )
