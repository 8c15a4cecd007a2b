"""OME's model agent: models get onto nodes, nodes get labels, models get Ready; and claims get bound."""

from __future__ import annotations

from collections.abc import Mapping

from tests.emulator.api.objects import at
from tests.emulator.world.cluster_api import change_status
from tests.emulator.world.context import Context
from tests.emulator.world.nodes import Node, Object
from tests.emulator.world.ome_components import node_label


class Models:
    """Reconciles one model or claim at a time."""

    def __init__(self, context: Context, nodes: Mapping[str, Node]) -> None:
        self._context = context
        self._store = context.store
        self._nodes = nodes

    def model(self, value: Object) -> None:
        """A model is at once on every node that may have it."""
        metadata = value["metadata"]
        name, namespace = metadata["name"], metadata.get("namespace", "")
        resource = "basemodels.ome.io" if namespace else "clusterbasemodels.ome.io"
        if value["spec"].get("disabled") or "deletionTimestamp" in metadata:
            return
        ready = sorted(node.name for node in self._nodes.values() if node.models is None or name in node.models)
        for node in ready:
            self._store.patch("nodes", node, {"metadata": {"labels": {node_label(value): "Ready"}}})

        def fill(status: Object) -> None:
            status["state"] = "Ready" if ready else "In_Transit"
            status["nodesReady"] = ready

        change_status(self._store, resource, name, namespace, fill)

    def claim(self, namespace: str, name: str) -> None:
        """Bind a claim, unless claims stay pending."""
        if self._context.faults.claims_pending:
            self._context.after(1.0, ("claim", namespace, name), lambda: self.claim(namespace, name))
            return
        value = self._store.find("persistentvolumeclaims", name, namespace)
        if value is None or at(value, "status.phase") == "Bound":
            return
        (self._context.folder / "claims" / namespace / name).mkdir(parents=True, exist_ok=True)

        def fill(status: Object) -> None:
            status["phase"] = "Bound"
            status["accessModes"] = value["spec"].get("accessModes", [])
            status["capacity"] = at(value, "spec.resources.requests") or {}

        change_status(self._store, "persistentvolumeclaims", name, namespace, fill)
