"""All controllers together: what changes in the API is handed to those whom it concerns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

from tests.emulator.api import Event, Watch
from tests.emulator.world.cluster_api import owner_named
from tests.emulator.world.containers import Containers
from tests.emulator.world.context import Context
from tests.emulator.world.kubelet import Kubelet
from tests.emulator.world.models import Models
from tests.emulator.world.nodes import Node, Object
from tests.emulator.world.ome import SERVICES, Ome
from tests.emulator.world.ome_benchmark import BENCHMARKS, OmeBenchmark
from tests.emulator.world.ome_webhooks import register
from tests.emulator.world.scheduler import Scheduler
from tests.emulator.world.services import Services
from tests.emulator.world.workloads import Workloads

Handler = Callable[[Event, Object], None]


class World:
    """Starts with the API running and stops before it does."""

    def __init__(self, context: Context, nodes: list[Node], *, ome: bool) -> None:
        self.context = context
        self.containers = Containers(context.folder)
        self.kubelet = Kubelet(nodes, context, self.containers)
        self._scheduler = Scheduler(context.store)
        self._workloads = Workloads(context)
        self._services = Services(context.store, self.kubelet)
        self._ome = Ome(context)
        self._benchmarks = OmeBenchmark(context)
        self._models = Models(context, self.kubelet.nodes)
        self._watches: list[tuple[Watch, threading.Thread]] = []
        self._handlers: dict[str, Handler] = {
            "pods": self._pod,
            "nodes": lambda *_: self._schedule_all(),
            "services": lambda *_: self._update_services(),
            "deployments.apps": self._deployment,
            "replicasets.apps": self._replica_set,
            "jobs.batch": self._job,
            "persistentvolumeclaims": self._claim,
        }
        if ome:
            register(context)
            self._handlers |= {
                SERVICES: self._service,
                BENCHMARKS: self._benchmark,
                "clusterbasemodels.ome.io": self._model,
                "basemodels.ome.io": self._model,
            }

    def start(self) -> None:
        self.context.loop.start()
        self.kubelet.start()
        for resource, handler in self._handlers.items():
            watch = self.context.store.watch(resource)
            thread = threading.Thread(target=self._follow, args=(watch, handler), name=f"emulated-watch-{resource}")
            self._watches.append((watch, thread))
            thread.start()

    def stop(self) -> None:
        """End everything that was started; no process and no thread is left."""
        for watch, thread in self._watches:
            watch.close()
            thread.join()
        self.context.loop.stop()
        self.kubelet.stop()
        self._services.stop()
        self.containers.stop()

    def _follow(self, watch: Watch, handler: Handler) -> None:
        for event in _events(watch):
            value = event.object
            key = (watch, value["metadata"]["uid"], value["metadata"]["resourceVersion"], event.type)
            self.context.loop.soon(key, partial(handler, event, value))

    def _soon(self, what: str, value: Object, work: Callable[[str, str], None], name: str | None = None) -> None:
        namespace, name = value["metadata"]["namespace"], name or value["metadata"]["name"]
        self.context.loop.soon((what, namespace, name), lambda: work(namespace, name))

    # What concerns whom

    def _pod(self, event: Event, value: Object) -> None:
        if event.type == "DELETED":
            self.kubelet.gone(value)
            self._schedule_all()
        else:
            self.kubelet.changed(value)
            if not value["spec"].get("nodeName"):
                self._soon("schedule", value, self._scheduler.schedule)
            elif (value.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                self._schedule_all()
        if owner := owner_named(value, "ReplicaSet"):
            self._soon("replicaset", value, self._workloads.replica_set, owner)
        if owner := owner_named(value, "Job"):
            self._soon("job", value, self._workloads.job, owner)
        self._update_services()

    def _schedule_all(self) -> None:
        def work() -> None:
            for namespace, name in self._scheduler.waiting():
                self._scheduler.schedule(namespace, name)

        self.context.loop.soon("schedule all", work)

    def _update_services(self) -> None:
        self.context.loop.soon("services", self._services.update)

    def _deployment(self, _: Event, value: Object) -> None:
        self._soon("deployment", value, self._workloads.deployment)
        if owner := owner_named(value, "InferenceService"):
            self._soon("inferenceservice", value, self._ome.reconcile, owner)

    def _replica_set(self, _: Event, value: Object) -> None:
        self._soon("replicaset", value, self._workloads.replica_set)
        if owner := owner_named(value, "Deployment"):
            self._soon("deployment", value, self._workloads.deployment, owner)

    def _job(self, _: Event, value: Object) -> None:
        self._soon("job", value, self._workloads.job)
        if owner := owner_named(value, "BenchmarkJob"):
            self._soon("benchmarkjob", value, self._benchmarks.reconcile, owner)

    def _service(self, _: Event, value: Object) -> None:
        self._soon("inferenceservice", value, self._ome.reconcile)

    def _benchmark(self, _: Event, value: Object) -> None:
        self._soon("benchmarkjob", value, self._benchmarks.reconcile)

    def _model(self, event: Event, value: Object) -> None:
        if event.type != "DELETED":
            self._models.model(value)

    def _claim(self, _: Event, value: Object) -> None:
        self._soon("claim", value, self._models.claim)


def _events(watch: Watch) -> Iterator[Event]:
    yield from watch
