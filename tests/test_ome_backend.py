"""The OME backend on the emulated cluster: the contract, the ways to an endpoint, and what goes wrong there."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
import requests

from raytune_autotuner import loopback
from raytune_autotuner.backends import Backend, Deployment, ome, ome_access
from raytune_autotuner.backends.ome import MANIFEST, OmeBackend
from raytune_autotuner.backends.ome_access import Direct, Kubectl, Relay
from raytune_autotuner.backends.ome_manifest import OmeSettings, Reference, Section, service_name, shipped_template
from raytune_autotuner.backends.ome_view import SERVICE_LABEL, Observer
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault, TransientError, TrialInfeasible
from raytune_autotuner.kube import INFERENCE_SERVICE, POD, SERVICE, Cluster, Unreachable
from raytune_autotuner.kube import watch as kube_watch
from raytune_autotuner.records import Endpoint, TrialId
from tests.backend_contract import PATIENCE_S, BackendContract, Phases, start
from tests.emulator.api import Admission, Fault
from tests.emulator.cluster import Emulator, Node
from tests.fakes.cluster import FakeCluster
from tests.ome_cluster import NAMESPACE, SERVED, crds, deployment, objects, settings
from tests.waiting import until

TIME_SCALE = 60.0
KUBECTL = shutil.which("kubectl")


@pytest.fixture(scope="module")
def world() -> Iterator[Emulator]:
    with Emulator(nodes=[Node("n1", gpus=8)], time_scale=TIME_SCALE, crds=crds()) as world:
        world.apply(objects())
        yield world


@pytest.fixture(scope="module")
def connection(world: Emulator) -> Iterator[Cluster]:
    cluster = Cluster.connect(str(world.kubeconfig))
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(world: Emulator, connection: Cluster) -> Iterator[Cluster]:
    """Patient for a few seconds only; everything is as it should be before, and must be gone after."""
    yield connection.with_patience(5.0)
    world.faults.clear()
    world.faults.api.clear()
    assert leftovers(world) == []


def leftovers(world: Emulator) -> list[str]:
    """What of any trial is in the cluster."""
    kinds = ("InferenceService", "Deployment", "ReplicaSet", "Pod", "Service", "HorizontalPodAutoscaler")
    found = [thing for kind in kinds for thing in world.objects(kind, NAMESPACE)]
    return [f"{thing['kind']} {thing['metadata']['name']}" for thing in found] + list(world.processes())


Make = Callable[..., OmeBackend]


@pytest.fixture
def make(world: Emulator, cluster: Cluster) -> Iterator[Make]:
    """Makes backends and stops them when the test is over."""
    made: list[OmeBackend] = []

    def make(of: Cluster = cluster, *, like: Deployment | None = None, **more: Any) -> OmeBackend:
        """``like`` a trial's own, which may be what an earlier worker had."""
        named = (like.experiment, like.trial) if like else ()
        options = {"access": "service", "schedule_s": 20.0, "load_s": 20.0, **more}
        made.append(OmeBackend(of, settings(**options), *named))
        return made[-1]

    yield make
    world.faults.clear()
    world.faults.api.clear()
    for backend in made:
        backend.stop(Deadline.after(PATIENCE_S))


class TestOmeBackendContract(BackendContract):
    """What every backend does."""

    @pytest.fixture(autouse=True)
    def _world(self, world: Emulator, cluster: Cluster) -> None:
        self.world, self.cluster = world, cluster

    def new_backend(self) -> Backend:
        return OmeBackend(self.cluster, settings(access="service"))

    def deployment(self, folder: Path, fault: str = "") -> Deployment:
        parameters = {"out_of_memory": {"mem_frac": 0.05}, "unsupported": {"attention_backend": "trtllm_mha"}}
        extra = {
            "bad_flag": ("--no-such-flag", "1"),
            "crash": ("--random-seed", "1"),
            "never_ready": ("--random-seed", "2"),
        }
        found = deployment(self.cluster, folder, *extra.get(fault, ()), **parameters.get(fault, {}))
        if fault == "crash":
            self.world.faults.add(pods=service_name(found), crash_at_start="RuntimeError: something is wrong")
        if fault == "never_ready":
            self.world.faults.add(pods=service_name(found), never_ready=True)
        return found

    def break_engine(self, backend: Backend) -> None:
        for pod in self.world.objects("Pod", NAMESPACE):
            self.world.signal(pod["metadata"]["name"], signal.SIGKILL)


class TestLife:
    """A trial that goes well."""

    def test_nothing_is_left(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """After stop neither objects nor processes nor watches are there; manifest and log are kept."""
        backend = make()
        wanted = deployment(cluster, tmp_path, mem_frac=0.7)
        endpoint = start(backend, wanted)
        assert requests.post(f"{endpoint.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=10).ok
        backend.stop(Deadline.after(PATIENCE_S))
        assert leftovers(world) == []
        assert kube_watch.active() == 0
        assert (tmp_path / MANIFEST).read_text().startswith("apiVersion: ome.io/v1beta1")
        (log,) = tmp_path.glob("*.log")
        assert "fired up" in log.read_text()

    def test_argv_is_what_the_pod_runs(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """The endpoint tells the pod's own command line, and the engine confirms it."""
        endpoint = start(make(), deployment(cluster, tmp_path, mem_frac=0.7))
        assert endpoint.argv[endpoint.argv.index("--mem-fraction-static") + 1] == "0.7"
        assert endpoint.info["server"]["mem_fraction_static"] == 0.7
        assert endpoint.metrics_url == f"{endpoint.url}/metrics"

    def test_phases(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Waiting for a node, getting the image and loading are told apart."""
        phases = Phases()
        make().start(deployment(cluster, tmp_path), Deadline.after(PATIENCE_S), phases)
        told = list(dict.fromkeys(phases))
        assert [phase for phase in told if phase != "pull"] == ["deploy", "schedule", "load"]
        assert told.index("pull") == 2 if "pull" in told else True  # it may be over before anyone looks

    def test_watches_are_shared(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Several trials in a process need five watches in all."""
        for number in range(3):
            start(make(), deployment(cluster, tmp_path / str(number), repeat=number))
        assert kube_watch.active() == 5

    def test_what_a_dead_worker_left_is_adopted(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A service that is ready and as it would be made anew serves on; nothing is deployed again."""
        wanted = deployment(cluster, tmp_path / "b")
        first = start(make(like=wanted), deployment(cluster, tmp_path / "a"))
        before = identities(cluster)
        again = start(make(like=wanted), wanted)
        assert (first.adopted, again.adopted) == (False, True)
        assert (first.leftover, again.leftover) == (False, True)
        assert identities(cluster) == before
        assert again.argv == first.argv

    @pytest.mark.parametrize("change", ["spec", "flags", "owner"])
    def test_another_leftover_is_removed(self, make: Make, cluster: Cluster, tmp_path: Path, change: str) -> None:
        """One that somebody has edited, or that is not what the trial needs, goes before the trial begins."""
        wanted = deployment(cluster, tmp_path / "a")
        start(make(), wanted)
        before = identities(cluster)
        if change == "spec":
            edit = {"spec": {"engine": {"minReplicas": 1, "maxReplicas": 2}}}
            cluster.patch(INFERENCE_SERVICE, service_name(wanted), NAMESPACE, edit)
        more = {"labels": {"team": "new"}} if change == "owner" else {}
        other = replace(wanted, argv=(*wanted.argv, "--random-seed", "5")) if change == "flags" else wanted
        endpoint = start(make(like=other, **more), other)
        assert (endpoint.adopted, endpoint.leftover) == (False, True)
        assert not set(identities(cluster)) & set(before)

    def test_a_start_that_fails_still_tells_what_it_found(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """What it has removed held its GPUs until then, and somebody has to be charged for it."""
        wanted = deployment(cluster, tmp_path)
        start(make(), wanted)
        other, backend = replace(wanted, argv=(*wanted.argv, "--random-seed", "5")), make(like=wanted)

        def give_up(phase: str, detail: str) -> None:
            if phase != "deploy":
                raise InterruptedError

        with pytest.raises(InterruptedError):
            backend.start(other, Deadline.after(PATIENCE_S), give_up)
        assert backend.stop(Deadline.after(PATIENCE_S))

    def test_what_is_not_needed_any_more_is_removed(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A worker that finds everything measured has only to end what the one before it started."""
        wanted = deployment(cluster, tmp_path)
        start(make(), wanted)
        later = OmeBackend(cluster, settings(), wanted.experiment, wanted.trial)
        assert [later.stop(Deadline.after(PATIENCE_S)) for _ in range(2)] == [True, False]
        assert identities(cluster) == []

    def test_somebody_elses_is_not(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A service of this name that is not this experiment's stays."""
        first, wanted = make(), deployment(cluster, tmp_path)
        start(first, wanted)
        name = service_name(wanted)
        cluster.patch(
            INFERENCE_SERVICE, name, NAMESPACE, {"metadata": {"labels": {"raytune-autotuner/experiment": "other"}}}
        )
        second = make()
        with pytest.raises(EnvironmentFault, match="not this experiment's"):
            start(second, wanted)
        second.stop(Deadline.after(PATIENCE_S))
        assert cluster.get(INFERENCE_SERVICE, name, NAMESPACE) is not None

    def test_disaggregated(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Engine, decoder and router: ready when all three are, and the router takes the requests."""
        wanted = deployment(cluster, tmp_path, "--disaggregation-mode", "prefill")
        argv = tuple({"{host}": "0.0.0.0", "{port}": "8080"}.get(word, word) for word in wanted.argv)
        decode = tuple("decode" if word == "prefill" else word for word in argv)
        router = (
            "python3",
            "-m",
            "sglang_router.launch_router",
            "--pd-disaggregation",
            "--host",
            "0.0.0.0",
            "--port",
            "8080",
        )
        backend = make(decoder=Section(decode, gpus=1), router=Section(router))
        endpoint = start(backend, wanted)
        assert endpoint.url == f"http://{_cluster_ip(world, service_name(wanted) + '-router')}:8080"
        assert len(world.objects("Pod", NAMESPACE)) == 3


def identities(cluster: Cluster) -> list[str]:
    return [thing["metadata"]["uid"] for kind in (INFERENCE_SERVICE, POD) for thing in cluster.list(kind, NAMESPACE)]


def _cluster_ip(world: Emulator, service: str) -> str:
    (found,) = [s for s in world.objects("Service", NAMESPACE) if s["metadata"]["name"] == service]
    return str(found["spec"]["clusterIP"])


class TestAccess:
    """The ways to an endpoint."""

    def test_service(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Inside the cluster the Service is used as it is."""
        cluster.inside = True
        backend = make(access="auto")
        start(backend, deployment(cluster, tmp_path))
        assert isinstance(backend._way, Direct)

    @pytest.mark.parametrize(
        ("spec", "url"),
        [
            ({"clusterIP": "10.0.0.1", "ports": [{"port": 8080}]}, "http://10.0.0.1:8080"),
            (
                {"clusterIP": "fd00::1", "ports": [{"name": "grpc", "port": 1}, {"name": "http1", "port": 2}]},
                "http://[fd00::1]:2",
            ),
            ({"clusterIP": "None", "ports": [{"port": 80}]}, "http://s.n.svc.cluster.local:80"),
        ],
    )
    def test_url(self, spec: dict[str, Any], url: str) -> None:
        """The cluster IP, or the name where there is none, and the port that is called http."""
        assert Direct({"metadata": {"name": "s", "namespace": "n"}, "spec": spec}).url == url

    def test_no_port(self) -> None:
        """A Service without a port leads nowhere."""
        with pytest.raises(TransientError, match="no port"):
            Direct({"metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIP": "10.0.0.1"}})

    def test_kubectl_that_cannot(
        self, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kubectl that fails is tried for a while, and then its words are told."""
        monkeypatch.setattr(ome, "OPEN_S", 0.5)
        monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
        with pytest.raises(TransientError, match=r"kubectl port-forward to service .* did not start"):
            start(make(access="port_forward"), deployment(cluster, tmp_path))

    def test_kubectl_that_loses_the_pod(
        self, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kubectl that goes on without its connection is as good as gone."""
        wanted = deployment(cluster, tmp_path)
        direct = make()
        port = start(direct, wanted).url.rpartition(":")[2]
        service = cluster.list(SERVICE, NAMESPACE)[0]
        script = tmp_path / "kubectl"
        lines = [
            "#!/bin/sh",
            f"echo Forwarding from 127.0.0.1:{port}",
            f"read x < {tmp_path}/fifo",
            "echo E1 lost connection to pod",
            "sleep 60",
        ]
        script.write_text("\n".join(lines))
        script.chmod(0o755)
        os.mkfifo(tmp_path / "fifo")
        way = Kubectl(cluster, str(script), service, tmp_path / "log", "test")
        assert way.url == f"http://127.0.0.1:{port}"
        way.check()
        (tmp_path / "fifo").write_text("go\n")
        _raises(way.check, TransientError, "lost connection to pod")
        way.close()

    def test_port_by_name(self) -> None:
        """A Service may name the port of its pods."""
        pod = {
            "metadata": {"name": "p"},
            "spec": {"containers": [{"ports": [{"name": "http1", "containerPort": 30000}]}]},
        }
        assert ome_access._pod_port(pod, {"port": 80, "targetPort": "http1"}) == 30000
        assert ome_access._pod_port(pod, {"port": 80, "targetPort": "81"}) == 81
        assert ome_access._pod_port(pod, {"port": 80}) == 80
        with pytest.raises(TransientError, match="no port named grpc"):
            ome_access._pod_port(pod, {"port": 80, "targetPort": "grpc"})

    @pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
    def test_kubectl(self, world: Emulator, make: Make, tmp_path: Path) -> None:
        """Outside it a port is forwarded by kubectl; its end is a transient error."""
        of = Cluster.connect(str(world.kubeconfig_tls))
        backend = make(of, access="auto")
        wanted = deployment(of, tmp_path)
        endpoint = start(backend, wanted)
        assert endpoint.url.startswith("http://127.0.0.1:")
        assert _answers(endpoint, wanted)
        backend.check()
        way = backend._way
        assert isinstance(way, Kubectl)
        os.kill(way._process.pid, signal.SIGKILL)
        _raises(backend.check, TransientError, "port-forward")
        backend.stop(Deadline.after(PATIENCE_S))
        of.close()

    def test_relay(self, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without kubectl this process forwards; what it cannot reach any more is a transient error."""
        monkeypatch.setattr(shutil, "which", lambda name: None)
        backend = make(access="port_forward")
        wanted = deployment(cluster, tmp_path)
        endpoint = start(backend, wanted)
        assert all(_answers(endpoint, wanted) for _ in range(3))
        assert endpoint.info["server"]["version"]
        way = backend._way
        assert isinstance(way, Relay)
        way.check()
        way._pod = "gone"
        assert not _answers(endpoint, wanted)
        _raises(backend.check, TransientError, "dropped")

    def test_drop_while_starting(
        self, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A forward that drops before anything is measured is opened anew."""
        monkeypatch.setattr(shutil, "which", lambda name: None)
        opened: list[Relay] = []

        class Dropping(Relay):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                opened.append(self)
                if len(opened) == 1:
                    self._pod = "gone"

        monkeypatch.setattr(ome_access, "Relay", Dropping)
        start(make(access="port_forward"), deployment(cluster, tmp_path))
        assert len(opened) == 2

    def test_several_replicas(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A forwarded port would measure one replica of several."""
        with pytest.raises(EnvironmentFault, match="leads to one pod"):
            start(make(access="port_forward", replicas=2), deployment(cluster, tmp_path))


def _answers(endpoint: Endpoint, of: Deployment) -> bool:
    answer = loopback.get(endpoint.url + of.engine.health, 5)
    return answer is not None and answer.ok


def _raises(call: Callable[[], None], kind: type[Exception], words: str) -> None:
    """It raises this before long."""

    def raised() -> bool:
        try:
            call()
        except kind as error:
            return words in str(error)
        return False

    until(raised)


class TestFaults:
    """Each failure ends the wait with its class."""

    def test_image(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """An image that cannot be pulled; whoever looks late sees that it is not tried for a while."""
        world.faults.add(pull_fails="manifest unknown")
        said = r"(?s)(ErrImagePull.*manifest unknown|ImagePullBackOff).*lmsysorg/sglang"
        with pytest.raises(TransientError, match=said):
            start(make(), deployment(cluster, tmp_path))

    def test_mount(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A volume that cannot be mounted."""
        world.faults.add(mount_fails="MountVolume.SetUp failed for volume model: hostPath type check failed")
        with pytest.raises(TransientError, match="FailedMount"):
            start(make(), deployment(cluster, tmp_path))

    def test_main_memory(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A container beyond its memory limit."""
        world.faults.add(oom_killed_at_start=True)
        with pytest.raises(TrialInfeasible, match="OOMKilled") as failure:
            start(make(), deployment(cluster, tmp_path))
        assert failure.value.kind == "out_of_memory"

    def test_silent_end(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """An engine that says nothing: the exit code is told."""
        world.faults.add(exit_at_start=7)
        with pytest.raises(TrialInfeasible, match="exit code 7") as failure:
            start(make(), deployment(cluster, tmp_path))
        assert failure.value.kind == "crash"

    def test_hang(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """An engine that loads for ever: loading has a deadline of its own, and the log is told."""
        world.faults.add(hang_at_start=True)
        with pytest.raises(TrialInfeasible, match=r"not get ready within 2 s") as failure:
            start(make(load_s=2.0), deployment(cluster, tmp_path))
        assert failure.value.kind == "not_ready"
        assert failure.value.log_tail

    def test_too_many_gpus(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """What no node can ever hold does not fit."""
        with pytest.raises(TrialInfeasible, match="16 GPUs, and no node has more than 8") as failure:
            start(make(schedule_s=1.0), deployment(cluster, tmp_path, gpus=16))
        assert failure.value.kind == "no_fit"

    def test_no_such_node(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Neither does what is pinned to a node that there is not."""
        with pytest.raises(TrialInfeasible, match="no node has the labels"):
            start(make(schedule_s=1.0, node="n9"), deployment(cluster, tmp_path))

    def test_gpus_are_taken(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """GPUs that others have are the cluster's fault; the scheduler's words are told."""
        start(make(), deployment(cluster, tmp_path / "a", gpus=8))
        with pytest.raises(TransientError, match=r"not scheduled within 1 s.*Insufficient nvidia.com/gpu"):
            start(make(schedule_s=1.0), deployment(cluster, tmp_path / "b", gpus=8, repeat=1))

    def test_quota(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Pods that a quota keeps out."""
        world.faults.pod_quota = "exceeded quota: gpus, requested: 1, used: 8, limited: 8"
        with pytest.raises(TransientError, match="exceeded quota"):
            start(make(), deployment(cluster, tmp_path))

    def test_runtime_that_does_not_fit_the_model(
        self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path
    ) -> None:
        """What OME refuses after it has taken the service is told in its words."""
        world.apply(objects().replace("name: safetensors", "name: gguf", 1))
        try:
            with pytest.raises(EnvironmentFault, match="OME says RuntimeValidationError"):
                start(make(), deployment(cluster, tmp_path))
        finally:
            world.apply(objects())

    def test_no_such_model(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """What the webhook refuses is told in its words."""
        with pytest.raises(EnvironmentFault, match="nope"):
            start(make(model=Reference("ClusterBaseModel", "nope")), deployment(cluster, tmp_path))

    def test_field_that_there_is_not(self, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A field that OME does not know is named, instead of being dropped without a word."""
        text = shipped_template().replace("minReplicas", "minReplcias")
        with pytest.raises(EnvironmentFault, match="minReplcias"):
            start(make(template=text), deployment(cluster, tmp_path))

    def test_controller_is_down(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Nothing happens: OME is named."""
        world.faults.controller_down = True
        with pytest.raises(TransientError, match="waiting for OME"):
            start(make(schedule_s=1.0), deployment(cluster, tmp_path))
        world.faults.clear()

    def test_webhook_is_down(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A webhook that nobody answers is waited for, and then told."""
        world.faults.webhook_down = True
        with pytest.raises(TransientError, match="webhook"):
            start(make(cluster.with_patience(1.0)), deployment(cluster, tmp_path))

    def test_flag_that_does_not_arrive(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A tuned parameter that OME starts the engine without is no result; it is told before the model is loaded."""

        def override(asked: Admission) -> None:
            args = asked.object["spec"]["containers"][0]["args"]
            args[:] = ["0.5" if word == "0.7" else word for word in args]

        hooks = world.store.mutating["pods"]
        hooks.append(override)
        try:
            with pytest.raises(TrialInfeasible, match="--mem-fraction-static") as failure:
                start(make(), deployment(cluster, tmp_path / "a", mem_frac=0.7))
            assert failure.value.kind == "not_applied"
            endpoint = start(make(), deployment(cluster, tmp_path / "b", "--mem-fraction-static", "0.7"))
            assert endpoint.argv[endpoint.argv.index("--mem-fraction-static") + 1] == "0.5"  # not tuned: only shown
        finally:
            hooks.remove(override)

    def test_flag_that_the_engine_ignores(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Neither is one that arrives and is not used, as the engine's own info tells."""
        world.faults.add(overrides={"mem_frac": 0.6})
        with pytest.raises(TrialInfeasible, match=r"asked for 0.7, the server says 0.6") as failure:
            start(make(), deployment(cluster, tmp_path / "a", mem_frac=0.7))
        assert failure.value.kind == "not_applied"

    def test_outage(
        self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Watches that were given up in a long outage are taken up again."""
        monkeypatch.setattr(kube_watch, "OUTAGE_S", 0.1)
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        fault = world.faults.api.add(Fault(status=503))
        world.faults.api.drop_watches()
        observer = backend._following
        until(lambda: backend.check() or not observer.view.pods)
        world.faults.api.remove(fault)
        until(lambda: backend.check() or observer.view.pods)
        (pod,) = world.objects("Pod", NAMESPACE)
        world.signal(pod["metadata"]["name"], signal.SIGKILL)
        _raises(backend.check, TrialInfeasible, "SIGKILL")

    def test_time_of_the_trial(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """The time of the whole trial ends each stage too; a cluster that is slow is not the configuration's fault."""
        world.faults.controller_down = True
        with pytest.raises(TransientError, match="not scheduled within"):
            make().start(deployment(cluster, tmp_path), Deadline.after(0.5), Phases())

    def test_engine_that_does_not_answer(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A service that says it is ready and does not answer is not ready."""
        wanted = deployment(cluster, tmp_path)
        wanted = replace(wanted, engine=wanted.engine.model_copy(update={"health": "/nothing-here"}))
        with pytest.raises(TrialInfeasible, match="/nothing-here did not answer") as failure:
            start(make(load_s=3.0), wanted)
        assert failure.value.kind == "not_ready"
        assert "fired up" in failure.value.log_tail

    def test_node_loss_while_loading(
        self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node that goes takes the trial with it."""
        monkeypatch.setattr(ome, "NODE_CHECK_S", 0.2)
        world.faults.add(hang_at_start=True)

        def lose(phase: str, detail: str) -> None:
            if phase == "load":
                world.faults.lost_nodes.add("n1")

        with pytest.raises(TransientError, match=r"lost|taken away"):
            make().start(deployment(cluster, tmp_path), Deadline.after(PATIENCE_S), lose)

    def test_node_loss_while_measuring(
        self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also later."""
        monkeypatch.setattr(ome, "NODE_CHECK_S", 0.2)
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        world.faults.lost_nodes.add("n1")
        _raises(backend.check, TransientError, "n1")

    def test_pod_is_taken_away(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A pod that somebody deletes is the cluster's fault, although OME makes a new one."""
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        (pod,) = cluster.list(POD, NAMESPACE)
        world.faults.add(slow_to_die=True)
        cluster.delete(POD, pod["metadata"]["name"], NAMESPACE)
        _raises(backend.check, TransientError, "taken away")

    def test_api_is_away_while_measuring(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A measurement goes on without the API."""
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        world.faults.api.add(Fault(status=500))
        world.faults.api.drop_watches()
        for _ in range(3):
            backend.check()

    def test_bad_weather(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Dropped watches and refused requests do not keep a trial from its start and its end."""
        world.faults.api.add(Fault(status=500, share=0.3))
        world.faults.api.watch_life_s = 0.3
        backend = make(cluster.with_patience(30.0))
        start(backend, deployment(cluster, tmp_path))
        backend.check()
        backend.stop(Deadline.after(PATIENCE_S))
        assert leftovers(world) == []


class TestTeardown:
    """Nothing stays on a GPU."""

    def test_pod_that_ignores_sigterm(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """Stop returns only when the grace period has passed and the pod is gone."""
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        world.faults.add(slow_to_die=True)
        backend.stop(Deadline.after(PATIENCE_S))
        assert leftovers(world) == []

    def test_pod_that_will_not_die(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """What stays in spite of all is named, and a later stop removes it."""
        backend = make()
        start(backend, deployment(cluster, tmp_path))
        (pod,) = world.objects("Pod", NAMESPACE)
        world.faults.add(will_not_die=True)
        held = Fault(status=500, verbs=frozenset({"delete"}), resources=frozenset({"pods"}))
        world.faults.api.add(held)  # not even by force
        backend._cluster.patience_s = 0.1
        with pytest.raises(TransientError, match=pod["metadata"]["name"]):
            backend.stop(Deadline.after(2.0))
        assert world.objects("Pod", NAMESPACE)
        world.faults.clear()
        world.faults.api.clear()
        backend.stop(Deadline.after(PATIENCE_S))
        assert leftovers(world) == []

    def test_force(self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path) -> None:
        """A pod on a node that is lost is removed by force: nobody else would confirm its end."""
        backend = make(teardown_s=2.0)
        start(backend, deployment(cluster, tmp_path))
        world.faults.lost_nodes.add("n1")
        backend.stop(Deadline.after(PATIENCE_S))
        assert world.objects("Pod", NAMESPACE) == []

    def test_lost(
        self, world: Emulator, make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once the node is known to be lost, that does not take the teardown's whole time, which is an hour."""
        monkeypatch.setattr(ome, "LOST_S", 1.0)
        monkeypatch.setattr(ome, "NODE_CHECK_S", 0.05)
        backend = make(teardown_s=3600.0)
        start(backend, deployment(cluster, tmp_path))
        world.faults.lost_nodes.add("n1")
        with pytest.raises(TransientError, match="n1 is lost"):
            until(backend.check)
        backend.stop(Deadline.after(3600.0))
        assert world.objects("Pod", NAMESPACE) == []


def test_settings_are_values() -> None:
    """They can be sent to a worker."""
    assert pickle.loads(pickle.dumps(settings())) == settings()
    assert isinstance(settings(), OmeSettings)


class Away(FakeCluster):
    """A server that is away while logs are asked for; notes with how much patience."""

    patience_s = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def with_patience(self, seconds: float) -> Away:
        other = copy.copy(self)
        other.patience_s = seconds
        return other

    def logs(self, *args: Any, **more: Any) -> str:
        self.asked.append(self.patience_s)
        raise Unreachable("connection refused")


def running(cluster: FakeCluster, folder: Path) -> OmeBackend:
    """A backend whose service is there, with two pods."""
    backend = OmeBackend(cast(Cluster, cluster), settings())
    trial = TrialId("search", "0123456789ab")
    backend._deployment = Deployment("test", trial, load_engine("sglang"), {}, ("python3",), SERVED, 1, folder)
    backend._ours, name = True, service_name(backend._deployment)
    cluster.create(INFERENCE_SERVICE, {"metadata": {"name": name, "namespace": NAMESPACE}})
    backend._observer = Observer(cast(Cluster, cluster), NAMESPACE, name)
    service = cluster.get(INFERENCE_SERVICE, name, NAMESPACE)
    assert service is not None
    for pod in ("one", "two"):
        owners = [{"kind": "InferenceService", "name": name, "uid": service["metadata"]["uid"]}]
        meta = {"name": pod, "namespace": NAMESPACE, "labels": {SERVICE_LABEL: name}, "ownerReferences": owners}
        cluster.create(POD, {"metadata": meta, "spec": {"containers": [{"name": "ome-container"}]}})
    backend._observer.take_in(Deadline.after(0))
    return backend


def test_a_service_is_removed_though_the_way_to_it_cannot_be_closed(tmp_path: Path) -> None:
    """A kubectl that will not die is told, and holds no GPUs."""
    cluster = Away()
    backend = running(cluster, tmp_path)
    backend._way = DroppedWay()
    with pytest.raises(TransientError, match="kubectl will not die"):
        backend.stop(Deadline.after(PATIENCE_S))
    assert cluster.objects(INFERENCE_SERVICE) + cluster.objects(POD) == []


@pytest.mark.parametrize("folder", ["", "is not there"])
def test_logs_hold_up_no_removal(tmp_path: Path, folder: str) -> None:
    """One short question finds out that the server is away; where they cannot be written, they are not kept."""
    cluster = Away()
    if folder:
        cluster.logs = lambda *args, **more: "loading"  # type: ignore[method-assign]
    backend = running(cluster, tmp_path / folder)
    backend.stop(Deadline.after(PATIENCE_S))
    assert cluster.objects(INFERENCE_SERVICE) + cluster.objects(POD) == []
    assert cluster.asked == ([] if folder else [ome.ASIDE_S])


class DroppedWay:
    """A way to a service that has dropped."""

    url = ""

    def close(self) -> None:
        raise TransientError("kubectl will not die")

    def check(self) -> None:
        raise TransientError("the port-forward dropped")


@pytest.mark.parametrize("ends", [True, False])
def test_an_engine_that_ended_says_more_than_the_way_that_dropped(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pod takes the port-forward along, and its end shows a moment later: out of memory in the midst of the traffic
    is the configuration's fault."""
    monkeypatch.setattr(ome, "LAST_WORDS_S", 0.05)
    looks = count(1)

    def look(backend: OmeBackend, observer: object, deadline: Deadline) -> None:
        if next(looks) == 2 and ends:
            raise TrialInfeasible("out_of_memory", "CUDA out of memory")

    monkeypatch.setattr(OmeBackend, "_look", look)
    backend = object.__new__(OmeBackend)
    fault: Any = pytest.raises(TrialInfeasible, match="out_of_memory") if ends else pytest.raises(TransientError)
    with fault:
        backend._check_way(DroppedWay(), cast(Any, None))  # type: ignore[arg-type]
    assert next(looks) > 2
