"""The recommended configuration as something to apply: an InferenceService, a runtime, or a command.

Everything comes from the experiment folder: the service is the trial's own, as its template made it, without what only
a trial needs (its name, labels, owner, node, probe period, strategy); the command is the trial's, with host and port
left open. Both say where they come from, in annotations or comments of the same names. Secrets stay references. Of a
trial that was taken over it is the folder of the experiment that measured it, where no run here has confirmed it.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from raytune_autotuner import __version__, overview
from raytune_autotuner.anchor import CONFIG, EXPERIMENT, MANAGED, TRIAL
from raytune_autotuner.backends.local import SECRET
from raytune_autotuner.backends.ome import MANIFEST
from raytune_autotuner.backends.ome_manifest import DIGEST, HOSTNAME
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.kube import Manifest
from raytune_autotuner.objectives import title
from raytune_autotuner.records import TrialRecord
from raytune_autotuner.render import to_yaml
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.task.spec import Task

Form = Literal["isvc", "runtime", "command"]
FORMS: tuple[str, ...] = get_args(Form)
PREFIX = "raytune-autotuner/"
OURS = frozenset({EXPERIMENT, TRIAL, CONFIG, *MANAGED})
"""Labels by which a cluster knows a trial, and removes it."""
SECTIONS = ("engine", "decoder", "router")
OBJECT_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT = 8080
EXPANSION = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
"""How a pod's command line names an environment variable."""
OPEN = {"{host}": "${HOST:-127.0.0.1}", "{port}": "${PORT:-8080}", "{python}": "${PYTHON:-python3}"}


@dataclass(frozen=True)
class Wish:
    """What is to be written, and how it is to be called."""

    form: Form | None = None
    """Default: an InferenceService for OME, a command for the local engine."""
    trial: str | None = None
    """Its name or number; default: the recommended one."""
    name: str | None = None
    namespace: str | None = None
    replicas: int | None = None
    port: int = PORT


def export(folder: ExperimentFolder, wish: Wish = Wish()) -> str:
    """The text of the file.

    Raises:
        SpecError: there is nothing to export, or not in that form.
        EnvironmentFault: the folder lacks what it needs, or the cluster does not answer (a runtime is made from the
            one that it has).
    """
    results = load_results(folder, overview.read_task(folder))
    record = _chosen(folder, results, wish)
    return written(folder, results.task, record, provenance(results, record), wish)


def written(folder: ExperimentFolder, task: Task, record: TrialRecord, about: Mapping[str, str], wish: Wish) -> str:
    """The text for a trial of this folder; raises what ``export`` does."""
    form = _form(wish, task)
    folder, record = _deployed(folder, record)
    if form == "command":
        return _script(folder, task, record, about, wish.port)
    service = _service(folder, record)
    if form == "isvc":
        return to_yaml(inference_service(service, task, about, wish))
    return to_yaml(serving_runtime(service, task, about, wish))


def _form(wish: Wish, task: Task) -> Form:
    if task.backend == "local" and wish.form in ("isvc", "runtime"):
        raise SpecError.single("--as", f"{wish.form} is an object of OME, and this ran on one machine; use command")
    if wish.name is not None and not OBJECT_NAME.fullmatch(wish.name):
        raise SpecError.single("--name", f"found {wish.name!r}; small letters, digits and dashes, 50 at most")
    if wish.namespace is not None and not NAMESPACE.fullmatch(wish.namespace):
        raise SpecError.single("--namespace", f"found {wish.namespace!r}; small letters, digits and dashes, 63 at most")
    return wish.form or ("command" if task.backend == "local" else "isvc")


def _chosen(folder: ExperimentFolder, results: Results, wish: Wish) -> TrialRecord:
    if wish.trial is None:
        if results.recommended is None:
            raise SpecError.single("", "has no configuration to recommend; --trial names one", results.experiment)
        return results.recommended
    record = folder.record(overview.find_trial(folder, wish.trial))
    if record is None or record.outcome in ("infeasible", "failed"):
        how = f"it ended {record.outcome}" if record else "it has not ended"
        raise SpecError.single("--trial", f"{wish.trial} cannot be exported: {how}", results.experiment)
    return record


def provenance(results: Results, record: TrialRecord) -> dict[str, str]:
    """Where a configuration comes from and what is known of it, as annotations."""
    task = results.task
    loads = f"{', '.join(task.benchmark.scenarios)} at {', '.join(map(str, task.benchmark.levels))}"
    said = {
        "experiment": results.experiment,
        "trial": record.trial.name,
        "config": record.trial.config,
        "parameters": json.dumps(dict(record.parameters)),
        "verdict": _verdict(results, record),
        "objective": title(task.optimization),
        "workload": loads,
        "model": task.model.name,
        "engine": " ".join(filter(None, (task.engine or "", _version(record.engine_info)))),
        "measured": record.started_at,
        "version": __version__,
    }
    return {PREFIX + name: text for name, text in said.items() if text}


def _verdict(results: Results, record: TrialRecord) -> str:
    verdict, winner = results.verdict, results.winner
    if results.baseline is not None and record.trial == results.baseline.trial:
        return "the baseline" + (f" ({verdict.kind} in the search for a better one)" if verdict else "")
    if verdict is None or winner is None or winner.trial.config != record.trial.config:
        return results.ranking.refuted.get(record.trial.config, "not confirmed")
    if not verdict.compared:
        return f"{verdict.kind}: {verdict.reason}"
    return f"{verdict.kind} {verdict.gained()} ({verdict.interval()} at {verdict.confidence:.0%})"


def _version(info: Mapping[str, Any]) -> str:
    """What the server says of its own version, where engines say it."""
    for said in info.values():
        for key in ("version", "build_info"):
            version = str(said.get(key) or "") if isinstance(said, Mapping) else ""
            if version and "unknown" not in version:
                return version
    return ""


def _deployed(folder: ExperimentFolder, record: TrialRecord) -> tuple[ExperimentFolder, TrialRecord]:
    """A run of the trial's configuration that left what it was started with, and its folder: usually the trial itself.

    Of one that was taken over it is a run that confirmed it here, else the one that was measured there.
    """
    if (source := record.reused_from) is None:
        return folder, record
    for each in folder.records():
        if (each.trial.purpose, each.trial.config, each.outcome) == ("confirm", record.trial.config, "completed"):
            return folder, each
    origin = ExperimentFolder(folder.storage, source.experiment)
    measured = origin.record(source.trial)
    if measured is None or measured.started_at != source.measured_at:  # gone, or of a later experiment of that name
        return folder, record
    return origin, measured


def applied(folder: ExperimentFolder, record: TrialRecord) -> str | None:
    """The manifest of a trial's service as it was applied; ``None`` where there is none."""
    folder, record = _deployed(folder, record)
    return _manifest(folder, record)


def _manifest(folder: ExperimentFolder, record: TrialRecord) -> str | None:
    return folder.root.read(f"trials/{record.trial.name}/{MANIFEST}")


def _service(folder: ExperimentFolder, record: TrialRecord) -> Manifest:
    """The trial's service as it was made."""
    text = _manifest(folder, record)
    if text is None:
        source = record.reused_from
        why = f": {source.experiment}, which measured it, is gone; run the task without --reuse" if source else ""
        raise EnvironmentFault(f"{folder.root.location()} has no manifest of the trial {record.trial.name}{why}")
    service: Manifest = yaml.safe_load(text)
    return service


def inference_service(service: Manifest, task: Task, about: Mapping[str, str], wish: Wish) -> Manifest:
    """A trial's service as one that stays."""
    metadata, spec = service["metadata"], copy.deepcopy(service["spec"])
    for section in SECTIONS:
        if section in spec:
            _settle(spec[section], task)
    if wish.replicas is not None:
        spec["engine"] |= {"minReplicas": wish.replicas, "maxReplicas": wish.replicas}
    labels = {name: text for name, text in (metadata.get("labels") or {}).items() if name not in OURS}
    annotations = {name: text for name, text in (metadata.get("annotations") or {}).items() if name != DIGEST}
    found = {
        "name": wish.name or task.task_name,
        "namespace": wish.namespace or metadata["namespace"],
        "labels": labels,
        "annotations": {**annotations, **about},
    }
    return {**service, "metadata": {name: said for name, said in found.items() if said}, "spec": spec}


def _settle(section: dict[str, Any], task: Task) -> None:
    """Take out what is good for a trial only."""
    section.pop("deploymentStrategy", None)
    selector = section.get("nodeSelector") or {}
    selector.pop(HOSTNAME, None)
    if HOSTNAME in task.ome.node_selector:
        selector[HOSTNAME] = task.ome.node_selector[HOSTNAME]
    if not selector:
        section.pop("nodeSelector", None)
    runner = section.get("runner") or {}
    runner.pop("readinessProbe", None)  # the trial only asks more often than the runtime does


def serving_runtime(service: Manifest, task: Task, about: Mapping[str, str], wish: Wish) -> Manifest:
    """The runtime in use today, which the cluster is asked for, with what the trial's service runs in place of its own.

    Raises:
        EnvironmentFault: the cluster does not answer, or the runtime is not what the experiment was run with.
    """
    from raytune_autotuner.backends.ome_runtime import read_runtime  # the client of Kubernetes is slow to import
    from raytune_autotuner.ome_site import connect, namespace_of

    named = service["spec"]["runtime"]
    base = read_runtime(connect(task), named["name"], named["kind"], namespace_of(task)).raw
    return runtime_with(base, service, about, wish)


def runtime_with(base: Manifest, service: Manifest, about: Mapping[str, str], wish: Wish) -> Manifest:
    """A runtime that starts what a service starts."""
    metadata, spec = base["metadata"], copy.deepcopy(dict(base["spec"]))
    for section in SECTIONS:
        if (runner := (service["spec"].get(section) or {}).get("runner")) and f"{section}Config" in spec:
            config = spec[f"{section}Config"]
            config["runner"] = _merged(config.get("runner") or {}, runner)
    kept = {name: text for name, text in (metadata.get("annotations") or {}).items() if "last-applied" not in name}
    found = {
        "name": wish.name or f"{metadata['name']}-tuned",
        "namespace": (wish.namespace or metadata.get("namespace")) if named_in_namespace(base) else None,
        "labels": metadata.get("labels"),
        "annotations": {**kept, **about},
    }
    described = {"apiVersion": service["apiVersion"], "kind": service["spec"]["runtime"]["kind"]}
    return {**described, "metadata": {name: said for name, said in found.items() if said}, "spec": spec}


def named_in_namespace(base: Manifest) -> bool:
    return bool(base["metadata"].get("namespace"))


def _merged(runner: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime's container with the command line, the image, the variables and the GPUs of a trial's."""
    merged = {**runner, **{name: tuned[name] for name in ("command", "args", "image") if tuned.get(name)}}
    if env := {each["name"]: each for each in (*(runner.get("env") or ()), *(tuned.get("env") or ()))}:
        merged["env"] = list(env.values())
    before, after = runner.get("resources") or {}, tuned.get("resources") or {}
    if after:
        merged["resources"] = {
            **before,
            **{kind: {**(before.get(kind) or {}), **amounts} for kind, amounts in after.items()},
        }
    return merged


def _script(folder: ExperimentFolder, task: Task, record: TrialRecord, about: Mapping[str, str], port: int) -> str:
    """A command as a shell script; HOST, PORT and PYTHON in the environment change it."""
    argv, env = record.command or record.argv, dict(task.runtime.env)
    quoted: Callable[[str], str] = shlex.quote
    if task.backend == "ome":
        runner = _service(folder, record)["spec"]["engine"]["runner"]
        argv, env, quoted = (*runner["command"], *runner["args"]), _plain_env(runner), _expanded
    elif not record.command:
        argv = _reopened(argv, folder, record)
    head = [f"# {name}: {_one_line(text)}" for name, text in about.items()]
    if "{python}" in argv:
        head.append("# PYTHON is an interpreter that has what this starts; HOST and PORT say where it listens.")
    exports = [f"export {name}={_reference(name) if SECRET.search(name) else quoted(env[name])}" for name in env]
    lines = ["#!/bin/sh", *head, *exports, f"exec {' '.join(_words(argv, port, quoted))}"]
    return "\n".join(lines) + "\n"


def _plain_env(runner: Mapping[str, Any]) -> dict[str, str]:
    """Of a container; what comes from a Secret is to be set by whoever runs the script."""
    return {each["name"]: each["value"] for each in runner.get("env") or () if "value" in each}


def _reopened(argv: Sequence[str], folder: ExperimentFolder, record: TrialRecord) -> tuple[str, ...]:
    """A command line of an earlier version's record, which has the trial's own port in it."""
    endpoint = folder.endpoint(record.trial.name)
    port = endpoint.url.rsplit(":", 1)[-1] if endpoint else None
    return tuple("{port}" if word == port else word for word in argv)


def _words(argv: Sequence[str], port: int, quoted: Callable[[str], str]) -> Iterator[str]:
    secret = ""
    for word in argv:
        if secret:
            yield _reference(secret)
        elif word in OPEN:
            yield f'"{OPEN[word]}"'.replace(str(PORT), str(port))
        elif SECRET.search(_plain(word.partition("=")[0])) and "=" in word:
            yield f"{word.partition('=')[0]}={_reference(_plain(word.partition('=')[0]))}"
        else:
            yield quoted(word)
        secret = _plain(word) if SECRET.search(_plain(word)) and "=" not in word else ""


def _plain(word: str) -> str:
    """A flag as a name; nothing of what is no flag."""
    return word.lstrip("-").replace("-", "_") if word.startswith("--") else ""


def _reference(name: str) -> str:
    return f'"${{{name.upper()}:?}}"'


def _expanded(text: str) -> str:
    """For a shell, with what a pod would expand expanded by it."""
    if not EXPANSION.search(text):
        return shlex.quote(text)
    escaped = re.sub(r'([\\"`$])', r"\\\1", text)
    return '"' + re.sub(r"\\\$\(([A-Za-z_][A-Za-z0-9_]*)\)", r"${\1}", escaped) + '"'


def _one_line(text: str) -> str:
    return " ".join(text.split())
