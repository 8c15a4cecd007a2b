"""Reservations of GPUs in Ray: what a node of the pool is there, and what a trial's placement becomes.

Ray holds the reservations, as placement groups, so that several jobs share a cluster; we choose the nodes. A GPU is

- ``ome_gpu`` of a Ray node that mirrors a Kubernetes node: a cluster made for this, with one Ray node on each,
- ``ome_gpu:NODE`` of the one Ray node of a Ray of our own: one such resource for each Kubernetes node,
- ``GPU`` of a Ray node where engines run on the Ray nodes themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ray import tune

from raytune_autotuner.packing import GpuNode, Placement, Pool
from raytune_autotuner.ray_nodes import NODE_LABEL, NODE_VARIABLE, RayNode

OME_GPU, RAY_GPU = "ome_gpu", "GPU"
KIND = "accelerator_type:"
"""Begins the name of the resource by which Ray says which GPUs a node has."""


def declared(nodes: Iterable[GpuNode]) -> dict[str, float]:
    """The resources of a Ray of our own: what is free in Kubernetes."""
    return {f"{OME_GPU}:{node.name}": float(node.free) for node in nodes if node.free > 0}


@dataclass(frozen=True)
class Reservation:
    """What a trial reserves in Ray, as plain values that travel in its configuration."""

    bundles: tuple[dict[str, float], ...]
    """The first is also that of the trial's worker."""
    selectors: tuple[dict[str, str], ...]
    """For each bundle the labels of the Ray node that it must be on; good as long as that node is there."""
    nodes: tuple[str, ...] = ()
    """The nodes of its GPUs (see ``Place``), if all are known."""

    @property
    def node(self) -> str | None:
        """That of all of them, if it is one."""
        return self.nodes[0] if len(self.nodes) == 1 else None

    @property
    def ray_nodes(self) -> frozenset[str]:
        """The ids of those that it is bound to."""
        return frozenset(selector[NODE_LABEL] for selector in self.selectors if NODE_LABEL in selector)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reservation:
        return cls(tuple(data["bundles"]), tuple(data["selectors"]), tuple(data["nodes"]))

    def request(self) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory(
            [dict(bundle) for bundle in self.bundles],
            strategy="PACK",
            bundle_label_selector=[dict(selector) for selector in self.selectors],
        )


@dataclass(frozen=True)
class Place:
    """What a node of the pool is in Ray."""

    ray_node: RayNode
    resource: str
    """Ray's name for a GPU there."""
    node: str | None = None
    """Where engines are that are given it, if known: the Kubernetes node, or the machine of the Ray node."""

    @property
    def kind(self) -> str:
        """Which GPUs the Ray node has, where Ray knows."""
        return next((name.removeprefix(KIND) for name in self.ray_node.total if name.startswith(KIND)), "")

    @property
    def gpus(self) -> int:
        return int(self.ray_node.total.get(self.resource, 0.0))

    @property
    def left(self) -> int:
        return int(self.ray_node.left.get(self.resource, 0.0))


@dataclass(frozen=True)
class Places:
    """The nodes of Ray by the names that people know, and what was wrong with them."""

    by_name: Mapping[str, Place]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, nodes: Iterable[RayNode], resource: str = OME_GPU) -> Places:
        by_name: dict[str, Place] = {}
        warnings = []
        places = [place for node in nodes for place in _places(node, resource)]
        for place in places if resource == OME_GPU else _on_their_machines(places):
            name = place.node or f"{place.ray_node.host}/{place.ray_node.id[:6]}"
            if name in by_name:
                warnings.append(f"two Ray nodes say that they are on {name}; one of them is not used")
            else:
                by_name[name] = place
        return cls(by_name, tuple(warnings))

    def pool(self) -> Pool:
        pool = Pool({})
        self.update(pool)
        return pool

    def update(self, pool: Pool) -> None:
        """Tell the pool what there is now, and what others hold.

        Ray may be behind: what has just been started counts as ours, what has just ended as others' for a moment.
        """
        ray_nodes = {place.ray_node.id: place.ray_node for place in self.by_name.values()}
        pool.update(
            {name: place.gpus for name, place in self.by_name.items()},
            cpus={node: ray_node.total.get("CPU", 0.0) for node, ray_node in ray_nodes.items()},
            hosts={name: place.ray_node.id for name, place in self.by_name.items()},
        )
        pool.set_in_use(
            {name: place.gpus - place.left for name, place in self.by_name.items()},
            {n: ray_node.total.get("CPU", 0.0) - ray_node.left.get("CPU", 0.0) for n, ray_node in ray_nodes.items()},
        )

    def reservation(self, placement: Placement) -> Reservation:
        places = [self.by_name[name] for name in placement.nodes]
        bundles = [{place.resource: float(gpus)} for place, (_, gpus) in zip(places, placement.shares, strict=True)]
        bundles[0] = {"CPU": placement.cpus, **bundles[0]}
        several = len({place.ray_node.id for place in self.by_name.values()}) > 1
        nodes = tuple(place.node for place in places if place.node is not None and placement.gpus)
        return Reservation(
            bundles=tuple({name: amount for name, amount in bundle.items() if amount} for bundle in bundles),
            selectors=tuple({NODE_LABEL: place.ray_node.id} if several else {} for place in places),
            nodes=nodes if len(nodes) == len(places) else (),
        )

    def check(self, real: Iterable[GpuNode]) -> list[str]:
        """Where Ray would give away what Kubernetes does not have, or leave what it has, with figures."""
        kubernetes = {node.name: node for node in real}
        return [*self.warnings, *self._excess(kubernetes), *self._unused(kubernetes)]

    def _excess(self, kubernetes: Mapping[str, GpuNode]) -> Iterator[str]:
        for name, place in self.by_name.items():
            if not place.gpus:
                continue
            said = f"Ray node {name} declares {place.gpus} {OME_GPU}"
            if place.node is None:
                yield f"{said} but not its Kubernetes node ({NODE_VARIABLE}): services are not pinned to it"
            elif (node := kubernetes.get(name)) is None:
                yield f"{said}, Kubernetes has no such node with GPUs that pods may use"
            elif place.left > node.free:
                has = f"Kubernetes has {node.free} free of {node.allocatable} there"
                yield f"{said} and has {place.left} to give, {has}: trials will wait for GPUs"

    def _unused(self, kubernetes: Mapping[str, GpuNode]) -> Iterator[str]:
        if any(place.gpus and place.node is None for place in self.by_name.values()):
            return  # it may be any
        for name, node in kubernetes.items():
            place = self.by_name.get(name)
            gpus, left = (place.gpus, place.left) if place else (0, 0)
            if gpus < node.allocatable and left < node.free:
                has = f"{node.free} free of {node.allocatable}"
                yield f"Ray declares {gpus} {OME_GPU} on {name}, Kubernetes has {has} there: the rest is not used"


def _places(node: RayNode, resource: str) -> Iterator[Place]:
    """Those for each Kubernetes node, in a Ray of our own, and the Ray node itself: a trial may need no GPU."""
    prefix = f"{resource}:"
    mirrored = [name for name in node.total if name.startswith(prefix) and resource == OME_GPU]
    for name in sorted(mirrored):
        yield Place(node, name, name.removeprefix(prefix))
    if node.total.get("CPU") or node.total.get(resource):
        yield Place(node, resource, node.kubernetes)


def _on_their_machines(places: Sequence[Place]) -> Iterator[Place]:
    """Ray nodes on which engines run themselves; a host's name outlives a Ray node's id, but several may share one."""
    sharing = Counter(place.ray_node.host for place in places)
    for place in places:
        host = place.ray_node.host
        yield replace(place, node=place.node or (host if sharing[host] == 1 else None))
