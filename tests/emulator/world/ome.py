"""OME's controller for InferenceServices, as far as it can be seen from outside (version 0.1.5)."""

from __future__ import annotations

import logging

from tests.emulator.api.errors import ApiError
from tests.emulator.api.objects import at
from tests.emulator.world.cluster_api import change_status, condition, ensure, event, owned_by, set_condition
from tests.emulator.world.context import Context
from tests.emulator.world.nodes import Object
from tests.emulator.world.ome_components import (
    Component,
    Unmergeable,
    components,
    external_service,
    model_config,
)
from tests.emulator.world.ome_webhooks import find_model, find_runtime

FINALIZER = "inferenceservice.finalizers"
SERVICES = "inferenceservices.ome.io"
SOURCE = "v1beta1Controllers"
RETRY_S = 10.0
CONTROLLER_DOWN_RETRY_S = 0.2
"""Real seconds."""
LOG = logging.getLogger(__name__)


class Ome:
    """Reconciles one InferenceService at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def reconcile(self, namespace: str, name: str) -> None:
        """One round; what cannot be made now is tried again later."""
        key = ("inferenceservice", namespace, name)
        if self._context.faults.controller_down:
            self._context.loop.after(CONTROLLER_DOWN_RETRY_S, key, lambda: self.reconcile(namespace, name))
            return
        service = self._store.find(SERVICES, name, namespace)
        if service is None:
            return
        try:
            if "deletionTimestamp" in service["metadata"]:
                self._finalize(service)
                return
            service = self._hold(service)
            parts = self._parts(service)
            self._make(service, parts)
        except Unmergeable as fault:
            event(self._store, service, "Warning", fault.reason, fault.message, SOURCE)
            self._context.after(RETRY_S, key, lambda: self.reconcile(namespace, name))
            return
        except ApiError as error:
            if error.code == 409:
                raise
            # Only the controller's own log tells.
            LOG.info("InferenceService %s/%s: %s", namespace, name, error)
            self._context.after(RETRY_S, key, lambda: self.reconcile(namespace, name))
            return
        self._report(service, parts)

    def _finalize(self, service: Object) -> None:
        finalizers = service["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            service["metadata"]["finalizers"] = [each for each in finalizers if each != FINALIZER]
            self._store.update(SERVICES, service)

    def _hold(self, service: Object) -> Object:
        finalizers = service["metadata"].setdefault("finalizers", [])
        if FINALIZER in finalizers:
            return service
        finalizers.append(FINALIZER)
        return self._store.update(SERVICES, service)

    def _parts(self, service: Object) -> list[Component]:
        namespace, spec = service["metadata"]["namespace"], service["spec"]
        model = None
        if name := at(spec, "model.name"):
            model = find_model(self._store, name, namespace)
            if model is None:
                raise Unmergeable("ModelReconcileError", f"Failed to reconcile base model: {name} not found")
        name = at(spec, "runtime.name")
        if not name:
            raise Unmergeable("RuntimeSelectionError", "no runtime selected: automatic selection is not emulated")
        runtime = find_runtime(self._store, name, namespace)
        if runtime is None:
            raise Unmergeable("RuntimeFetchError", f"Failed to fetch runtime {name}: not found")
        if runtime["spec"].get("disabled"):
            raise Unmergeable("RuntimeValidationError", f"specified runtime {name} is disabled")
        self._check_format(model, runtime)
        return components(service, model, runtime)

    def _check_format(self, model: Object | None, runtime: Object) -> None:
        wanted = at((model or {}).get("spec"), "modelFormat.name")
        supported = runtime["spec"].get("supportedModelFormats") or []
        known = [each for each in supported if (at(each, "modelFormat.name") or each.get("name")) in (wanted, None)]
        if wanted and supported and not known:
            name = runtime["metadata"]["name"]
            raise Unmergeable(
                "RuntimeValidationError", f"runtime {name} does not support model format {wanted} of this model"
            )

    def _make(self, service: Object, parts: list[Component]) -> None:
        for part in parts:
            self._put_deployment(part)
            ensure(self._store, "services", part.network_service())
            if at(part.spec, "annotations.ome.io/autoscalerClass") != "external":
                ensure(self._store, "horizontalpodautoscalers.autoscaling", part.autoscaler())
        ensure(self._store, "configmaps", model_config(service))
        ensure(self._store, "services", external_service(service, parts))

    def _put_deployment(self, part: Component) -> None:
        wanted = part.deployment()
        found = ensure(self._store, "deployments.apps", wanted)
        if not owned_by(found, part.service["metadata"]["uid"]):
            raise ApiError(409, f"Deployment {part.name} is still that of an earlier InferenceService")
        if _said(found) != _said(wanted) and found["metadata"].get("annotations", {}).get(GENERATION) != _generation(
            part
        ):
            # In place: the old pods serve until the new ones do, and Ready says nothing of it.
            found["spec"] |= {key: wanted["spec"][key] for key in ("replicas", "template")}
            found["metadata"].setdefault("annotations", {})[GENERATION] = _generation(part)
            self._store.update("deployments.apps", found)

    # Status

    def _report(self, service: Object, parts: list[Component]) -> None:
        metadata = service["metadata"]
        before = (condition(service, "Ready") or {}).get("status")
        deployments = {part.kind: self._store.find("deployments.apps", part.name, part.namespace) for part in parts}
        front = external_service(service, parts)
        port = front["spec"]["ports"][0]["port"]
        url = f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local:{port}"

        def fill(status: Object) -> None:
            for part in parts:
                self._component_status(status, part, deployments[part.kind])
            set_condition(status, "IngressReady", "True", "IngressDisabled")
            engine = condition({"status": status}, "EngineReady") or {}
            state = "True" if engine.get("status") == "True" else engine.get("status", "Unknown")
            set_condition(status, "Ready", state, engine.get("reason", "") if state != "True" else "")
            status["conditions"].sort(key=lambda each: each["type"])
            status["url"] = url
            status["address"] = {"url": url}
            status["modelStatus"] = self._model_status(service, parts[0], deployments["engine"])

        after = change_status(self._store, SERVICES, metadata["name"], metadata["namespace"], fill)
        now = (condition(after, "Ready") or {}).get("status")
        if after is not None and before != now:
            if now == "True":
                said = f"InferenceService [{metadata['name']}] is Ready"
                event(self._store, after, "Normal", "InferenceServiceReady", said, SOURCE)
            elif before == "True":
                said = f"InferenceService [{metadata['name']}] is no longer Ready"
                event(self._store, after, "Warning", "InferenceServiceNotReady", said, SOURCE)

    def _component_status(self, status: Object, part: Component, deployment: Object | None) -> None:
        kind = f"{part.kind.capitalize()}Ready"
        available = condition(deployment, "Available")
        if deployment is None or available is None:
            set_condition(status, kind, "Unknown")
            return
        set_condition(status, kind, available["status"], available["reason"], available.get("message", ""))
        entry = status.setdefault("components", {}).setdefault(part.kind, {})
        if available["status"] == "True":
            entry["url"] = f"http://{part.name}.{part.namespace}.svc.cluster.local"
        status["observedGeneration"] = at(deployment, "status.observedGeneration") or 1

    def _model_status(self, service: Object, engine: Component, deployment: Object | None) -> Object:
        """From one pod, and only as of this reconcile: OME does not watch pods."""
        if (condition(deployment, "Available") or {}).get("status") == "True":
            copies = at(deployment, "status.availableReplicas") or 0
            return {
                "transitionStatus": "UpToDate",
                "modelRevisionStates": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
                "modelCopies": {"failedCopies": 0, "totalCopies": copies},
            }
        pods = self._store.list("pods", engine.namespace, labels=f"app={engine.labels()['app']}")
        failure = next((found for pod in pods if (found := _failure(pod))), None)
        said: Object = {
            "transitionStatus": "BlockedByFailedLoad" if failure else "InProgress",
            "modelRevisionStates": {
                "activeModelState": "",
                "targetModelState": "FailedToLoad" if failure else "Loading" if _running(pods) else "Pending",
            },
        }
        if failure:
            said["lastFailureInfo"] = failure
            said["modelCopies"] = {"failedCopies": 1, "totalCopies": 0}
        elif old := at(service.get("status"), "modelStatus.lastFailureInfo"):
            said["lastFailureInfo"] = old
        return said


GENERATION = "emulated/generation"


def _generation(part: Component) -> str:
    return str(part.service["metadata"].get("generation", 1))


def _said(deployment: Object) -> list[object]:
    """What an in-place update would change: the containers' command lines, images and resources."""
    containers = at(deployment, "spec.template.spec.containers") or []
    keys = ("name", "image", "command", "args")
    return [deployment["spec"]["replicas"], [[each.get(key) for key in keys] for each in containers]]


def _running(pods: list[Object]) -> bool:
    return any("running" in part["state"] for pod in pods for part in at(pod, "status.containerStatuses") or ())


def _failure(pod: Object) -> Object | None:
    """What OME makes of the engine's container; an OOM kill shows only once it crash-loops."""
    for status in at(pod, "status.containerStatuses") or ():
        now = at(status, "state.terminated")
        last = at(status, "lastState.terminated")
        looping = at(status, "state.waiting.reason") == "CrashLoopBackOff"
        ended = now if (now or {}).get("reason") == "Error" else last if looping else None
        if ended:
            return {"reason": "ModelLoadFailed", "message": ended.get("message", ""), "exitCode": ended["exitCode"]}
    return None
