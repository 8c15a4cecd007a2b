"""OME's controller for BenchmarkJobs, as far as it can be seen from outside (version 0.1.5)."""

from __future__ import annotations

import re

from tests.emulator.api.objects import at, timestamp
from tests.emulator.world.cluster_api import change_status, condition, ensure, owner_reference
from tests.emulator.world.context import Context
from tests.emulator.world.merge import merge
from tests.emulator.world.nodes import GPU, Object
from tests.emulator.world.ome_components import node_label, storage_path
from tests.emulator.world.ome_webhooks import find_model

FINALIZER = "benchmarkjob.finalizers"
BENCHMARKS = "benchmarkjobs.ome.io"
IMAGE = "ghcr.io/moirai-internal/genai-bench:0.1.113"
REQUEUE_S = 60.0
OF_CONTAINER = ("image", "env", "envFrom", "volumeMounts", "resources")
OF_POD = ("tolerations", "nodeSelector", "affinity", "volumes")
"""Fields of ``podOverride``."""
CLAIM = re.compile(r"^pvc://(?:[^/:]+:)?(?P<claim>[^/]+)/(?P<path>.+)$")


class OmeBenchmark:
    """Reconciles one BenchmarkJob at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def reconcile(self, namespace: str, name: str) -> None:
        """One round. What is missing shows nowhere: the state just stays Pending."""
        value = self._store.find(BENCHMARKS, name, namespace)
        if value is None or self._context.faults.controller_down:
            self._again(namespace, name, REQUEUE_S if value else None)
            return
        finalizers = value["metadata"].setdefault("finalizers", [])
        if "deletionTimestamp" in value["metadata"]:
            if FINALIZER in finalizers:
                finalizers.remove(FINALIZER)
                self._store.update(BENCHMARKS, value)
            return
        if FINALIZER not in finalizers:
            finalizers.append(FINALIZER)
            value = self._store.update(BENCHMARKS, value)
        job = self._store.find("jobs.batch", name, namespace)
        if job is None:
            wanted = self._job(value)
            if wanted is not None:
                job = ensure(self._store, "jobs.batch", wanted)
            else:
                self._again(namespace, name, REQUEUE_S)
        change_status(self._store, BENCHMARKS, name, namespace, lambda status: _fill(status, job))

    def _again(self, namespace: str, name: str, seconds: float | None) -> None:
        if seconds is not None:
            key = ("benchmarkjob", namespace, name)
            self._context.after(seconds, key, lambda: self.reconcile(namespace, name))

    def _job(self, value: Object) -> Object | None:
        """The Job, or ``None`` while something that it needs is not there."""
        metadata, spec = value["metadata"], value["spec"]
        arguments = self._endpoint(spec)
        claim = CLAIM.match(at(spec, "outputLocation.storageUri") or "")
        if arguments is None or claim is None:
            return None
        if self._store.find("persistentvolumeclaims", claim["claim"], metadata["namespace"]) is None:
            return None
        model = self._model(spec)
        args = ["benchmark", *arguments, "--task", spec["task"]]
        args += ["--max-time-per-run", str(spec["maxTimePerIteration"])]
        args += ["--max-requests-per-run", str(spec["maxRequestsPerIteration"])]
        args += [word for each in spec.get("trafficScenarios") or () for word in ("--traffic-scenario", each)]
        args += [word for each in spec.get("numConcurrency") or () for word in ("--num-concurrency", str(each))]
        if spec.get("resultFolderName"):
            args += ["--experiment-folder-name", spec["resultFolderName"]]
        args += _server(spec.get("serviceMetadata") or {})
        args += ["--experiment-base-dir", f"/{claim['path']}"]
        return _job(value, args, claim["claim"], claim["path"], model)

    def _endpoint(self, spec: Object) -> list[str] | None:
        """The words that say what is measured; ``None`` when it is not there or not ready."""
        named = at(spec, "endpoint.inferenceService")
        if not named:
            direct = spec["endpoint"]["endpoint"]
            words = ["--api-backend", direct["apiFormat"], "--api-base", direct["url"]]
            return [*words, "--api-model-name", direct.get("modelName", "")]
        service = self._store.find("inferenceservices.ome.io", named["name"], named["namespace"])
        if service is None or (condition(service, "Ready") or {}).get("status") != "True":
            return None
        model = self._model(spec)
        if model is None or not storage_path(model):
            return None
        # The model's name is this literal whatever is served.
        words = ["--api-backend", "openai", "--api-base", service["status"]["url"], "--api-key", "sample-key"]
        return [*words, "--api-model-name", "vllm-model", "--model-tokenizer", storage_path(model)]

    def _model(self, spec: Object) -> Object | None:
        named = at(spec, "endpoint.inferenceService")
        service = self._store.find("inferenceservices.ome.io", named["name"], named["namespace"]) if named else None
        name = at((service or {}).get("spec"), "model.name")
        return find_model(self._store, name, named["namespace"]) if name else None


def _server(said: Object) -> list[str]:
    if not said:
        return []
    words = ["--server-engine", said["engine"], "--server-gpu-type", said["gpuType"]]
    return [*words, "--server-version", said["version"], "--server-gpu-count", str(said["gpuCount"])]


def _job(value: Object, args: list[str], claim: str, path: str, model: Object | None) -> Object:
    metadata, override = value["metadata"], value["spec"].get("podOverride") or {}
    container: Object = {
        "name": metadata["name"],
        "image": IMAGE,
        "command": ["genai-bench"],
        "args": args,
        "env": [{"name": "ENABLE_UI", "value": "false"}],
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
        "volumeMounts": [{"name": "results", "mountPath": f"/{path}", "subPath": path}],
    }
    pod: Object = {
        "restartPolicy": "Never",
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "results", "persistentVolumeClaim": {"claimName": claim}}],
    }
    if model is not None:
        pod["nodeSelector"] = {node_label(model): "Ready"}
        place = storage_path(model)
        pod["volumes"].append({"name": "model", "hostPath": {"path": place}})
        container["volumeMounts"].append({"name": "model", "mountPath": place, "readOnly": True})
    if override:
        container = merge(container, {key: override[key] for key in OF_CONTAINER if key in override})
        container["name"] = "genai-bench"
        pod = merge(pod, {key: override[key] for key in OF_POD if key in override})
    pod["containers"] = [container]
    labels = {"benchmark": metadata["name"]}
    template = {"metadata": {"labels": {**(metadata.get("labels") or {}), **labels}}, "spec": pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(value)],
        },
        "spec": {"backoffLimit": 0, "template": template},
    }


def _fill(status: Object, job: Object | None) -> None:
    if job is None:
        status["state"] = "Pending"
        return
    status.setdefault("startTime", timestamp())
    failed = condition(job, "Failed")
    if (condition(job, "Complete") or {}).get("status") == "True":
        status["state"] = "Completed"
        status.setdefault("completionTime", timestamp())
    elif failed and failed["status"] == "True":
        status["state"] = "Failed"
        status["failureMessage"] = failed["message"]
        status.setdefault("completionTime", timestamp())
    else:
        status["state"] = "Running"
