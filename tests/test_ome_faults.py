"""The fault matrix on the emulated cluster: each fault at each step of a trial.

Whatever happens: the outcome has the right class, nothing of the trial is left, what was measured is kept, and the
next trial works.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from raytune_autotuner import ome_site, recovery
from raytune_autotuner.anchor import Anchor
from raytune_autotuner.backends import Deployment, Progress, ome, ome_view
from raytune_autotuner.backends.ome import OmeBackend
from raytune_autotuner.backends.ome_access import Relay
from raytune_autotuner.backends.ome_manifest import OmeSettings, Reference, shipped_template
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import TrialInfeasible
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import Cluster
from raytune_autotuner.kube import watch as kube_watch
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import Endpoint, Load, Metrics, Rung, TrialRecord
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Optimization
from raytune_autotuner.trial import Job, Trial, run
from tests.emulator.api import Admission, Fault, denied_by_webhook, webhook_unreachable
from tests.emulator.cluster import Emulator, Node
from tests.fakes.trials import sample_metrics
from tests.ome_cluster import EXPERIMENT, NAMESPACE, crds, deployment, objects, settings
from tests.test_ome_site import task
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("whole")

RUNGS = (Rung(0, (Load("D(10,10)", 4),), 8, 1), Rung(1, (Load("D(10,10)", 4),), 20, 1))
PATIENCE_S = 15.0
"""Of a call while the API is away; longer than any burst."""
RUNG_S = 3.0
"""How long a rung may take; a quiet one takes some milliseconds."""
POLL_S = 0.05
EXPLAIN_S = 5.0
"""How long a connection that breaks waits for the cluster to say why."""
REQUESTS = 4
TEARDOWN_S = 60.0
GENTLE_S = 1.0
"""After this the teardown does not wait any longer for pods to end by themselves …"""
FORCE_S = 1.5
"""… and after this it removes them by force."""
STUCK_S = 3.0
"""For a teardown that cannot succeed."""
SHORTLY_S = 3.0
"""Until a pod has a node, where the fault is that none comes; long enough for one that does get one."""
STOP_S = 30.0
MOMENTS = ("load", "warmup", "rung0", "rung1", "teardown")
KEPT = {"rung1": 1, "teardown": 2}
"""How many rungs are measured before a moment; none before the others."""
BURST = 3
"""Requests that fail in a row."""

KUBECTL = shutil.which("kubectl")

Moment = Callable[[str], None]


@pytest.fixture(scope="module")
def world() -> Iterator[Emulator]:
    nodes = [Node("n1", gpus=8), Node("n2", gpus=8)]
    with Emulator(nodes=nodes, time_scale=600.0, engine_scale=10.0, crds=crds()) as world:
        world.apply(objects())
        yield world


@pytest.fixture(scope="module")
def connection(world: Emulator) -> Iterator[Cluster]:
    cluster = Cluster.connect(str(world.kubeconfig))
    yield cluster
    cluster.close()


class Watched(OmeBackend):
    """Tells the moments of a start as they come, and that of the teardown just before."""

    def __init__(self, cluster: Cluster, settings: OmeSettings, moment: Moment) -> None:
        super().__init__(cluster, settings)
        self.starts = 0
        self.stopped: list[float] = []
        """When it had ended what it began."""
        self._moment = moment

    def start(self, deployment: Deployment, deadline: Deadline, progress: Progress) -> Endpoint:
        self.starts += 1

        def tell(phase: str, detail: str) -> None:
            progress(phase, detail)
            self._moment(phase)

        return super().start(deployment, deadline, tell)

    def stop(self, deadline: Deadline) -> bool:
        if not self._ours:
            return super().stop(deadline)
        self._moment("teardown")
        left = super().stop(deadline)
        self.stopped.append(time.monotonic())
        return left


class FewRequests:
    """A benchmark that sends a few requests and measures nothing; the moment of a rung comes after its first one."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self._sender = ThreadPoolExecutor(1)

    def prepare(self) -> None:
        """Nothing to prepare."""

    def run(
        self, endpoint: Endpoint, rung: Rung, folder: Path, deadline: Deadline, check: Callable[[], None]
    ) -> Metrics:
        folder.mkdir(parents=True)
        limit = deadline.sooner(RUNG_S)
        for number in range(REQUESTS):
            if number == 1:
                self._moment("warmup" if rung.index < 0 else f"rung{rung.index}")
            check()
            self._await(self._sender.submit(_ask, endpoint, limit.remaining()), limit, check)
        return sample_metrics(rung.index, 1.0)

    def close(self) -> None:
        self._sender.shutdown()

    def _await(self, answer: Future[int], limit: Deadline, check: Callable[[], None]) -> None:
        while not wait([answer], POLL_S).done:
            check()
        try:
            code = answer.result()
        except requests.Timeout as error:
            raise TrialInfeasible("timeout", f"no answer within {limit.seconds:.1f} s") from error
        except requests.RequestException as error:
            _explain(check)
            raise TrialInfeasible("request_errors", str(error)) from error
        if code != 200:
            raise TrialInfeasible("request_errors", f"HTTP {code}")


def _ask(endpoint: Endpoint, timeout_s: float) -> int:
    body = {"model": endpoint.model_name, "prompt": "a", "max_tokens": 2}
    with requests.Session() as session:
        session.trust_env = False
        return session.post(f"{endpoint.url}/v1/completions", json=body, timeout=max(POLL_S, timeout_s)).status_code


def _explain(check: Callable[[], None]) -> None:
    """Wait for what the cluster has to say about a connection that broke."""
    deadline = Deadline.after(EXPLAIN_S)
    while not deadline.expired:
        check()
        time.sleep(POLL_S)


def _runs(pid: int) -> bool:
    """Whether a process is neither gone nor stopped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass
class Play:
    """One trial on the cluster, and what is done to it at one moment."""

    world: Emulator
    cluster: Cluster
    root: Path
    at: str = ""
    strike: Callable[[Play], object] = lambda play: None
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    gpus: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    until: str = ""
    """The moment at which the faults of the world are over."""
    struck: bool = False
    backend: Watched = field(init=False)

    def run(self) -> TrialRecord:
        wanted = deployment(self.cluster, self.root / "work", *self.extra, gpus=self.gpus, **self.parameters)
        times = {"access": "service", "schedule_s": 20.0, "pull_s": 20.0, "load_s": 20.0, "teardown_s": TEARDOWN_S}
        self.backend = Watched(self.cluster, settings(**{**times, **self.settings}), self.moment)
        job = Job(wanted, 0, RUNGS, 2, Context(0, Optimization(objective="minimize_latency")), 60.0)
        self.moment("start")
        return run(Trial(job, self.backend, FewRequests(self.moment), self.folder))

    @property
    def folder(self) -> ExperimentFolder:
        return ExperimentFolder(Storage(str(self.root)), EXPERIMENT)

    def moment(self, name: str) -> None:
        if name == self.until:
            self.world.faults.clear()
        if name == self.at and not self.struck:
            self.struck = True
            self.strike(self)

    @property
    def pod(self) -> dict[str, Any]:
        return self.world.objects("Pod", NAMESPACE)[0]

    def signal(self, number: int) -> None:
        """Strike the engine, and wait until it has taken effect."""
        pids = list(self.world.processes().values())
        self.world.signal(self.pod["metadata"]["name"], number)
        until(lambda: not any(_runs(pid) for pid in pids))

    def lose(self, *nodes: str) -> None:
        """Nodes go with all that runs on them."""
        pids = list(self.world.processes().values())
        self.world.faults.lost_nodes |= set(nodes)
        until(lambda: not any(_runs(pid) for pid in pids))

    def delete(self, kind: str) -> None:
        for thing in self.world.objects(kind, NAMESPACE):
            resource = {"Pod": "pods", "InferenceService": "inferenceservices.ome.io"}[kind]
            self.world.store.delete(resource, thing["metadata"]["name"], NAMESPACE)

    @property
    def node(self) -> str:
        return str(self.pod["spec"]["nodeName"])

    def burst(self, status: int) -> None:
        """The next few requests to the API fail."""
        self.world.faults.api.add(Fault(status=status, count=BURST, retry_after_s=0))

    def drop_forward(self) -> None:
        way = self.backend._way
        if isinstance(way, Relay):
            way._pod = "gone"
        elif way is not None:
            os.kill(way._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    def refuse(self, problem: Callable[[], Exception]) -> None:
        """Pods are refused by a webhook."""

        def hook(asked: Admission) -> None:
            if asked.operation == "CREATE":
                raise problem()

        self.world.store.mutating["pods"].append(hook)

    def misfit(self) -> None:
        self.world.apply(objects().replace("name: safetensors", "name: gguf", 1))


Strike = Callable[[Play], object]


@dataclass(frozen=True)
class Cell:
    """What is done, and how the trial has to end."""

    strike: Strike
    outcome: str = "completed"
    kind: str | None = None
    says: str = ""
    """Somewhere in the failure's reason."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    gpus: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    patience_s: float = PATIENCE_S
    deployments: int = 1
    """How often it is deployed."""
    after: str = ""
    """The moment after which the fault is over by itself."""


def _infeasible(strike: Strike, kind: str, says: str = "", **more: Any) -> Cell:
    return Cell(strike, "infeasible", kind, says, **more)


def _failed(strike: Strike, says: str, **more: Any) -> Cell:
    return Cell(strike, "failed", "infrastructure", says, **{"deployments": 2, **more})


def _pods(**switches: Any) -> Strike:
    return lambda play: play.world.faults.add(**switches)


def _world(**switches: Any) -> Strike:
    def strike(play: Play) -> None:
        for name, value in switches.items():
            setattr(play.world.faults, name, value)

    return strike


def _api(**fault: Any) -> Strike:
    return lambda play: play.world.faults.api.add(Fault(**fault))


def _lose_node(play: Play) -> None:
    play.lose(play.node)


def _lose_all(play: Play) -> None:
    play.lose("n1", "n2")


def _short_watches(play: Play) -> None:
    play.world.faults.api.watch_life_s = 0.1


TYPO = shipped_template().replace("minReplicas", "minReplcias")
POLICY = "image is not on the list"
QUOTA = "exceeded quota: gpus, requested: 1, used: 8, limited: 8"
UNMOUNTABLE = "MountVolume.SetUp failed for volume model: hostPath type check failed"
CREATION: dict[str, Any] = {"verbs": frozenset({"create"}), "resources": frozenset({"inferenceservices.ome.io"})}
DELETION: dict[str, Any] = {"verbs": frozenset({"delete"}), "resources": frozenset({"inferenceservices.ome.io"})}
IMPATIENT: dict[str, Any] = {"patience_s": 0.3}

AT_START = {
    "pull fails": _failed(_pods(pull_fails="manifest unknown"), "manifest unknown|Back-off pulling image"),
    "pull fails once": Cell(_pods(pull_fails="manifest unknown", times=1), deployments=2),
    "pull never ends": _failed(_pods(pull_s=1e9), "image, volumes", settings={"pull_s": 0.5}),
    "pull is slow": Cell(_pods(pull_s=300.0)),
    "mount fails": _failed(_pods(mount_fails=UNMOUNTABLE), "FailedMount"),
    "mount fails once": Cell(_pods(mount_fails=UNMOUNTABLE, times=1), deployments=2),
    "mount fails for long": _failed(_pods(mount_fails="MountVolume.SetUp failed: try again"), "FailedMount"),
    "crash": _infeasible(
        _pods(crash_at_start="RuntimeError: something is wrong"), "crash", "hit an exception|was ended by SIGKILL"
    ),
    "silent exit": _infeasible(_pods(exit_at_start=7), "crash", "exit code 7"),
    "main memory": _infeasible(_pods(oom_killed_at_start=True), "out_of_memory", "OOMKilled"),
    "gpu memory": _infeasible(_pods(), "out_of_memory", parameters={"mem_frac": 0.05}),
    "bad flag": _infeasible(_pods(), "bad_flag", extra=("--no-such-flag", "1")),
    "unsupported": _infeasible(_pods(), "unsupported", parameters={"attention_backend": "trtllm_mha"}),
    "flag ignored": _infeasible(_pods(overrides={"mem_frac": 0.6}), "not_applied", parameters={"mem_frac": 0.7}),
    "never loads": _infeasible(_pods(hang_at_start=True), "not_ready", settings={"load_s": 1.0}),
    "never ready": _infeasible(_pods(never_ready=True), "not_ready", settings={"load_s": 1.0}),
    "too many GPUs": _infeasible(_pods(), "no_fit", "16 GPUs", gpus=16, settings={"schedule_s": 0.5}),
    "no such node": _infeasible(_pods(), "no_fit", "labels", settings={"schedule_s": 0.5, "node": "n9"}),
    "no node is there": _failed(_lose_all, "not scheduled", settings={"schedule_s": 0.5}),
    "quota": _failed(_world(pod_quota=QUOTA), "exceeded quota"),
    "quota for a while": Cell(_world(pod_quota=QUOTA), deployments=2, after="teardown"),
    "policy": _failed(lambda play: play.refuse(lambda: denied_by_webhook("policy", POLICY)), POLICY, deployments=1),
    "webhook is down": _failed(_world(webhook_down=True), "webhook", **IMPATIENT),
    "webhook is slow": Cell(_world(webhook_s=0.2)),
    "webhook of pods is down": _failed(
        lambda play: play.refuse(lambda: webhook_unreachable("pods", "https://hook:443/")), "webhook"
    ),
    "no such model": _failed(_pods(), "nope", settings={"model": Reference("ClusterBaseModel", "nope")}, deployments=1),
    "misfit": _failed(Play.misfit, "RuntimeValidationError", deployments=1),
    "typo in the template": _failed(_pods(), "minReplcias", settings={"template": TYPO}, deployments=1),
    "controller is down": _failed(_world(controller_down=True), "waiting for OME", settings={"schedule_s": 0.5}),
    "controller is down for a while": Cell(
        _world(controller_down=True), settings={"schedule_s": SHORTLY_S}, deployments=2, after="teardown"
    ),
    "API: 500": Cell(lambda play: play.burst(500)),
    "API: 429": Cell(lambda play: play.burst(429)),
    "API: 401": Cell(_api(status=401, count=2)),
    "API: 500 without end": _failed(_api(status=500, **CREATION), "etcdserver", **IMPATIENT),
    "API: slow": Cell(_api(delay_s=0.1)),
    "API: 504": Cell(_api(status=504, count=1, **CREATION)),
    "watches live shortly": Cell(_short_watches),
}
LATER = {
    "crash": _infeasible(lambda play: play.signal(signal.SIGKILL), "crash", "SIGKILL"),
    "hang": _infeasible(lambda play: play.signal(signal.SIGSTOP), "timeout", "no answer within"),
    "node loss": Cell(_lose_node, deployments=2),
    "loss of all nodes": _failed(_lose_all, "", settings={"schedule_s": SHORTLY_S}),
    "pod deleted": Cell(lambda play: play.delete("Pod"), deployments=2),
    "service deleted": Cell(lambda play: play.delete("InferenceService"), deployments=2),
    "API: 500": Cell(lambda play: play.burst(500)),
    "API: 429": Cell(lambda play: play.burst(429)),
    "dropped watches": Cell(lambda play: play.world.faults.api.drop_watches()),
}

OVERRIDES = {
    ("load", "hang"): _infeasible(LATER["hang"].strike, "not_ready", settings={"load_s": 1.5}),
    ("load", "pod deleted"): Cell(LATER["pod deleted"].strike),
    **{("teardown", name): Cell(cell.strike, settings=cell.settings) for name, cell in LATER.items()},
}
FORWARD: dict[str, Any] = {"access": "port_forward"}
DURING: dict[tuple[str, str], Cell] = {
    **{(moment, name): cell for moment in MOMENTS for name, cell in LATER.items()},
    **OVERRIDES,
    **{(at, "forward dropped"): Cell(Play.drop_forward, settings=FORWARD, deployments=2) for at in MOMENTS[1:4]},
    ("teardown", "forward dropped"): Cell(Play.drop_forward, settings=FORWARD),
    ("start", "every request fails"): _infeasible(_pods(error_share=1.0), "request_errors", "HTTP 500"),
    ("start", "many requests fail"): _infeasible(_pods(error_share=0.5, error_code=503), "request_errors", "HTTP 503"),
    ("start", "crash after requests"): _infeasible(_pods(crash_after_requests=3), "crash"),
    ("start", "hang after requests"): _infeasible(_pods(hang_after_requests=3), "timeout"),
}
AT_END = {
    "watches live shortly": Cell(_short_watches),
    "slow to die": Cell(_pods(slow_to_die=True)),
    "will not die": Cell(_pods(will_not_die=True)),
    "API: slow": Cell(_api(delay_s=0.1)),
    "API: 401": Cell(_api(status=401, count=2)),
    "API: 504": Cell(_api(status=504, count=1, **DELETION)),
}
BARELY: dict[str, Any] = {"settings": {"teardown_s": STUCK_S}}
STUCK = {
    "will not die, not even by force": Cell(
        lambda play: (
            play.world.faults.add(will_not_die=True),
            play.world.faults.api.add(Fault(status=500, verbs=frozenset({"delete"}), resources=frozenset({"pods"}))),
        ),
        says="still there|etcdserver",
        **IMPATIENT,
        **BARELY,
    ),
    "API: 500 without end": Cell(_api(status=500), says="etcdserver", **IMPATIENT, **BARELY),
    "API: 500 for deletions": Cell(_api(status=500, **DELETION), says="etcdserver", **IMPATIENT, **BARELY),
    "controller is down": Cell(_world(controller_down=True), says="held by", **BARELY),
}


@pytest.fixture
def stage(
    world: Emulator, connection: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Cell, str], Play]]:
    """Makes plays; after the test everything is as it should be, and nothing is left of them."""
    monkeypatch.setattr(ome, "NODE_CHECK_S", 0.05)
    monkeypatch.setattr(ome_view, "FORCE", ((1, GENTLE_S / TEARDOWN_S), (0, FORCE_S / TEARDOWN_S)))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # this process forwards ports by itself
    made: list[Play] = []

    def make(cell: Cell, at: str) -> Play:
        cluster = connection.with_patience(cell.patience_s)
        more = {name: getattr(cell, name) for name in ("settings", "extra", "gpus", "parameters")}
        play = Play(world, cluster, tmp_path / str(len(made)), at, cell.strike, until=cell.after, **more)
        made.append(play)
        return play

    hooks = list(world.store.mutating["pods"])
    yield make
    heal(world, hooks)
    for play in made:
        play.backend.stop(Deadline.after(STOP_S))
    until(lambda: leftovers(world) == [])


def heal(world: Emulator, hooks: list[Any]) -> None:
    """End every fault."""
    world.faults.clear()
    world.faults.api.clear()
    world.store.mutating["pods"][:] = hooks
    world.apply(objects())


def leftovers(world: Emulator) -> list[str]:
    """What of any trial is in the cluster."""
    kinds = ("InferenceService", "Deployment", "ReplicaSet", "Pod", "Service")
    found = [thing for kind in kinds for thing in world.objects(kind, NAMESPACE)]
    return [f"{thing['kind']} {thing['metadata']['name']}" for thing in found] + list(world.processes())


Stage = Callable[[Cell, str], Play]


def assert_ended(play: Play, record: TrialRecord, cell: Cell, rungs: int) -> None:
    """The record is the one that was to be, also on disk, and says what was measured."""
    failure = record.failure
    assert (record.outcome, failure.kind if failure else None) == (cell.outcome, cell.kind), failure
    assert re.search(cell.says, failure.reason if failure else "")
    assert play.struck
    assert play.backend.starts == cell.deployments, record.notes
    assert [note.split(": ")[0] for note in record.notes] == ["deployed again after"] * (cell.deployments - 1)
    assert [each.rung for each in record.rungs] == list(range(rungs))
    assert play.folder.rungs(record.trial.name) == record.rungs
    assert play.folder.record(record.trial.name) == record


def assert_nothing_is_left(world: Emulator) -> None:
    assert [left for left in leftovers(world) if left.split()[0] in ("InferenceService", "Pod")] == []
    until(lambda: leftovers(world) == [])
    assert kube_watch.active() == 0


@pytest.mark.parametrize("fault", AT_START)
def test_start(world: Emulator, stage: Stage, fault: str) -> None:
    """A fault that is there from the beginning."""
    cell = AT_START[fault]
    play = stage(cell, "start")
    assert_ended(play, play.run(), cell, rungs=2 if cell.outcome == "completed" else 0)
    assert_nothing_is_left(world)


@pytest.mark.parametrize(("at", "fault"), DURING)
def test_later(world: Emulator, stage: Stage, at: str, fault: str) -> None:
    """A fault that comes at some moment of a trial: what was measured before it stays."""
    cell = DURING[at, fault]
    play = stage(cell, at)
    assert_ended(play, play.run(), cell, rungs=2 if cell.outcome == "completed" else KEPT.get(at, 0))
    assert_nothing_is_left(world)


@pytest.mark.parametrize("fault", AT_END)
def test_teardown(world: Emulator, stage: Stage, fault: str) -> None:
    """A fault that makes the teardown harder does not keep it from its end."""
    cell = AT_END[fault]
    play = stage(cell, "teardown")
    assert_ended(play, play.run(), cell, rungs=2)
    assert_nothing_is_left(world)


@pytest.mark.parametrize("by", ["stop", "sweep"])
@pytest.mark.parametrize("fault", STUCK)
def test_stuck(world: Emulator, stage: Stage, fault: str, by: str) -> None:
    """What cannot be removed is told beside the result, and goes once the fault is over."""
    cell = STUCK[fault]
    play = stage(cell, "teardown")
    hooks = list(world.store.mutating["pods"])
    assert_ended(play, play.run(), replace(cell, kind="infrastructure"), rungs=2)
    assert leftovers(world) != []
    heal(world, hooks)
    if by == "stop":
        play.backend.stop(Deadline.after(STOP_S))
    else:
        anchor = Anchor.create(play.cluster, NAMESPACE, EXPERIMENT, "test")
        recovery.sweep(anchor, Deadline.after(STOP_S))
        anchor.delete()
    assert_nothing_is_left(world)


def test_what_stays_of_a_trial_goes_while_the_experiment_goes_on(
    world: Emulator, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API is away for a teardown and for some looks after it; what a running trial has is left alone."""
    monkeypatch.setattr(recovery, "REAP_S", 0.05)
    monkeypatch.setattr(ome_site, "connect", lambda task: stuck.cluster)
    go_on = threading.Event()
    cell, healthy = STUCK["API: 500 for deletions"], Cell(lambda play: go_on.wait(STOP_S))
    running = stage(replace(healthy, parameters={"mem_frac": 0.7}), "load")
    stuck = stage(cell, "teardown")
    stuck.root = running.root
    with ThreadPoolExecutor(1) as aside, ome_site.Ome(task(), settings()).held(stuck.folder, [], lambda trial: None):
        ended = aside.submit(running.run)
        until(lambda: running.struck)
        assert_ended(stuck, stuck.run(), replace(cell, kind="infrastructure"), rungs=2)
        assert len(services(world)) == 2
        world.faults.api.clear()
        until(lambda: len(services(world)) == 1)
        go_on.set()
        assert_ended(running, ended.result(), healthy, rungs=2)
        assert_nothing_is_left(world)


@pytest.mark.parametrize("fault", ["slow to die", "will not die"])
def test_a_teardown_that_is_helped_along_reports_as_ever(
    world: Emulator, stage: Stage, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may delete what a worker is just removing; the worker still waits for the end of the pods."""
    monkeypatch.setattr(recovery, "REAP_S", 0.05)
    monkeypatch.setattr(ome_site, "connect", lambda task: play.cluster)
    cell = AT_END[fault]
    play = stage(cell, "teardown")
    with ome_site.Ome(task(), settings()).held(play.folder, [], lambda trial: None):
        assert_ended(play, play.run(), cell, rungs=2)
        assert_nothing_is_left(world)


def services(world: Emulator) -> list[str]:
    return [service["metadata"]["name"] for service in world.objects("InferenceService", NAMESPACE)]


@pytest.mark.parametrize(
    ("at", "fault"),
    [("start", "webhook is down"), ("rung0", "crash"), ("rung1", "loss of all nodes"), ("teardown", "will not die")],
)
def test_the_experiment_goes_on(world: Emulator, stage: Stage, at: str, fault: str) -> None:
    """A trial that follows one with a fault works as if nothing had been."""
    cells = {**{("start", name): cell for name, cell in AT_START.items()}, **DURING}
    cells |= {("teardown", name): cell for name, cell in AT_END.items()}
    hooks = list(world.store.mutating["pods"])
    stage(cells[at, fault], at).run()
    heal(world, hooks)
    healthy = Cell(_pods())
    play = stage(healthy, "start")
    assert_ended(play, play.run(), healthy, rungs=2)
    assert_nothing_is_left(world)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_kubectl_dropped(world: Emulator, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward by kubectl that drops fails the rung as the infrastructure's fault, and another one follows."""
    monkeypatch.setattr(shutil, "which", lambda name: KUBECTL)
    cluster = Cluster.connect(str(world.kubeconfig_tls))
    cell = Cell(Play.drop_forward, settings=FORWARD, deployments=2)
    play = stage(cell, "rung1")
    play.cluster = cluster.with_patience(PATIENCE_S)
    assert_ended(play, play.run(), cell, rungs=2)
    play.backend.stop(Deadline.after(STOP_S))
    assert_nothing_is_left(world)
    cluster.close()
