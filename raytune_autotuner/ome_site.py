"""A namespace of a Kubernetes cluster with OME, as the site of an experiment.

Looked at before anything is created, held by the anchor while the experiment runs, and empty of its objects afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raytune_autotuner import recovery, resources
from raytune_autotuner.anchor import EXPERIMENT, Anchor, object_name
from raytune_autotuner.anchor import labels as anchor_labels
from raytune_autotuner.backends import Backend
from raytune_autotuner.backends.ome import OmeBackend
from raytune_autotuner.backends.ome_manifest import (
    HOST,
    PYTHON,
    OmeSettings,
    Reference,
    SecretKey,
    Section,
    check_template,
)
from raytune_autotuner.backends.ome_runtime import Program, Runtime, read_runtime
from raytune_autotuner.benchmarks import Benchmark
from raytune_autotuner.benchmarks.ome_job import OmeJob, OmeJobSettings, notes
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.doctor import Finding, Needs, examine, gpu_nodes
from raytune_autotuner.engines.command import build_argv, gpu_count
from raytune_autotuner.engines.engine import Engine, load_engine
from raytune_autotuner.errors import AutotunerError, EnvironmentFault, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import facts
from raytune_autotuner.kube import BASE_MODEL, CLUSTER_BASE_MODEL, NODE, Cluster
from raytune_autotuner.packing import GpuNode, Need, pods
from raytune_autotuner.records import Parameters, TrialId
from raytune_autotuner.task.spec import Task

logger = logging.getLogger(__name__)

SWEEP_S = 300.0
DOCTOR_S = 5.0
"""The patience of questions that only look; a dead webhook would take a minute else."""
CLIENT_CPUS, WAITING_CPUS = 0.5, 0.1
"""Of a trial's worker: when it runs the benchmark client, and when a BenchmarkJob does that."""


@dataclass(frozen=True)
class Ome:
    """A namespace of a cluster."""

    task: Task
    settings: OmeSettings
    experiment: str = ""

    def cluster(self) -> Cluster:
        return connect(self.task)

    def backend(self, trial: TrialId, gpus: int, node: str | None = None) -> Backend:
        settings = replace(self.settings, gpus_per_replica=gpus, node=node)
        return OmeBackend(self.cluster(), settings, self.experiment, trial)

    def notes(self) -> tuple[str, ...]:
        return tuple(notes(self.task.benchmark)) if self.task.ome.benchmark == "benchmark_job" else ()

    def gpus(self, engine_gpus: int) -> int:
        beside = sum(part.gpus * part.replicas for part in self.settings.sections.values())
        return engine_gpus * self.settings.replicas + beside

    def need(self, engine_gpus: int) -> Need:
        beside = [part.gpus for part in self.settings.sections.values() for _ in range(part.replicas) if part.gpus]
        cpus = CLIENT_CPUS if self.task.ome.benchmark == "direct" else WAITING_CPUS
        return Need((*pods(engine_gpus, self.settings.replicas), *beside), self.task.resources.cpus or cpus)

    def gpu_nodes(self) -> Sequence[GpuNode]:
        """Those that the trials' pods may go to; what this experiment has there already is its own to use."""
        own = anchor_labels(self.experiment)[EXPERIMENT] if self.experiment else None
        return gpu_nodes(self.cluster(), self.settings.node_selector, own)

    def benchmark(self, trial: TrialId) -> Benchmark | None:
        ome = self.task.ome
        if ome.benchmark == "direct":
            return None
        settings = OmeJobSettings(
            benchmark=self.task.benchmark,
            namespace=self.settings.namespace,
            experiment=self.experiment,
            trial=trial,
            service=object_name(self.experiment, trial),
            image=ome.benchmark_image,
            claim=ome.results_claim,
            owner=self.settings.owner or {},
            template=(resources.templates() / "ome" / "benchmark_job.yaml.j2").read_text(encoding="utf-8"),
            node_selector=ome.node_selector,
            tolerations=ome.tolerations,
        )
        return OmeJob(self.cluster(), settings)

    @contextmanager
    def held(self, folder: ExperimentFolder, open: Collection[TrialId], ended: Callable[[str], None]) -> Iterator[Ome]:
        cluster, namespace = self.cluster(), self.settings.namespace
        held = Anchor.create(cluster, namespace, folder.name, folder.root.location(), folder.own_id())
        with held as anchor:  # first, or its own would be orphans
            try:
                _remove_orphans(cluster, namespace)
                recovery.sweep(anchor, Deadline.after(SWEEP_S), open)
                owner = anchor.owner_reference()
                with recovery.reaping(anchor, folder):
                    yield replace(self, settings=replace(self.settings, owner=owner), experiment=folder.name)
            finally:
                for trial in recovery.sweep(anchor, Deadline.after(SWEEP_S)):
                    ended(trial)
                anchor.delete()


def _remove_orphans(cluster: Cluster, namespace: str) -> None:
    """What other experiments have left; where it cannot be removed, that is no reason not to begin."""
    deadline = Deadline.after(SWEEP_S)
    orphans = recovery.find_orphans(cluster, namespace)
    for experiment in dict.fromkeys(orphan.experiment for orphan in orphans):
        try:
            recovery.remove(cluster, [orphan for orphan in orphans if orphan.experiment == experiment], deadline)
        except AutotunerError as error:
            logger.warning("what experiment %s has left cannot be removed: %s", experiment, error)


def connect(task: Task) -> Cluster:
    return Cluster.connect(task.ome.kubeconfig, task.ome.context)


def namespace_of(task: Task) -> str:
    return task.ome.namespace or task.model.namespace or "default"


def needs(task: Task, gpus: int) -> Needs:
    """What ``doctor`` has to look at for a task whose largest trial takes that many GPUs on a node."""
    return Needs(
        namespace=namespace_of(task),
        model=task.model.name,
        runtime=task.base_runtime,
        model_kind=task.ome.model_kind,
        runtime_kind=task.ome.runtime_kind or "ClusterServingRuntime",
        gpus=gpus,
        claim=task.ome.results_claim if task.ome.benchmark == "benchmark_job" else None,
        port_forward=task.ome.access != "service",
    )


def check_up(task: Task, gpus: int) -> list[Finding]:
    return examine(connect(task).with_patience(DOCTOR_S), needs(task, gpus))


def open_ome(task: Task, engine: Engine, gpus: int) -> tuple[Ome, Runtime, Engine]:
    """The site of an OME task, with the runtime in use today and the engine that it runs.

    Raises:
        EnvironmentFault: something in the cluster is missing; says what and how to mend it.
        SpecError: the task cannot be run that way.
    """
    faults = [finding for finding in check_up(task, gpus) if finding.level == "error"]
    if faults:
        raise EnvironmentFault("the cluster is not ready:\n" + "\n".join(map(described, faults)))
    assert task.base_runtime is not None
    runtime = read_runtime(connect(task), task.base_runtime, task.ome.runtime_kind, namespace_of(task))
    engine = engine if task.engine else _engine_of(runtime, engine)
    return Ome(task, _settings(task, runtime, engine)), runtime, engine


def known_facts(task: Task) -> dict[str, float]:
    """What the cluster tells of the model and of the GPUs; nothing where it may not be read."""
    cluster = connect(task)
    base = BASE_MODEL if task.ome.model_kind == "BaseModel" else CLUSTER_BASE_MODEL
    found: dict[str, float] = {}
    with suppress(AutotunerError):
        model = cluster.get(base, task.model.name, namespace_of(task) if base.namespaced else None)
        found |= facts.of_base_model((model or {}).get("spec") or {})
    with suppress(AutotunerError):
        nodes = cluster.list(NODE, None, task.ome.node_selector)
        labels = {n["metadata"]["name"]: n["metadata"].get("labels") or {} for n in nodes}
        having = {node.name for node in gpu_nodes(cluster, task.ome.node_selector)}
        found |= facts.of_nodes({name: said for name, said in labels.items() if name in having})
    return found


def described(finding: Finding) -> str:
    return f"{finding.level}: {finding.subject}: {finding.message}" + (f"; run: {finding.fix}" if finding.fix else "")


def _engine_of(runtime: Runtime, assumed: Engine) -> Engine:
    words = " ".join((*runtime.command, *runtime.args[:3]))
    found = next((name for name in ("sglang", "vllm") if name in words), assumed.name)
    return assumed if found == assumed.name else load_engine(found)


def _settings(task: Task, runtime: Runtime, engine: Engine) -> OmeSettings:
    ome = task.ome
    template = Path(ome.template).read_text(encoding="utf-8") if ome.template else ""
    if ome.template:
        check_template(template, ome.template)
    return OmeSettings(
        namespace=namespace_of(task),
        model=Reference(ome.model_kind, task.model.name),
        runtime=Reference(runtime.kind, runtime.name),
        template=template,
        template_source=ome.template or OmeSettings.template_source,
        labels=ome.labels,
        annotations=ome.annotations,
        replicas=ome.replicas,
        node_selector=ome.node_selector,
        tolerations=ome.tolerations,
        priority_class=ome.priority_class,
        image=ome.image,
        env=ome.env,
        secret_env={name: SecretKey(ref.secret, ref.key) for name, ref in ome.secret_env.items()},
        port=runtime.port,
        container=runtime.engine.container,
        probed=runtime.engine.probed,
        decoder=_decoder(task, runtime, engine),
        router=_router(task, runtime),
        access=ome.access,
        schedule_s=ome.schedule_timeout_s,
        pull_s=ome.pull_timeout_s,
        load_s=ome.load_timeout_s,
        teardown_s=ome.teardown_timeout_s,
    )


def _decoder(task: Task, runtime: Runtime, engine: Engine) -> Section | None:
    if task.ome.decoder is None:
        return None
    program = _declared(runtime.decoder, runtime, "decoder")
    parameters: Parameters = task.ome.decoder.parameters
    argv = build_argv(
        engine,
        command=program.command,
        runtime_args=program.args,
        extra_args=(),
        parameters=parameters,
        raw_flags={},
        facts={"host": HOST, "python": PYTHON, "port": str(program.port)},
    )
    gpus = gpu_count(engine, parameters, program.args)
    return Section(argv, gpus, task.ome.decoder.replicas, program.container, program.probed)


def _router(task: Task, runtime: Runtime) -> Section | None:
    if task.ome.router is None:
        return None
    program = _declared(runtime.router, runtime, "router")
    argv = (*program.command, *task.ome.router.args) if task.ome.router.args else ()
    return Section(argv, 0, task.ome.router.replicas, program.container, program.probed)


def _declared(program: Program | None, runtime: Runtime, name: str) -> Program:
    if program is None:
        raise SpecError.single(f"ome.{name}", f"{runtime.kind} {runtime.name} has no {name}")
    return program
