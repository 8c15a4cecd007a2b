"""What a cluster has to choose from: models and runtimes of OME, with whether they are ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_autotuner.errors import EnvironmentFault, TransientError

if TYPE_CHECKING:
    from raytune_autotuner.kube import Cluster, Kind, Manifest

PATIENCE_S = 3.0
KEPT_S = 20.0


@dataclass(frozen=True)
class Choice:
    name: str
    kind: str
    namespace: str | None
    ready: str
    """``Ready``, or what it is instead."""
    detail: str = ""

    @property
    def identity(self) -> str:
        """What the form sends of the one that is chosen."""
        return f"{self.kind}/{self.namespace or ''}/{self.name}"


@dataclass(frozen=True)
class Stock:
    """What there is; ``reason`` says why nothing is known."""

    models: tuple[Choice, ...] = ()
    runtimes: tuple[Choice, ...] = ()
    reason: str = ""


def standing(choices: Sequence[Choice], name: str, kind: str | None, namespace: str | None) -> str:
    """What is known of the one that a task names: whether it is ready; empty where nothing can be said.

    Without a ``kind``, one of the namespace comes before one of the cluster, as in OME.
    """
    named = [each for each in choices if each.name == name and each.kind == (kind or each.kind)]
    here = [each for each in named if each.namespace is None or each.namespace == namespace]
    if here:
        return max(here, key=lambda each: each.namespace is not None).ready
    if named:
        return f"only in namespace {named[0].namespace}"
    return "not in the cluster" if choices and name else ""


class Shop:
    """Asks the cluster now and then. May be used by several threads."""

    def __init__(self, kubeconfig: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._known: tuple[float, Stock] | None = None

    def stock(self) -> Stock:
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > KEPT_S:
                self._known = (time.monotonic(), self._ask())
            return self._known[1]

    def known(self) -> Stock:
        """What was found last; nothing is asked."""
        return self._known[1] if self._known else Stock()

    def _ask(self) -> Stock:
        from raytune_autotuner import kube  # slow to import

        try:
            cluster = kube.Cluster.connect(self._kubeconfig).with_patience(PATIENCE_S)
            models = [
                _model(each) for kind in (kube.CLUSTER_BASE_MODEL, kube.BASE_MODEL) for each in _all(cluster, kind)
            ]
            runtimes = [
                _runtime(each)
                for kind in (kube.CLUSTER_SERVING_RUNTIME, kube.SERVING_RUNTIME)
                for each in _all(cluster, kind)
            ]
        except (EnvironmentFault, TransientError) as error:
            return Stock(reason=str(error).splitlines()[0])
        return Stock(tuple(models), tuple(runtimes))


def _all(cluster: Cluster, kind: Kind) -> list[Manifest]:
    """Each with its kind; none where this kind may not be listed."""
    from raytune_autotuner.kube import Rejected

    try:
        return [{**each, "kind": kind.kind} for each in cluster.list(kind)]
    except Rejected:
        return []


def _model(found: Manifest) -> Choice:
    status = found.get("status") or {}
    spec = found.get("spec") or {}
    nodes = status.get("nodesReady") or []
    ready = "disabled" if spec.get("disabled") else str(status.get("state") or "unknown")
    size = str(spec.get("modelParameterSize") or "")
    detail = ", ".join(part for part in (size, f"on {len(nodes)} nodes" if nodes else "") if part)
    return _choice(found, ready, detail)


def _runtime(found: Manifest) -> Choice:
    spec = found.get("spec") or {}
    formats = spec.get("supportedModelFormats") or []
    named = sorted({str(each.get("modelArchitecture") or each.get("name") or "") for each in formats} - {""})
    return _choice(found, "disabled" if spec.get("disabled") else "Ready", ", ".join(named[:2]))


def _choice(found: Manifest, ready: str, detail: str) -> Choice:
    metadata = found["metadata"]
    return Choice(metadata["name"], found["kind"], metadata.get("namespace"), ready, detail)
