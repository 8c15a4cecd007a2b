"""What all trials of one experiment share, worked out once before anything starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytune_autotuner.backends import Deployment
from raytune_autotuner.benchmarks import Benchmark
from raytune_autotuner.benchmarks.genai_cli import GenaiCli
from raytune_autotuner.benchmarks.genai_server import GenaiServer
from raytune_autotuner.canary import Exam
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.command import build_argv, gpu_count
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.engines.localmodel import chat_template_file, model_path, resolved, tokenizer_for
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import Launch, Roofline
from raytune_autotuner.foresight.facts import of_task
from raytune_autotuner.objectives import Context
from raytune_autotuner.packing import Need
from raytune_autotuner.planning.plan import ladder
from raytune_autotuner.records import Parameters, Rung, TrialId, config_hash
from raytune_autotuner.site import Local, Site
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Task
from raytune_autotuner.trial import Job, Trial


@dataclass(frozen=True)
class Given:
    """A configuration that is deployed as a file says it, in place of being made from parameters."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: int | None = None
    """Of each replica; ``None`` where the file leaves that to its command line."""
    manifest: Mapping[str, Any] | None = None
    """OME: the whole service."""


@dataclass(frozen=True)
class Setup:
    """Travels to the workers, so it holds values only; ``trial`` brings one to life where it is called."""

    task: Task
    engine: Engine
    folder: ExperimentFolder
    tokenizer: str
    site: Site = Local()  # noqa: RUF009 - a value
    command: tuple[str, ...] | None = None
    """Of the runtime in use today; ``None`` is the engine file's."""
    runtime_args: tuple[str, ...] = ()
    """The flags in use today; the baseline is exactly these."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the engine file's placeholders stand for, besides host and port."""
    known: Mapping[str, float] = field(default_factory=dict)
    """Of the model and its GPUs (see ``foresight.facts``)."""
    given: Mapping[str, Given] = field(default_factory=dict)
    """By the hash of the parameters that stand for them."""
    image: str | None = None
    """OME: what the engine runs in."""
    hardware: tuple[str, ...] = ()
    """OME: the kinds of GPUs that the nodes say they have; empty text where one does not say it."""
    client_socket: Path | None = None
    """Of the preloaded benchmark client on the driver's machine; trials elsewhere start their own."""

    @property
    def rungs(self) -> tuple[Rung, ...]:
        return ladder(self.task)

    @property
    def launch(self) -> Launch:
        """How configurations look to the engine."""
        task = self.task
        raw_flags = {name: p.flag for name, p in task.parameters.items() if p.flag}
        return Launch(self.engine, self.runtime_args, task.extra_args, raw_flags)

    @property
    def roofline(self) -> Roofline | None:
        """What is expected of configurations before anything was measured, where enough is known for that."""
        return Roofline.of(self.task, self.launch, self.known)

    def gpus(self, parameters: Parameters) -> int:
        return self.site.gpus(self._engine_gpus(parameters))

    def need(self, parameters: Parameters) -> Need:
        """What a trial reserves."""
        return self.site.need(self._engine_gpus(parameters))

    def _engine_gpus(self, parameters: Parameters) -> int:
        given = self.given.get(config_hash(parameters))
        if given is not None and given.gpus is not None:
            return given.gpus
        if self.task.resources.gpus is not None:
            return self.task.resources.gpus
        ours = (*self.runtime_args, *self.task.extra_args)
        return gpu_count(self.engine, parameters, given.argv if given else ours)

    def trial(
        self,
        trial: TrialId,
        number: int,
        parameters: Parameters,
        queued_s: float = 0.0,
        node: str | None = None,
    ) -> Trial:
        job = Job(
            deployment=self._deployment(trial, parameters),
            number=number,
            rungs=self.rungs[-1:] if trial.again else self.rungs,
            warmup_requests=self.task.benchmark.warmup_requests,
            context=Context(self.gpus(parameters), self.task.optimization),
            timeout_s=float(self.task.optimization.timeout_per_iteration),
            queued_s=queued_s,
            notes=self.site.notes(),
            node=node,
            api_key=os.environ.get(self.task.benchmark.api_key_env or ""),
            exam=self._exam(trial, parameters),
            limited=self.task.optimization.budget is not None,
        )
        backend = self.site.backend(trial, self._engine_gpus(parameters), node)
        return Trial(job, backend, self.site.benchmark(trial) or self._client(), self.folder)

    def _exam(self, trial: TrialId, parameters: Parameters) -> Exam | None:
        """Of the baseline when a lossy parameter is searched, and of every configuration that sets one.

        Confirming runs are for those whose trial was not compared; without a search there is no baseline for it.
        """
        canary, benchmark = self.task.optimization.canary, self.task.benchmark
        if canary == "none" or not benchmark.task.endswith("-to-text"):
            return None
        baseline = TrialId("baseline", config_hash({}))
        again = trial.purpose == "confirm" and baseline.name in self.folder.trial_names()
        if trial.purpose not in ("baseline", "search") and not again:
            return None
        presets = (name for preset in self.task.presets for name in self.engine.presets[preset].parameters)
        if trial.config == baseline.config:
            names = {self.engine.canonical(name) or name for name in (*self.task.parameters, *presets)}
        else:
            names = {name for name, value in parameters.items() if value is not None and value is not False}
        known = (self.engine.parameters.get(name) for name in names)
        lossy = any(parameter is not None and parameter.lossy for parameter in known)
        key = os.environ.get(benchmark.api_key_env or "")
        return Exam(canary, baseline.config, key) if lossy else None

    @contextmanager
    def shared_client(self, scratch: Path) -> Iterator[Path | None]:
        """The preloaded benchmark client that all trials on this machine use, in a new folder of its own.

        Raises:
            EnvironmentFault: the tokenizer cannot be had, or genai-bench does not start.
        """
        server = GenaiServer.start(self.tokenizer, scratch, self.folder.name)
        try:
            server.wait_ready(Deadline.after(CLIENT_TIMEOUT_S))
            yield server.socket
        finally:
            server.close()

    def _argv(self, parameters: Parameters) -> tuple[str, ...]:
        task = self.task
        return build_argv(
            self.engine,
            command=self.command,
            runtime_args=self.runtime_args,
            extra_args=task.extra_args,
            parameters=parameters,
            raw_flags=self.launch.raw_flags,
            facts=self.facts,
        )

    def _deployment(self, trial: TrialId, parameters: Parameters) -> Deployment:
        given = self.given.get(trial.config)
        return Deployment(
            experiment=self.folder.name,
            trial=trial,
            engine=self.engine,
            parameters=parameters,
            argv=given.argv if given else self._argv(parameters),
            served_name=self.facts["served_name"],
            gpus=self.gpus(parameters),
            folder=self.folder.root.workdir(f"trials/{trial.name}"),
            env=given.env if given else self.task.runtime.env,
            manifest=given.manifest if given else None,
        )

    def _client(self) -> Benchmark:
        settings = self.task.benchmark
        return GenaiCli(
            settings,
            model_name=self.facts["served_name"],
            tokenizer=self.tokenizer,
            api_backend=settings.api_backend or self.engine.api_backend,
            server_engine=self.engine.server_engine,
            api_key=api_key(self.task),
            socket=self.client_socket,
        )


CLIENT_TIMEOUT_S = 300.0
"""For genai-bench's imports and the tokenizer; half a minute on a slow machine, more when a hub has to send it."""


def api_key(task: Task) -> str | None:
    """The key that requests carry, from the environment.

    Raises:
        EnvironmentFault: the task names a variable that is not set.
    """
    name = task.benchmark.api_key_env
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise EnvironmentFault(f"benchmark.api_key_env names {name}, which is not set in the environment")
    return value


def prepare(task: Task, engine: Engine, storage: Storage, experiment: str) -> Setup:
    """Look at everything the task needs, before anything is created.

    Raises:
        EnvironmentFault: something the task needs is not here.
        SpecError: the task does not fit what is here.
    """
    api_key(task)
    if task.optimization.strategy == "optuna" and importlib.util.find_spec("optuna") is None:
        raise EnvironmentFault("strategy optuna needs its package: pip install 'raytune-autotuner[optuna]'")
    tokenizer = _tokenizer(task)
    facts = {"served_name": task.benchmark.model_name or task.model.name}
    path = model_path(task.model) if task.model.path else None
    if path is not None:
        facts["model_path"] = str(path)
    if task.model.chat_template:
        facts["chat_template"] = str(chat_template_file(task.model.chat_template))
    site: Site = Local(task.resources.cpus)
    command, args = task.runtime.command, task.runtime.args
    known: Mapping[str, float] = of_task(task)
    image, hardware = None, tuple[str, ...]()
    if task.backend == "ome":
        from raytune_autotuner.ome_site import known_facts, open_ome  # the client of Kubernetes is slow to import

        site, runtime, engine = open_ome(task, engine, least_gpus(task, engine))
        command, args = runtime.command, runtime.args
        known = {**known_facts(task), **known}
        image = task.ome.image or runtime.image
        hardware = tuple(sorted({node.product for node in site.gpu_nodes() or ()}))
    return Setup(
        task=task,
        engine=engine,
        folder=ExperimentFolder(storage, experiment),
        tokenizer=tokenizer or _models_own(path),
        site=site,
        command=command,
        runtime_args=args,
        facts=facts,
        known=known,
        image=image,
        hardware=hardware,
    )


def least_gpus(task: Task, engine: Engine) -> int:
    """Of the baseline, without which an experiment proves nothing."""
    return task.resources.gpus if task.resources.gpus is not None else gpu_count(engine, {}, ())


def _tokenizer(task: Task) -> str | None:
    """The task's tokenizer: a folder, or the id of one on a hub."""
    named = task.benchmark.model_tokenizer
    if named is None:
        return None
    if (local := resolved(named)).exists():
        return str(local)
    if named.startswith(("/", ".", "~")):
        raise SpecError.single("benchmark.model_tokenizer", f"there is no folder {named}")
    return named


def _models_own(path: Path | None) -> str:
    if path is None:
        raise EnvironmentFault("benchmark.model_tokenizer: name a folder or a hub id; no model.path to take it from")
    return str(tokenizer_for(path))
