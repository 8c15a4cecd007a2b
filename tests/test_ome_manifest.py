"""The InferenceService of a trial, and the runtime that it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner import anchor
from raytune_autotuner.backends import Deployment
from raytune_autotuner.backends.ome_manifest import (
    VARIABLES,
    OmeSettings,
    Reference,
    SecretKey,
    Section,
    check_template,
    full_argv,
    manifest,
    service_name,
    shipped_template,
    variables,
)
from raytune_autotuner.backends.ome_runtime import Program, is_shell, parse_runtime, read_runtime, split_program
from raytune_autotuner.engines.command import build_argv
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import SpecError, TrialInfeasible
from raytune_autotuner.kube import Cluster
from raytune_autotuner.records import TrialId, config_hash
from tests.fakes.api_stub import Answer, ApiStub, serve

SETTINGS = OmeSettings(
    namespace="tuning",
    model=Reference("ClusterBaseModel", "llama"),
    runtime=Reference("ClusterServingRuntime", "srt-llama"),
    owner={"apiVersion": "v1", "kind": "ConfigMap", "name": "anchor", "uid": "u"},
    probed=True,
)
ENGINE = load_engine("sglang")
RUNTIME: dict[str, Any] = {
    "metadata": {"name": "srt-llama"},
    "spec": {
        "engineConfig": {
            "runner": {
                "name": "ome-container",
                "image": "lmsysorg/sglang:v1",
                "command": [
                    "python3",
                    "-m",
                    "sglang.launch_server",
                    "--host",
                    "0.0.0.0",
                    "--port",
                    "8080",
                    "--tp-size",
                    "2",
                ],
                "args": ["--mem-frac", "0.9", "--enable-metrics"],
                "ports": [{"containerPort": 8081}],
                "resources": {"requests": {"nvidia.com/gpu": 2}, "limits": {"nvidia.com/gpu": "2"}},
                "readinessProbe": {"httpGet": {"path": "/health_generate", "port": 8080}, "periodSeconds": 60},
            }
        },
        "routerConfig": {"runner": {"name": "router", "command": ["sh", "-c", "router"]}},
        "decoderConfig": {"runner": {"name": "ome-container", "command": ["python3", "--port", "9000"]}},
    },
}


def deployment(*argv: str, gpus: int = 1, **parameters: Any) -> Deployment:
    return Deployment(
        experiment="My Experiment!",
        trial=TrialId("search", config_hash(parameters)),
        engine=ENGINE,
        parameters=parameters,
        argv=argv or ("{python}", "-m", "sglang.launch_server", "--host", "{host}", "--port", "{port}"),
        served_name="llama",
        gpus=gpus,
        folder=Path("unused"),
        env={"A": "no"},
    )


class TestManifest:
    """What is created."""

    def test_all_of_it(self) -> None:
        """The object in full for a usual trial."""
        made = manifest(SETTINGS, deployment(gpus=2))
        trial = TrialId("search", config_hash({}))
        assert made == {
            "apiVersion": "ome.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": anchor.object_name("My Experiment!", trial),
                "namespace": "tuning",
                "labels": anchor.labels("My Experiment!", trial),
                "annotations": {},
                "ownerReferences": [SETTINGS.owner],
            },
            "spec": {
                "model": {"kind": "ClusterBaseModel", "name": "llama"},
                "runtime": {"kind": "ClusterServingRuntime", "name": "srt-llama"},
                "engine": {
                    "minReplicas": 1,
                    "maxReplicas": 1,
                    "deploymentStrategy": {"type": "Recreate"},
                    "runner": {
                        "name": "ome-container",
                        "command": ["python3", "-m", "sglang.launch_server"],
                        "args": ["--host", "0.0.0.0", "--port", "8080"],
                        "env": [{"name": "A", "value": "no"}],
                        "resources": {"requests": {"nvidia.com/gpu": 2}, "limits": {"nvidia.com/gpu": 2}},
                        "readinessProbe": {"periodSeconds": 5},
                    },
                },
            },
        }

    def test_what_the_task_can_say(self) -> None:
        """Node, tolerations, labels, annotations, priority, image, environment and secrets by reference."""
        settings = replace(
            SETTINGS,
            labels={"team": "x"},
            annotations={"note": "y: z"},
            node="gpu-7",
            node_selector={"zone": "a"},
            tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),
            priority_class="low",
            image="registry/sglang:v2",
            env={"A": "overridden", "B": "1"},
            secret_env={"HF_TOKEN": SecretKey("hf", "token")},
            replicas=2,
            container="main",
            probed=False,
        )
        made = manifest(settings, deployment(gpus=0))
        engine = made["spec"]["engine"]
        assert made["metadata"]["labels"]["team"] == "x"
        assert made["metadata"]["annotations"] == {"note": "y: z"}
        assert engine["nodeSelector"] == {"zone": "a", "kubernetes.io/hostname": "gpu-7"}
        assert engine["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        assert (engine["priorityClassName"], engine["minReplicas"], engine["maxReplicas"]) == ("low", 2, 2)
        runner = engine["runner"]
        assert (runner["name"], runner["image"]) == ("main", "registry/sglang:v2")
        assert runner["env"] == [
            {"name": "A", "value": "no"},
            {"name": "B", "value": "1"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
        ]
        assert "resources" not in runner
        assert "readinessProbe" not in runner

    def test_no_owner(self) -> None:
        """A trial that is run by hand has no anchor."""
        assert manifest(replace(SETTINGS, owner=None), deployment())["metadata"]["ownerReferences"] == []

    def test_disaggregated(self) -> None:
        """Engine, decoder and router each have their own command line; a router may be left to the runtime."""
        settings = replace(
            SETTINGS,
            decoder=Section(("python3", "-m", "sglang.launch_server", "--x", "1"), gpus=4, replicas=2, probed=True),
            router=Section(),
            node="n",
            gpus_per_replica=1,
        )
        spec = manifest(settings, deployment(gpus=9))["spec"]
        assert spec["engine"]["runner"]["resources"]["limits"] == {"nvidia.com/gpu": 1}
        assert spec["decoder"]["runner"]["args"] == ["--x", "1"]
        assert spec["decoder"]["runner"]["resources"]["requests"] == {"nvidia.com/gpu": 4}
        assert spec["decoder"]["minReplicas"] == 2
        assert spec["router"] == {"minReplicas": 1, "maxReplicas": 1, "deploymentStrategy": {"type": "Recreate"}}
        assert settings.conditions == ("Ready", "EngineReady", "DecoderReady", "RouterReady")
        assert (settings.pods, settings.front) == (4, "router")

    def test_name(self) -> None:
        """OME's limits on names are kept for any experiment and trial."""
        names = {service_name(replace(deployment(), trial=TrialId("search", f"{n:012x}"))) for n in range(50)}
        assert len({name[-20:] for name in names}) == 50
        assert all(len(name) <= 50 for name in names)

    def test_nothing_but_a_program(self) -> None:
        """Without a flag the last words become the args: OME would keep the runtime's for none."""
        runner = manifest(SETTINGS, deployment("vllm", "serve", "m"))["spec"]["engine"]["runner"]
        assert (runner["command"], runner["args"]) == (["vllm"], ["serve", "m"])

    @pytest.mark.parametrize("where", ["argv", "env"])
    def test_go_template(self, where: str) -> None:
        """What OME would take for a template of its own cannot be said."""
        wrong = replace(
            deployment(), **({"argv": ("x", "--y", "{{.Name}}")} if where == "argv" else {"env": {"E": "{{"}})
        )
        with pytest.raises(TrialInfeasible, match="template") as failure:
            manifest(SETTINGS, wrong)
        assert failure.value.kind == "bad_flag"

    def test_values_are_data(self) -> None:
        """A value with YAML in it stays a value."""
        runner = manifest(SETTINGS, deployment("p", "--x", "a\n  image: evil", "--y", "no"))["spec"]["engine"]["runner"]
        assert runner["args"] == ["--x", "a\n  image: evil", "--y", "no"]
        assert "image" not in runner

    def test_template_of_the_users(self) -> None:
        """It replaces ours; a typo in it names the variable, its line and those that there are."""
        text = shipped_template().replace("  model:", "  keda: {{ modle_kind }}\n  model:")
        with pytest.raises(SpecError, match=r"line \d+: modle_kind is no variable, did you mean model_kind") as error:
            check_template(text, "mine.j2")
        assert error.value.source == "mine.j2"
        mine = replace(
            SETTINGS, template="apiVersion: ome.io/v1beta1\nkind: InferenceService\nmetadata: {name: {{ name }}}"
        )
        assert manifest(mine, deployment())["metadata"] == {"name": service_name(deployment())}

    def test_variables_are_documented(self) -> None:
        """Those that there are, those that are checked and those that are explained are the same."""
        explained = shipped_template().partition("#}")[0]
        assert set(variables(SETTINGS, deployment())) == set(VARIABLES)
        part = variables(SETTINGS, deployment())["parts"][0]
        assert all(name in explained for name in (*VARIABLES, *part))

    def test_argv(self) -> None:
        """Placeholders are filled with what holds in the pod."""
        argv = full_argv(replace(SETTINGS, port=30000), deployment("{python}", "--host", "{host}", "--port", "{port}"))
        assert argv == ("python3", "--host", "0.0.0.0", "--port", "30000")

    def test_from_a_runtime(self) -> None:
        """A trial's flags replace those of the runtime whatever their spelling, and the rest of it stays."""
        runtime = parse_runtime(RUNTIME, "ClusterServingRuntime")
        argv = build_argv(
            ENGINE,
            command=runtime.command,
            runtime_args=runtime.args,
            extra_args=(),
            parameters={"tp_size": 4, "mem_frac": 0.8},
            raw_flags={},
            facts={"model_path": "$(MODEL_PATH)"},
        )
        runner = manifest(SETTINGS, deployment(*argv, tp_size=4))["spec"]["engine"]["runner"]
        assert runner["command"] == ["python3", "-m", "sglang.launch_server"]
        args = " ".join(runner["args"])
        assert "--tp-size 4" in args
        assert "--mem-fraction-static 0.8" in args
        assert "--mem-frac 0.9" not in args
        assert "--model-path $(MODEL_PATH)" in args
        assert args.count("--port") == 1


@pytest.fixture
def stub() -> Iterator[ApiStub]:
    with serve() as stub:
        yield stub


class TestRuntime:
    """Reading a (Cluster)ServingRuntime."""

    def test_parts(self) -> None:
        """Program, flags, image, GPUs, port and probe, from command and args as one command line."""
        runtime = parse_runtime(RUNTIME, "ClusterServingRuntime")
        args = ("--host", "0.0.0.0", "--port", "8080", "--tp-size", "2", "--mem-frac", "0.9", "--enable-metrics")
        program = Program(
            command=("python3", "-m", "sglang.launch_server"),
            args=args,
            image="lmsysorg/sglang:v1",
            gpus=2,
            port=8081,
            probed=True,
        )
        assert runtime.engine == program
        assert (runtime.command, runtime.args, runtime.image, runtime.gpus, runtime.port) == (
            program.command,
            program.args,
            "lmsysorg/sglang:v1",
            2,
            8081,
        )
        assert runtime.decoder == Program(("python3",), ("--port", "9000"), port=9000)
        assert runtime.router is None  # a shell script: used as it is

    @pytest.mark.parametrize(
        ("words", "shell"),
        [
            (["bash", "-lc", "python3 -m x --y"], True),
            (["/bin/sh", "-c", "x"], True),
            (["env", "A=1", "bash", "-c", "x"], True),
            (["bash", "start.sh", "--color"], False),
            (["python3", "-m", "x", "-c", "y"], False),
            (["vllm", "serve"], False),
        ],
    )
    def test_shell(self, words: list[str], shell: bool) -> None:
        """A script for a shell is refused, a script in a file is not."""
        assert is_shell(words) == shell
        raw = {"metadata": {"name": "r"}, "spec": {"engineConfig": {"runner": {"command": words}}}}
        if shell:
            with pytest.raises(SpecError, match=r"shell script.*make a copy"):
                parse_runtime(raw, "ServingRuntime")
        else:
            parse_runtime(raw, "ServingRuntime")

    @pytest.mark.parametrize(
        ("words", "program"),
        [
            (("python3", "-m", "sglang.launch_server", "--a", "1"), 3),
            (("python3", "-u", "-m", "vllm.entrypoints.openai.api_server", "--a"), 4),
            (("vllm", "serve", "model", "--a", "-m", "x"), 3),
            (("--a", "b"), 0),
            (("server",), 1),
        ],
    )
    def test_split(self, words: tuple[str, ...], program: int) -> None:
        """The program ends where the flags begin; a module is the program's."""
        assert split_program(words) == (words[:program], words[program:])

    def test_several_nodes(self) -> None:
        """Leader and worker are not supported, and said so."""
        with pytest.raises(SpecError, match="several nodes"):
            parse_runtime(
                {"metadata": {"name": "r"}, "spec": {"engineConfig": {"leader": {"runner": {}}}}}, "ServingRuntime"
            )

    @pytest.mark.parametrize("spec", [{}, {"engineConfig": {}}, {"engineConfig": {"runner": {"image": "x"}}}])
    def test_no_command_line(self, spec: dict[str, Any]) -> None:
        """What only the image knows cannot be changed."""
        with pytest.raises(SpecError, match="write command and args"):
            parse_runtime({"metadata": {"name": "r"}, "spec": spec}, "ServingRuntime")

    def test_found(self, stub: ApiStub, tmp_path: Path) -> None:
        """The namespace's own runtime comes before the cluster's; a kind decides."""
        cluster = Cluster.connect(str(stub.kubeconfig(tmp_path / "config")))
        stub.on("GET", "/apis/ome.io/v1beta1/clusterservingruntimes/srt-llama", Answer(200, RUNTIME))
        assert read_runtime(cluster, "srt-llama", None, "ns").kind == "ClusterServingRuntime"
        stub.on("GET", "/apis/ome.io/v1beta1/namespaces/ns/servingruntimes/srt-llama", Answer(200, RUNTIME))
        assert read_runtime(cluster, "srt-llama", None, "ns").kind == "ServingRuntime"
        assert read_runtime(cluster, "srt-llama").kind == "ClusterServingRuntime"
        assert read_runtime(cluster, "srt-llama", "ClusterServingRuntime", "ns").kind == "ClusterServingRuntime"
        cluster.close()

    def test_absent(self, stub: ApiStub, tmp_path: Path) -> None:
        """A runtime that there is not is the user's error."""
        cluster = Cluster.connect(str(stub.kubeconfig(tmp_path / "config")))
        with pytest.raises(SpecError, match="no ClusterServingRuntime named 'nope'"):
            read_runtime(cluster, "nope", "ClusterServingRuntime")
        cluster.close()
