"""Engines as InferenceServices of OME on Kubernetes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from raytune_autotuner import anchor, loopback
from raytune_autotuner.backends import Deployment, Progress
from raytune_autotuner.backends.local import KEPT_CHARACTERS, read_info
from raytune_autotuner.backends.ome_access import Way, open_way
from raytune_autotuner.backends.ome_diagnosis import Cause, Diagnosis, Stage, View, diagnose, is_live, progress_of
from raytune_autotuner.backends.ome_manifest import (
    HOSTNAME,
    OmeSettings,
    full_argv,
    is_same,
    manifest,
    service_name,
    with_digest,
)
from raytune_autotuner.backends.ome_runtime import GPU
from raytune_autotuner.backends.ome_view import COMPONENT_LABEL, Observer, remains, remove
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines import arguments
from raytune_autotuner.engines.failures import classify
from raytune_autotuner.engines.server_info import differences
from raytune_autotuner.errors import AutotunerError, EnvironmentFault, FailureClass, TransientError, TrialInfeasible
from raytune_autotuner.kube import INFERENCE_SERVICE, NODE, Cluster, Manifest, Rejected, Unreachable
from raytune_autotuner.records import Endpoint, TrialId
from raytune_autotuner.render import to_yaml

MANIFEST = "inference-service.yaml"
LOG_LINES = 2000
TICK_S = 1.0
LAST_WORDS_S = 3.0
"""So long an engine's end may take to show, once nothing answers any more."""
HEALTH_INTERVAL_S = 0.2
OPEN_S = 30.0
"""How long a way to a service that is ready is looked for."""
ASIDE_S = 5.0
"""The patience of calls that only add to what is known."""
LAST_WORDS_S = 1.0
REQUEST_TIMEOUT_S = 10.0
"""The health check of SGLang generates a token."""
NODE_CHECK_S = 5.0
LOST_S = 5.0
"""What pods are given to end when a node is lost, of which nobody would say that they did."""
NODE_WARNING = "NodeNotReady"
"""The event with which the control plane tells a pod that its node no longer reports."""
PHASES: dict[Stage, str] = {"schedule": "schedule", "pull": "pull", "load": "load"}
PASSING: frozenset[Cause] = frozenset({"image", "mount", "quota", "lost", "init"})
"""Not the configuration's fault, and may be gone at the next attempt."""
LASTING: frozenset[Cause] = frozenset({"config", "refused", "ome"})
"""Not the configuration's fault, and no retry brings it."""


class OmeBackend:
    """One InferenceService with all that OME makes of it; ``stop`` returns when its pods are gone."""

    def __init__(
        self, cluster: Cluster, settings: OmeSettings, experiment: str = "", trial: TrialId | None = None
    ) -> None:
        """A trial that is named before it is started is one that an earlier worker may have left a service of."""
        self._cluster = cluster
        self._left_by = (experiment, trial) if trial else None
        self._aside = cluster.with_patience(ASIDE_S)
        self._settings = settings
        self._deployment: Deployment | None = None
        self._observer: Observer | None = None
        self._way: Way | None = None
        self._ours = False
        """Whether what there is of this name is the trial's, and stop's to remove."""
        self._leftover = False
        """Whether an earlier worker's service was in its place."""
        self._pods: frozenset[str] = frozenset()
        """Those that are measured, by uid; empty before the service is ready."""
        self._next_node_check = Deadline.after(0)
        self._node_lost = False
        """Then nobody ends its pods, and waiting for them in good order is in vain."""
        self._node_warnings: set[str] = set()
        """Events by uid that have led to a look at the nodes."""

    def start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        """See ``Backend.start``."""
        if self._deployment is not None:  # else there is nothing of ours, and what an earlier worker left may be good
            self.stop(deadline)
        self._deployment = deployment
        progress("deploy", f"InferenceService {self._settings.namespace}/{self._name}")
        service = with_digest(manifest(self._settings, deployment))
        deployment.folder.mkdir(parents=True, exist_ok=True)
        (deployment.folder / MANIFEST).write_text(to_yaml(service), encoding="utf-8")
        with _refusals_mean(f"the service {self._settings.namespace}/{self._name}"):
            adopted = self._is_there_already(service)
            self._leftover = adopted or self._remove_leftover(self._name, deployment.experiment, deadline)
            self._ours = True
            self._observer = Observer(self._cluster, self._settings.namespace, self._name)
            if not adopted:
                self._cluster.create(INFERENCE_SERVICE, service)
            self._await_ready(self._observer, deadline, progress)
            self._way = self._open_way(deadline)
            self._await_health(deployment.engine.health, deadline.sooner(self._settings.load_s), progress)
        self._pods = frozenset(_uids(self._observer.view.live_pods))
        metrics, url = deployment.engine.metrics, self._way.url
        info = read_info(url, deployment.engine)
        if lost := differences(deployment.engine, deployment.parameters, info):
            raise TrialInfeasible("not_applied", "; ".join(lost))
        return Endpoint(
            url=url,
            model_name=deployment.served_name,
            info=info,
            argv=self._real_argv(self._observer.view) or full_argv(self._settings, deployment),
            metrics_url=url + metrics.path if metrics else None,
            adopted=adopted,
            leftover=self._leftover,
        )

    def check(self) -> None:
        """See ``Backend.check``. An API server that is away is no reason to give up what is being measured."""
        if self._observer is None or not self._pods:
            return
        self._look(self._observer, Deadline.after(0))
        if self._pods - _uids(self._observer.view.live_pods):
            self._confirm_loss()
        if self._way is not None:
            self._check_way(self._way, self._observer)

    def stop(self, deadline: Deadline) -> bool:
        """See ``Backend.stop``."""
        if self._way is not None:
            self._way.close()
        self._way, self._pods = None, frozenset()
        if not self._ours:
            if self._deployment is None and self._left_by is not None:
                return self._remove_leftover(anchor.object_name(*self._left_by), self._left_by[0], deadline)
            return self._leftover
        self._save_logs()
        try:
            limit = deadline.sooner(self._settings.teardown_s)
            patience_s = LOST_S if self._node_lost else math.inf
            remove(self._cluster, self._settings.namespace, self._name, limit, patience_s)
        except Rejected as error:
            raise TransientError(f"{self._name} cannot be removed: {error}") from error
        finally:
            if self._observer is not None:
                self._observer.close()
        self._observer, self._ours, self._node_lost = None, False, False
        return self._leftover

    @property
    def _started(self) -> Deployment:
        assert self._deployment is not None
        return self._deployment

    @property
    def _following(self) -> Observer:
        assert self._observer is not None
        return self._observer

    @property
    def _name(self) -> str:
        return service_name(self._started)

    def _is_there_already(self, service: Manifest) -> bool:
        """Whether a worker that is gone left this very service, ready and untouched."""
        found = self._cluster.get(INFERENCE_SERVICE, self._name, self._settings.namespace)
        return found is not None and is_same(found, service) and not _is_going(found) and _is_ready(found)

    def _remove_leftover(self, name: str, experiment: str, deadline: Deadline) -> bool:
        """A crash may have left a service of this name, or its pods; whether it had."""
        namespace = self._settings.namespace
        for thing in remains(self._cluster, namespace, name):
            owner = (thing["metadata"].get("labels") or {}).get(anchor.EXPERIMENT)
            if owner != anchor.labels(experiment)[anchor.EXPERIMENT]:
                what = f"{thing['kind']} {namespace}/{thing['metadata']['name']}"
                raise EnvironmentFault(f"{what} is in the way and is not this experiment's: rename or delete it")
            self._leftover = True
            remove(self._cluster, namespace, name, deadline.sooner(self._settings.teardown_s))
            return True
        return False

    def _await_ready(self, observer: Observer, deadline: Deadline, progress: Progress) -> None:
        """Follow the service until it says that it is ready; every stage has a deadline of its own."""
        stage, limit, argv_checked, seen = "", deadline, False, False
        while True:
            view = observer.view
            seen = seen or view.service is not None
            if seen and _is_going(view.service):
                self._confirm_deletion()
            now = progress_of(view, self._settings.conditions, self._settings.pods)
            if view.live_pods and not argv_checked:
                argv_checked = self._check_argv(view)
            if now.stage == "ready":
                return
            if now.stage != stage:
                stage, limit = now.stage, deadline.sooner(self._patience_s(now.stage))
            progress(PHASES[now.stage], now.detail)
            if limit.expired:
                raise self._late(now.stage, now.detail, limit, view)
            self._look(observer, limit.sooner(TICK_S))

    def _patience_s(self, stage: Stage) -> float:
        settings = self._settings
        return {"schedule": settings.schedule_s, "pull": settings.pull_s, "load": settings.load_s}.get(stage, 0.0)

    def _check_way(self, way: Way, observer: Observer) -> None:
        """A pod that ends takes the way to it along; its end shows a moment later, and says more."""
        try:
            way.check()
        except TransientError:
            last = Deadline.after(LAST_WORDS_S)
            while not last.expired:
                self._look(observer, last.sooner(TICK_S))
            raise

    def _look(self, observer: Observer, deadline: Deadline) -> None:
        """Take in what has happened, and raise what it means."""
        observer.take_in(deadline)
        view = observer.view
        if (found := diagnose(view)) is not None:
            self._fail(found)
        self._check_nodes(view)

    def _late(self, stage: Stage, detail: str, limit: Deadline, view: View) -> TrialInfeasible | TransientError:
        if stage == "load":
            reason = f"the engine did not get ready within {limit.seconds:.0f} s ({detail})"
            return TrialInfeasible("not_ready", reason, self._tail(*self._main(view)))
        if stage == "schedule" and (reason := self._never_fits()):
            return TrialInfeasible("no_fit", reason)
        what = "scheduled" if stage == "schedule" else "started (image, volumes)"
        return TransientError(f"{self._name} was not {what} within {limit.seconds:.0f} s: {detail}")

    def _fail(self, found: Diagnosis) -> NoReturn:
        if found.cause in PASSING:
            raise TransientError(found.reason)
        if found.cause in LASTING:
            raise EnvironmentFault(found.reason)
        tail = self._last_words(found)
        if found.cause == "oom_killed":
            raise TrialInfeasible("out_of_memory", found.reason, tail, "the container needs a higher memory limit")
        if found.cause == "probe":
            kind: FailureClass = "crash" if self._pods else "not_ready"
            raise TrialInfeasible(kind, found.reason, tail, "the runtime's probe gave up on the engine")
        failure = classify(self._started.engine, tail, found.exit_code)
        if failure.kind == "infrastructure":
            raise TransientError(f"{failure.reason} ({failure.hint})")
        raise TrialInfeasible(failure.kind, failure.reason, tail[-KEPT_CHARACTERS:], failure.hint)

    def _tail(self, pod: str, container: str, restarted: bool = False) -> str:
        """The end of a container's log, that of the one before it if it was started again; best effort."""
        for previous in (restarted, not restarted) if pod else ():
            with contextlib.suppress(AutotunerError):
                namespace = self._settings.namespace
                text = self._cluster.logs(namespace, pod, container=container, previous=previous, tail_lines=LOG_LINES)
                if text:
                    return text
        return ""

    def _last_words(self, found: Diagnosis) -> str:
        """The log of what has just ended, which may take a moment to be there."""
        patience = Deadline.after(LAST_WORDS_S)
        while not (tail := self._tail(found.pod, found.container, found.restarted)) and not patience.expired:
            time.sleep(HEALTH_INTERVAL_S)
        return tail

    def _main(self, view: View) -> tuple[str, str]:
        """Whose log tells most when nothing has failed: the engine's."""
        pods = _engines(view) or view.live_pods
        return (pods[0]["metadata"]["name"], self._settings.container) if pods else ("", "")

    def _check_argv(self, view: View) -> bool:
        """Compare what a pod runs with what was meant; whether there was a pod to compare.

        Raises:
            TrialInfeasible: a parameter of the trial did not arrive.
        """
        real, meant = self._real_argv(view), full_argv(self._settings, self._started)
        if not real:
            return False
        if lost := [flag for flag in _differing(meant, real) if self._is_tuned(flag)]:
            reason = f"OME started the engine with other values of {', '.join(lost)} than asked: {' '.join(real)}"
            raise TrialInfeasible("not_applied", reason)
        return True

    def _real_argv(self, view: View) -> tuple[str, ...]:
        for pod in _engines(view):
            for container in pod["spec"].get("containers") or ():
                if container["name"] == self._settings.container:
                    return (*(container.get("command") or ()), *(container.get("args") or ()))
        return ()

    def _is_tuned(self, flag: str) -> bool:
        """Whether a flag says a parameter of this trial; one that the engine file does not know may be a raw flag."""
        engine = self._started.engine
        names = {engine.canonical(name) or name for name in self._started.parameters}
        for name, parameter in engine.parameters.items():
            if flag in parameter.flags:
                return name in names
        return not names <= engine.parameters.keys()

    def _open_way(self, deadline: Deadline) -> Way:
        settings, folder = self._settings, self._started.folder
        direct = settings.access == "service" or (settings.access == "auto" and self._cluster.inside)
        if not direct and settings.replicas > 1 and settings.router is None:
            cure = "run inside the cluster, or declare a router"
            raise EnvironmentFault(f"a forwarded port leads to one pod, and there are {settings.replicas}: {cure}")
        owner = f"{self._started.experiment}/{self._started.trial.name}"
        service = f"{self._name}-{settings.front}"
        limit = deadline.sooner(OPEN_S)
        while True:
            try:
                return open_way(self._cluster, settings.access, settings.namespace, service, folder, owner)
            except TransientError:  # what is ready may still have to spread
                if limit.expired:
                    raise
            self._look(self._following, limit.sooner(HEALTH_INTERVAL_S))

    def _await_health(self, path: str, deadline: Deadline, progress: Progress) -> None:
        while not deadline.expired:
            assert self._way is not None
            progress("load", f"waiting for {path}")
            answer = loopback.get(self._way.url + path, min(REQUEST_TIMEOUT_S, deadline.remaining() or TICK_S))
            if answer is not None and answer.status_code == 200:
                return
            self._look(self._following, deadline.sooner(HEALTH_INTERVAL_S))
            try:
                self._way.check()
            except TransientError:  # nothing is being measured yet
                self._way.close()
                self._way = self._open_way(deadline)
        reason = f"the service is ready, but {path} did not answer within {deadline.seconds:.0f} s"
        raise TrialInfeasible("not_ready", reason, self._tail(*self._main(self._following.view)))

    def _confirm_loss(self) -> None:
        """Ask the server itself whether pods are missing."""
        with contextlib.suppress(Unreachable):
            found = remains(self._cluster.with_patience(0), self._settings.namespace, self._name)
            if gone := self._pods - _uids(filter(is_live, found)):
                raise TransientError(f"{self._name}: {len(gone)} of its pods were taken away")

    def _confirm_deletion(self) -> None:
        """Ask the server itself whether somebody has deleted the service; what was seen may be one before it."""
        with contextlib.suppress(Unreachable):
            if _is_going(self._cluster.with_patience(0).get(INFERENCE_SERVICE, self._name, self._settings.namespace)):
                raise TransientError(f"{self._name} was deleted while it started")

    def _check_nodes(self, view: View) -> None:
        """Pods that are not ready may have lost their node, which they do not say themselves; an event may."""
        warnings = {event["metadata"]["uid"] for event in view.events if event.get("reason") == NODE_WARNING}
        warned = not warnings <= self._node_warnings
        if not (warned or self._next_node_check.expired):
            return
        self._next_node_check, self._node_warnings = Deadline.after(NODE_CHECK_S), warnings
        names = {pod["spec"].get("nodeName") for pod in view.live_pods if warned or not _is_ready(pod)} - {None}
        with contextlib.suppress(Rejected, Unreachable):  # nodes need not be readable
            for name in names:
                node = self._aside.get(NODE, name)
                if node is None or not _is_ready(node):
                    self._node_lost = True
                    raise TransientError(f"node {name} is lost, and with it a pod of {self._name}")

    def _never_fits(self) -> str:
        """Why no node can ever hold a replica; empty when one can, or nodes cannot be read."""
        settings = self._settings
        need = self._started.gpus if settings.gpus_per_replica is None else settings.gpus_per_replica
        labels = {**settings.node_selector, **({HOSTNAME: settings.node} if settings.node else {})}
        with contextlib.suppress(AutotunerError):
            found = [
                int((n["status"].get("allocatable") or {}).get(GPU, 0)) for n in self._cluster.list(NODE, None, labels)
            ]
            if not found:
                return f"no node has the labels {labels}"
            if max(found) < need:
                return f"a replica needs {need} GPUs, and no node has more than {max(found)}"
        return ""

    def _save_logs(self) -> None:
        """Keep what the engines said; their pods take it along."""
        for pod in self._observer.view.pods if self._observer is not None else ():
            name = pod["metadata"]["name"]
            for container in pod["spec"].get("containers") or ():
                if text := self._tail(name, container["name"]):
                    (self._started.folder / f"{name}.{container['name']}.log").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _refusals_mean(what: str) -> Iterator[None]:
    """What the server refuses will be refused again, except for a quota, which others may leave."""
    try:
        yield
    except Rejected as error:
        if "exceeded quota" in str(error):
            raise TransientError(f"{what}: {error}") from error
        raise EnvironmentFault(f"{what} was refused: {error}") from error


def _engines(view: View) -> list[Manifest]:
    return [pod for pod in view.live_pods if pod["metadata"]["labels"].get(COMPONENT_LABEL) == "engine"]


def _uids(things: Iterable[Manifest]) -> set[str]:
    return {thing["metadata"]["uid"] for thing in things}


def _is_going(thing: Manifest | None) -> bool:
    return thing is None or "deletionTimestamp" in thing["metadata"]


def _is_ready(thing: Manifest) -> bool:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _differing(meant: tuple[str, ...], real: tuple[str, ...]) -> list[str]:
    """The flags that stand in one command line and not in the other, or with other values."""
    ours, theirs = set(arguments.split(meant)), set(arguments.split(real))
    return sorted({option.flag for option in ours ^ theirs})
