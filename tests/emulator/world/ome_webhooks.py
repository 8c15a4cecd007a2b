"""OME's admission webhooks: what they fill in and what they refuse."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.emulator.api import Admission, Store, denied_by_webhook, webhook_unreachable
from tests.emulator.world.context import Context

Object = dict[str, Any]
SERVICE_MUTATOR = "inferenceservice.ome-webhook-server.defaulter"
SERVICE_VALIDATOR = "inferenceservice.ome-webhook-server.validator"
BENCHMARK_VALIDATOR = "benchmarkjob.ome-webhook-server.validator"
POD_MUTATOR = "inferenceservice.ome-webhook-server.pod-mutator"
NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
SCENARIOS = {
    "text-to-text": re.compile(r"^N\(\d+,\d+\)\/\(\d+,\d+\)|U\(\d+,\d+\)(?:\/\(\d+,\d+\))?|D\(\d+,\d+\)$"),
    "text-to-embeddings": re.compile(r"^E\(\d+,\d+\)$"),
}
COMPONENTS = {"engine": 3, "decoder": 3, "router": 2}
"""With the replicas that the webhook allows at most when nothing is said."""


def register(context: Context) -> None:
    """Hook the webhooks into the API."""
    store = context.store
    services, benchmarks = "inferenceservices.ome.io", "benchmarkjobs.ome.io"
    store.mutating.setdefault(services, []).append(_called(context, SERVICE_MUTATOR, _default))
    validate = _called(context, SERVICE_VALIDATOR, lambda asked: _validate(store, asked))
    store.validating.setdefault(services, []).append(validate)
    check = _called(context, BENCHMARK_VALIDATOR, _validate_benchmark)
    store.validating.setdefault(benchmarks, []).append(check)
    store.mutating.setdefault("pods", []).append(_pods(context))


def _called(context: Context, name: str, hook: Callable[[Admission], None]) -> Callable[[Admission], None]:
    def call(asked: Admission) -> None:
        if asked.operation == "DELETE":
            return
        _reach(context, name)
        hook(asked)

    return call


def _reach(context: Context, name: str) -> None:
    # The world's own thread must not wait: its controllers are several programs, and only one thread.
    if context.faults.webhook_s and threading.current_thread().name != "emulated-world":
        time.sleep(context.faults.webhook_s)
    if context.faults.webhook_down:
        raise webhook_unreachable(name, "https://ome-webhook-server-service.ome.svc:443/")


def _pods(context: Context) -> Callable[[Admission], None]:
    def call(asked: Admission) -> None:
        if asked.operation == "CREATE" and "ome.io/inferenceservice" in (asked.object["metadata"].get("labels") or {}):
            _reach(context, POD_MUTATOR)
            annotations = asked.object["metadata"].setdefault("annotations", {})
            annotations.setdefault("prometheus.io/scrape", "true")

    return call


def _default(asked: Admission) -> None:
    spec, metadata = asked.object.get("spec") or {}, asked.object["metadata"]
    if spec.get("decoder") is not None:
        mode = "PDDisaggregated"
    elif (spec.get("engine") or {}).get("leader") is not None:
        mode = "MultiNode"
    else:
        mode = "RawDeployment"
    (metadata.setdefault("annotations", {})).setdefault("ome.io/deploymentMode", mode)
    for component, most in COMPONENTS.items():
        if isinstance(spec.get(component), dict):
            spec[component].setdefault("minReplicas", 1)
            spec[component].setdefault("maxReplicas", most)


def _validate(store: Store, asked: Admission) -> None:
    spec, metadata = asked.object.get("spec") or {}, asked.object["metadata"]
    if not NAME.match(metadata["name"]):
        _refuse(
            SERVICE_VALIDATOR,
            f"the InferenceService {metadata['name']!r} is invalid: a InferenceService name must consist of lower case"
            " alphanumeric characters or '-', start with an alphabetic character and end with an alphanumeric one",
        )
    if spec.get("decoder") is not None and spec.get("engine") is None:
        _refuse(SERVICE_VALIDATOR, "decoder cannot be specified without engine")
    name = (spec.get("model") or {}).get("name")
    if name and find_model(store, name, metadata["namespace"]) is None:
        _refuse(SERVICE_VALIDATOR, f"ClusterBaseModel or BaseModel {name} not found")
    if not (spec.get("runtime") or {}).get("name") and not _selectable(store, metadata["namespace"]):
        _refuse(SERVICE_VALIDATOR, f"no runtime found to support model {name}")


def _selectable(store: Store, namespace: str) -> bool:
    runtimes = [*store.list("servingruntimes.ome.io", namespace), *store.list("clusterservingruntimes.ome.io")]
    formats = [each for runtime in runtimes for each in runtime["spec"].get("supportedModelFormats") or ()]
    return any(each.get("autoSelect") for each in formats)


def find_model(store: Store, name: str, namespace: str) -> Object | None:
    """The namespaced one first, whatever kind was said, as OME 0.1.5 does."""
    found = store.find("basemodels.ome.io", name, namespace)
    return found if found is not None else store.find("clusterbasemodels.ome.io", name)


def find_runtime(store: Store, name: str, namespace: str) -> Object | None:
    """As with models."""
    found = store.find("servingruntimes.ome.io", name, namespace)
    return found if found is not None else store.find("clusterservingruntimes.ome.io", name)


def _validate_benchmark(asked: Admission) -> None:
    spec = asked.object.get("spec") or {}
    endpoint = spec.get("endpoint") or {}
    if ("inferenceService" in endpoint) == ("endpoint" in endpoint):
        _refuse(BENCHMARK_VALIDATOR, "exactly one of endpoint.inferenceService or endpoint.endpoint must be set")
    uri = (spec.get("outputLocation") or {}).get("storageUri", "")
    if not re.match(r"^(pvc://([^/:]+:)?[^/]+/.+|(oci|s3|az|gs|github)://.+)$", uri):
        _refuse(BENCHMARK_VALIDATOR, f"invalid storage URI: {uri}")
    pattern = SCENARIOS.get(spec.get("task", ""))
    for scenario in spec.get("trafficScenarios") or ():
        if pattern and not pattern.search(scenario):
            _refuse(BENCHMARK_VALIDATOR, f"invalid traffic scenario {scenario!r} for task {spec['task']}")
    extra = spec.get("additionalRequestParams") or {}
    if "temperature" in extra and not re.fullmatch(r"-?\d+(\.\d*)?", extra["temperature"]):
        _refuse(BENCHMARK_VALIDATOR, f"temperature must be a float: {extra['temperature']!r}")
    if extra.get("ignore_eos", "true") not in ("true", "false"):
        _refuse(BENCHMARK_VALIDATOR, f"ignore_eos must be true or false: {extra['ignore_eos']!r}")


def _refuse(webhook: str, message: str) -> None:
    raise denied_by_webhook(webhook, message)
