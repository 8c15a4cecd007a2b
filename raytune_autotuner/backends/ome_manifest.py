"""A trial's InferenceService: what the task says of it, as variables of the template."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raytune_autotuner import anchor, resources
from raytune_autotuner.backends import Deployment
from raytune_autotuner.backends.ome_runtime import DEFAULT_PORT, MAIN_CONTAINER, split_program
from raytune_autotuner.errors import TrialInfeasible
from raytune_autotuner.kube import INFERENCE_SERVICE, Manifest
from raytune_autotuner.render import check, render

Access = Literal["auto", "service", "port_forward"]
HOSTNAME = "kubernetes.io/hostname"
HOST = "0.0.0.0"
PYTHON = "python3"
PROBE_PERIOD_S = 5
DIGEST = "raytune-autotuner/digest"
GO_TEMPLATE = "{{"
"""OME takes a container's text for a Go template."""


@dataclass(frozen=True)
class Reference:
    """An object of OME that a service names."""

    kind: str
    name: str


@dataclass(frozen=True)
class SecretKey:
    """Where a secret value is; it never passes through this program."""

    secret: str
    key: str


@dataclass(frozen=True)
class Section:
    """A decoder or a router beside the engine. An empty ``argv`` leaves what the runtime runs."""

    argv: tuple[str, ...] = ()
    gpus: int = 0
    replicas: int = 1
    container: str = MAIN_CONTAINER
    probed: bool = False


@dataclass(frozen=True)
class OmeSettings:
    """What an experiment's services have in common; values only, so that it can travel to a worker."""

    namespace: str
    model: Reference
    runtime: Reference
    template: str = field(repr=False, default="")
    """The text of a template of the user's; empty for the one that is shipped."""
    template_source: str = "inference_service.yaml.j2"
    owner: Mapping[str, Any] | None = None
    """The anchor's owner reference."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    gpus_per_replica: int | None = None
    """Of the engine; default: all that the deployment says."""
    node: str | None = None
    """The host name of the node that the engine has to run on."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    priority_class: str | None = None
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, SecretKey] = field(default_factory=dict)
    port: int = DEFAULT_PORT
    """On which the engine listens in its pod."""
    container: str = MAIN_CONTAINER
    probed: bool = False
    """Whether the runtime's engine has a readiness probe (see ``ome_runtime.Program``)."""
    decoder: Section | None = None
    router: Section | None = None
    access: Access = "auto"
    schedule_s: float = 600.0
    """How long pods may wait for OME, for a node and for its GPUs."""
    pull_s: float = 1800.0
    """How long images may be pulled and volumes mounted."""
    load_s: float = 1800.0
    """How long the engine may load the model and warm up."""
    teardown_s: float = 120.0
    """When half of it is over, what is left is ended by force."""

    @property
    def sections(self) -> Mapping[str, Section]:
        """Those beside the engine."""
        return {name: part for name, part in (("decoder", self.decoder), ("router", self.router)) if part is not None}

    @property
    def pods(self) -> int:
        return self.replicas + sum(part.replicas for part in self.sections.values())

    @property
    def front(self) -> str:
        """The section that takes the requests."""
        return "router" if self.router is not None else "engine"

    @property
    def conditions(self) -> tuple[str, ...]:
        """What must hold; OME's Ready leaves decoder and router out, and before v0.1.5 the engine as well."""
        return ("Ready", "EngineReady", *(f"{name.capitalize()}Ready" for name in self.sections))


def service_name(deployment: Deployment) -> str:
    """The InferenceService of a trial; the same in every process."""
    return anchor.object_name(deployment.experiment, deployment.trial)


def full_argv(settings: OmeSettings, deployment: Deployment) -> tuple[str, ...]:
    """The engine's command line as the pod is to have it.

    Raises:
        TrialInfeasible: OME would not hand it on as it is.
    """
    facts = {"{host}": HOST, "{port}": str(settings.port), "{python}": PYTHON}
    return tuple(_said(facts.get(word, word)) for word in deployment.argv)


def _said(word: str) -> str:
    if GO_TEMPLATE in word:
        raise TrialInfeasible("bad_flag", f"{word!r}: OME takes {GO_TEMPLATE} for a template of its own")
    return word


def manifest(settings: OmeSettings, deployment: Deployment) -> Manifest:
    """The InferenceService of a trial.

    Raises:
        SpecError: the template is at fault.
        TrialInfeasible: the command line cannot be said to OME.
    """
    if deployment.manifest is not None:
        return _ours(deployment.manifest, settings, deployment)
    return render(
        settings.template or shipped_template(),
        variables(settings, deployment),
        source=settings.template_source,
        kind=INFERENCE_SERVICE,
    )


def _ours(given: Mapping[str, Any], settings: OmeSettings, deployment: Deployment) -> Manifest:
    """A service of the user's as a trial of ours: only its name, its owner and its node are not its own."""
    spec = copy.deepcopy(dict(given["spec"]))
    for section in ("engine", "decoder") if settings.node else ():
        if section in spec:
            spec[section]["nodeSelector"] = {**(spec[section].get("nodeSelector") or {}), HOSTNAME: settings.node}
    metadata = {
        "name": service_name(deployment),
        "namespace": settings.namespace,
        "labels": {**(given["metadata"].get("labels") or {}), **anchor.labels(deployment.experiment, deployment.trial)},
        "annotations": dict(given["metadata"].get("annotations") or {}),
        "ownerReferences": [dict(settings.owner)] if settings.owner else [],
    }
    return {**given, "metadata": metadata, "spec": spec}


def with_digest(service: Manifest) -> Manifest:
    """The service, saying of itself what it was made to be."""
    metadata = service["metadata"]
    annotations = {**(metadata.get("annotations") or {}), DIGEST: _digest(service)}
    return {**service, "metadata": {**metadata, "annotations": annotations}}


def is_same(found: Manifest, meant: Manifest) -> bool:
    """Whether a service of the cluster is the one that ``with_digest`` would make, untouched since.

    The API server counts the changes of a spec in ``metadata.generation``, from 1.
    """
    metadata = found["metadata"]
    said = (metadata.get("annotations") or {}).get(DIGEST)
    labelled = (metadata.get("labels") or {}).items() >= (meant["metadata"].get("labels") or {}).items()
    untouched = bool(metadata.get("generation") == 1 and labelled)
    return untouched and bool(said == meant["metadata"]["annotations"][DIGEST])


def _digest(service: Manifest) -> str:
    """Of everything in a manifest, so that a service is not taken for one with other labels or another owner."""
    return hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]


def check_template(text: str, source: str) -> None:
    """Whether a template of the user's names only variables that there are.

    Raises:
        SpecError: it does not.
    """
    check(text, VARIABLES, source)


def shipped_template() -> str:
    return (resources.templates() / "ome" / "inference_service.yaml.j2").read_text(encoding="utf-8")


VARIABLES = (
    "name", "namespace", "labels", "annotations", "owner_references", "model_kind", "model_name", "runtime_kind",
    "runtime_name", "node_selector", "tolerations", "priority_class", "parts",
)  # fmt: skip
"""What a template may use; the shipped one explains them."""


def variables(settings: OmeSettings, deployment: Deployment) -> dict[str, Any]:
    pinned = {HOSTNAME: settings.node} if settings.node else {}
    return {
        "name": service_name(deployment),
        "namespace": settings.namespace,
        "labels": {**settings.labels, **anchor.labels(deployment.experiment, deployment.trial)},
        "annotations": dict(settings.annotations),
        "owner_references": [dict(settings.owner)] if settings.owner else [],
        "model_kind": settings.model.kind,
        "model_name": settings.model.name,
        "runtime_kind": settings.runtime.kind,
        "runtime_name": settings.runtime.name,
        "node_selector": {**settings.node_selector, **pinned},
        "tolerations": [dict(each) for each in settings.tolerations],
        "priority_class": settings.priority_class,
        "parts": list(_parts(settings, deployment)),
    }


def _parts(settings: OmeSettings, deployment: Deployment) -> Iterator[dict[str, Any]]:
    env = [
        *({"name": name, "value": _said(value)} for name, value in {**settings.env, **deployment.env}.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": of.secret, "key": of.key}}}
            for name, of in settings.secret_env.items()
        ),
    ]
    gpus = deployment.gpus if settings.gpus_per_replica is None else settings.gpus_per_replica
    engine = Section(full_argv(settings, deployment), gpus, settings.replicas, settings.container, settings.probed)
    for name, section in {"engine": engine, **settings.sections}.items():
        router = name == "router"
        yield {
            "section": name,
            "replicas": section.replicas,
            "container": section.container,
            **_command_line(section.argv),
            "gpus": section.gpus,
            "image": None if router else settings.image,
            "env": [] if router else env,
            "probe_period_s": PROBE_PERIOD_S if section.probed else None,
        }


def _command_line(argv: Sequence[str]) -> dict[str, list[str]]:
    """Both parts non-empty: OME keeps the runtime's where one is empty."""
    command, args = split_program(argv)
    if argv and not args:
        command, args = command[:1], command[1:]
    return {"command": list(command), "args": list(args)}
