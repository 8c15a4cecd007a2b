"""The part of a task about OME: how its services are made and reached."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raytune_autotuner.task.parameters import Model, Scalar
from raytune_autotuner.task.texts import EnvironmentName, VariableName


class SecretReference(Model):
    """Where a secret value is; the value itself never passes through this program."""

    secret: str = Field(min_length=1, description="the Secret's name, in the trials' namespace")
    key: str = Field(min_length=1, description="the key in it")


class Decoder(Model):
    """Prefill/decode disaggregation: the decoding half, with flags of its own."""

    parameters: dict[str, Scalar] = Field(default_factory=dict, description="by the engine's names; not searched")
    replicas: int = Field(1, ge=1, description="of the decoder")


class Router(Model):
    """A router before several replicas, or before prefill and decode."""

    args: tuple[str, ...] = Field((), description="in place of the runtime's router flags")
    replicas: int = Field(1, ge=1, description="of the router")


class OmeSpec(Model):
    """Backend ome: how its services are made and reached."""

    namespace: str | None = Field(None, description="of the trials; default: model.namespace")
    kubeconfig: str | None = Field(None, description="a file; default: $KUBECONFIG, the pod's own, ~/.kube/config")
    context: str | None = Field(None, description="of the kubeconfig; default: its current one")
    model_kind: Literal["ClusterBaseModel", "BaseModel"] = Field("ClusterBaseModel", description="what model.name is")
    runtime_kind: Literal["ClusterServingRuntime", "ServingRuntime"] | None = Field(
        None, description="what base_runtime is; default: the namespace's own before the cluster's"
    )
    template: str | None = Field(None, description="a template of yours in place of inference_service.yaml.j2")
    access: Literal["auto", "service", "port_forward"] = Field(
        "auto", description="auto: the Service inside the cluster, a forwarded port outside"
    )
    replicas: int = Field(1, ge=1, description="engines behind one service")
    decoder: Decoder | None = Field(None, description="declares the runtime's decoder")
    router: Router | None = Field(None, description="declares the runtime's router")
    image: str | None = Field(None, description="of the engine; default: the runtime's")
    env: dict[EnvironmentName, str] = Field(default_factory=dict, description="environment variables of the engine")
    secret_env: dict[VariableName, SecretReference] = Field(
        default_factory=dict, description="environment variables of the engine that come from a Secret"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="on the services and their pods")
    annotations: dict[str, str] = Field(default_factory=dict, description="on the services")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes to use")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="as in a pod")
    priority_class: str | None = Field(None, description="of the pods")
    schedule_timeout_s: float = Field(600, gt=0, description="how long pods may wait for a node and its GPUs")
    pull_timeout_s: float = Field(1800, gt=0, description="how long images may be pulled and volumes mounted")
    load_timeout_s: float = Field(1800, gt=0, description="how long the engine may load the model and warm up")
    teardown_timeout_s: float = Field(120, gt=0, le=3600, description="after half of it, pods are ended by force")
    benchmark: Literal["direct", "benchmark_job"] = Field(
        "direct", description="genai-bench on the worker, or an OME BenchmarkJob"
    )
    benchmark_image: str = Field("ghcr.io/sgl-project/genai-bench:0.1.132", description="of the BenchmarkJob's pod")
    results_claim: str = Field("raytune-autotuner-results", description="the PersistentVolumeClaim of BenchmarkJobs")
