"""A model, a runtime and settings for tests of the OME backend on the emulated cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.backends import Deployment
from raytune_autotuner.backends.ome_manifest import OmeSettings, Reference
from raytune_autotuner.backends.ome_runtime import read_runtime
from raytune_autotuner.engines.command import build_argv
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.kube import Cluster
from raytune_autotuner.records import TrialId, config_hash

NAMESPACE = "tuning"
MODEL = "llama-3-2-1b"
SERVED = "meta-llama/Llama-3.2-1B-Instruct"
EXPERIMENT = "test"
ROOT = Path(__file__).resolve().parents[1]


def crds() -> Path:
    """The folder of OME's CRDs; a test that needs them is skipped without."""
    folder = Path(os.environ.get("RAYTUNE_AUTOTUNER_OME_CRDS") or ROOT.parent / "shared" / "ome-crds")
    if not folder.is_dir():
        pytest.skip(f"OME's CRDs are not at {folder}: name their folder with RAYTUNE_AUTOTUNER_OME_CRDS")
    return folder


def objects(runtime: str = "srt-llama", **runner: Any) -> str:
    """The manifests of namespace, model and runtime."""
    command = ["python3", "-m", "sglang.launch_server", "--host", "0.0.0.0", "--port", "8080", "--enable-metrics"]
    command += ["--model-path", "$(MODEL_PATH)", "--tp-size", "1", "--mem-frac", "0.8", "--served-model-name", SERVED]
    router = ["python3", "-m", "sglang_router.launch_router", "--host", "0.0.0.0", "--port", "8080"]
    probe = {"httpGet": {"path": "/health_generate", "port": 8080}, "periodSeconds": 60, "timeoutSeconds": 200}
    resources = {"cpu": 10, "memory": "30Gi", "nvidia.com/gpu": 1}
    container = {
        "name": "ome-container",
        "image": "lmsysorg/sglang:v0.5.5.post3-cu129-amd64",
        "command": command,
        "ports": [{"containerPort": 8080, "name": "http1", "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": resources},
        "readinessProbe": probe,
        **runner,
    }
    formats = {
        "modelFormat": {"name": "safetensors", "version": "1.0.0"},
        "modelFramework": {"name": "transformers", "version": "4.45.0.dev0"},
        "modelArchitecture": "LlamaForCausalLM",
        "autoSelect": False,
        "priority": 1,
    }
    model = {
        "modelFormat": {"name": "safetensors", "version": "1.0.0"},
        "modelFramework": {"name": "transformers", "version": "4.45.0.dev0"},
        "modelArchitecture": "LlamaForCausalLM",
        "modelType": "llama",
        "modelParameterSize": "1.24B",
        "vendor": "meta",
        "storage": {"storageUri": f"hf://{SERVED}", "path": f"/raid/models/{SERVED}"},
    }
    return yaml.safe_dump_all(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "ome.io/v1beta1", "kind": "ClusterBaseModel", "metadata": {"name": MODEL}, "spec": model},
            {
                "apiVersion": "ome.io/v1beta1",
                "kind": "ClusterServingRuntime",
                "metadata": {"name": runtime},
                "spec": {
                    "supportedModelFormats": [formats],
                    "modelSizeRange": {"min": "1B", "max": "2B"},
                    "protocolVersions": ["openAI"],
                    "engineConfig": {"runner": container},
                    "decoderConfig": {"runner": container},
                    "routerConfig": {"runner": {**container, "command": router, "resources": {}}},
                },
            },
        ]
    )


def settings(**more: Any) -> OmeSettings:
    given: dict[str, Any] = {
        "namespace": NAMESPACE,
        "model": Reference("ClusterBaseModel", MODEL),
        "runtime": Reference("ClusterServingRuntime", "srt-llama"),
        "probed": True,
        **more,
    }
    return OmeSettings(**given)


def deployment(
    cluster: Cluster, folder: Path, *extra: str, gpus: int = 1, repeat: int = 0, **parameters: Any
) -> Deployment:
    """A trial with these parameters and arguments, on the flags of the runtime."""
    engine = load_engine("sglang")
    runtime = read_runtime(cluster, "srt-llama")
    argv = build_argv(
        engine,
        command=runtime.command,
        runtime_args=runtime.args,
        extra_args=extra,
        parameters=parameters,
        raw_flags={},
        facts={"model_path": "$(MODEL_PATH)", "served_name": SERVED},
    )
    return Deployment(
        experiment=EXPERIMENT,
        trial=TrialId("search", config_hash({**parameters, "extra": " ".join(extra)}), repeat),
        engine=engine,
        parameters=parameters,
        argv=argv,
        served_name=SERVED,
        gpus=gpus,
        folder=folder,
    )
