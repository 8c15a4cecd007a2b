"""What is written of an experiment to be applied, and what is read back of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from raytune_autotuner import anchor, experiment, report, verification
from raytune_autotuner.backends.ome import MANIFEST
from raytune_autotuner.backends.ome_manifest import HOSTNAME, OmeSettings, SecretKey, full_argv, manifest, with_digest
from raytune_autotuner.cli import BAD_INPUT, ENVIRONMENT, OK, main
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.errors import EnvironmentFault, SpecError
from raytune_autotuner.experiment import Options
from raytune_autotuner.export import PREFIX, Wish, export, provenance, runtime_with
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.gate import Course
from raytune_autotuner.kube import CLUSTER_SERVING_RUNTIME, INFERENCE_SERVICE, Cluster
from raytune_autotuner.records import Endpoint, Reused, TrialId, TrialRecord
from raytune_autotuner.render import to_yaml
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Resources, Task, parse_task
from tests.emulator.api import ApiServer, ome_crds
from tests.test_ome_manifest import RUNTIME, SETTINGS, deployment
from tests.test_results import OOM, folder_with, record, task
from tests.web_site import client

TRICKY = ("--chat-template", "a 'quoted' $HOME `id`\nline", "--stop", "$(MODEL_PATH)/x")


def ome_task(**ome: Any) -> Task:
    data = {
        "task_name": "llama-chat",
        "backend": "ome",
        "engine": "sglang",
        "model": {"name": "llama"},
        "base_runtime": "srt-llama",
        "optimization": {"objective": "minimize_latency"},
        "benchmark": {"traffic_scenarios": ["D(10,10)"], "model_tokenizer": "hub/llama"},
        "ome": ome,
    }
    return parse_task(data, "task")


def duel(number: int) -> list[TrialRecord]:
    """A baseline, a winner of the search that is twice as fast, and what confirms it."""
    confirming = [({}, 2.0), ({"tp_size": 2}, 1.0), ({"tp_size": 2}, 1.02), ({}, 2.02)]
    return [
        record(0, {}, 2.0, purpose="baseline"),
        record(1, {"tp_size": 2}, 1.0),
        record(2, {"tp_size": 4}, 1.0, outcome="infeasible", rungs=0, failure=OOM),
        *(record(3 + n, p, s, purpose="confirm", rungs=1, repeat=1 + n) for n, (p, s) in enumerate(confirming)),
    ][:number]


def saved(folder: ExperimentFolder, of: Task, settings: OmeSettings | None = None) -> ExperimentFolder:
    """An experiment's folder with its task and, for OME, each trial's manifest."""
    folder.root.write("task.json", of.model_dump_json())
    for each in folder.records() if settings else ():
        made = replace(deployment(*TRICKY_ARGV, gpus=2), experiment="exp", trial=each.trial)
        assert settings
        folder.root.write(f"trials/{each.trial.name}/{MANIFEST}", to_yaml(with_digest(manifest(settings, made))))
    return folder


TRICKY_ARGV = ("{python}", "-m", "sglang.launch_server", "--port", "{port}", "--tp-size", "2", *TRICKY)
IN_A_TRIAL = replace(
    SETTINGS,
    node="gpu-7",
    node_selector={"zone": "a"},
    labels={"team": "chat"},
    annotations={"note": "a"},
    secret_env={"HF_TOKEN": SecretKey("hub", "token")},
)


@pytest.fixture
def ome(tmp_path: Path) -> ExperimentFolder:
    return saved(folder_with(tmp_path, *duel(7)), ome_task(node_selector={"zone": "a"}), IN_A_TRIAL)


@pytest.fixture
def local(tmp_path: Path) -> ExperimentFolder:
    """The records of a local engine, with host and port left open."""
    command = ("{python}", "-m", "server", "--host", "{host}", "--port", "{port}", "--api-key", "s3cret", *TRICKY)
    records = [replace(each, command=command) for each in duel(7)]
    env = {"MODE": "a b", "SOME_API_KEY": "s3cret"}
    of = task()
    of = of.model_copy(update={"runtime": of.runtime.model_copy(update={"env": env})})
    return saved(folder_with(tmp_path, *records), of)


class TestInferenceService:
    """The recommended trial's service as one that stays."""

    def test_it_is_the_trials_without_what_only_a_trial_needs(self, ome: ExperimentFolder) -> None:
        """Name, owner, labels, node, strategy and probe period go; everything else stays."""
        made = yaml.safe_load(export(ome))
        metadata, engine = made["metadata"], made["spec"]["engine"]
        assert (metadata["name"], metadata["namespace"], metadata["labels"]) == (
            "llama-chat",
            "tuning",
            {"team": "chat"},
        )
        assert "ownerReferences" not in metadata
        assert engine["nodeSelector"] == {"zone": "a"}
        assert not {"deploymentStrategy"} & set(engine)
        assert "readinessProbe" not in engine["runner"]
        argv = (*engine["runner"]["command"], *engine["runner"]["args"])
        assert argv == full_argv(IN_A_TRIAL, deployment(*TRICKY_ARGV))
        assert made["spec"]["runtime"] == {"kind": "ClusterServingRuntime", "name": "srt-llama"}

    def test_it_says_where_it_comes_from(self, ome: ExperimentFolder) -> None:
        """As annotations beside the user's own; our digest is not among them."""
        found = yaml.safe_load(export(ome))["metadata"]["annotations"]
        said = {name.removeprefix(PREFIX): text for name, text in found.items()}
        assert said["note"] == "a"
        assert said["experiment"] == "exp"
        assert said["verdict"].startswith("WIN +")
        assert "at 95%" in said["verdict"]
        assert json.loads(said["parameters"]) == {"tp_size": 2}
        assert (said["model"], said["objective"], said["workload"]) == ("llama", "minimize_latency", "D(10,10) at 1")
        assert "digest" not in said
        assert said["engine"].startswith("sglang")

    def test_secrets_stay_references(self, ome: ExperimentFolder) -> None:
        """By the name of the Secret."""
        env = yaml.safe_load(export(ome))["spec"]["engine"]["runner"]["env"]
        assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}} in env

    def test_name_namespace_and_replicas_are_the_users_to_choose(self, ome: ExperimentFolder) -> None:
        """And a name that Kubernetes would refuse is refused here."""
        made = yaml.safe_load(export(ome, Wish(name="chat", namespace="prod", replicas=3)))
        assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("chat", "prod")
        assert (made["spec"]["engine"]["minReplicas"], made["spec"]["engine"]["maxReplicas"]) == (3, 3)
        with pytest.raises(SpecError, match="small letters"):
            export(ome, Wish(name="Chat!"))

    def test_a_node_that_the_user_chose_is_kept(self, tmp_path: Path) -> None:
        """It was not ours to pin."""
        folder = folder_with(tmp_path, *duel(2))
        saved(
            folder, ome_task(node_selector={HOSTNAME: "gpu-1"}), replace(IN_A_TRIAL, node_selector={HOSTNAME: "gpu-1"})
        )
        assert yaml.safe_load(export(folder))["spec"]["engine"]["nodeSelector"] == {HOSTNAME: "gpu-1"}

    def test_a_trial_can_be_named(self, ome: ExperimentFolder) -> None:
        """By its number; one that cannot work is refused."""
        found = yaml.safe_load(export(ome, Wish(trial=TrialId("baseline", record(0, {}, 1.0).trial.config).name)))
        assert found["metadata"]["annotations"][PREFIX + "verdict"].startswith("the baseline")
        with pytest.raises(SpecError, match="ended infeasible"):
            export(ome, Wish(trial=duel(3)[2].trial.name))

    def test_without_a_manifest_there_is_nothing_to_export(self, tmp_path: Path) -> None:
        """The folder lacks it; says which."""
        with pytest.raises(EnvironmentFault, match="no manifest of the trial search-"):
            export(saved(folder_with(tmp_path, *duel(2)), ome_task()))


class TestTakenOver:
    """A trial of an earlier experiment; nothing was deployed for it here."""

    @staticmethod
    def taken(folder: ExperimentFolder, settings: OmeSettings | None, port: str) -> TrialRecord:
        """Makes the winner one that `old` measured, with a command line and a manifest of its own there."""
        old = ExperimentFolder(folder.storage, "old")
        own = replace(duel(2)[1], experiment="old", command=(), argv=("there", "--port", port))
        old.save_record(own)
        old.save_endpoint(own.trial, Endpoint(f"http://127.0.0.1:{port}", "m"))
        saved(old, ome_task(), settings)
        taken = replace(own, experiment="exp", reused_from=Reused("old", own.trial.name, own.started_at, 1.0))
        folder.save_record(taken)
        return taken

    @pytest.mark.parametrize(("records", "namespace"), [(7, "tuning"), (2, "elsewhere")])
    def test_its_service_is_that_of_a_run_here_else_the_one_that_was_measured(
        self, records: int, namespace: str, tmp_path: Path
    ) -> None:
        """A run that confirms it has the names of this experiment."""
        folder = saved(folder_with(tmp_path, *duel(records)), ome_task(), IN_A_TRIAL)
        taken = self.taken(folder, replace(IN_A_TRIAL, namespace="elsewhere"), "43211")
        folder.root.delete(f"trials/{taken.trial.name}/{MANIFEST}")
        made = yaml.safe_load(export(folder))
        assert made["metadata"]["namespace"] == namespace
        assert made["metadata"]["annotations"][PREFIX + "trial"] == taken.trial.name
        assert "--tp-size" in made["spec"]["engine"]["runner"]["args"]
        assert f"namespace: {namespace}" in report.read(folder).manifest
        page = client(tmp_path).get(f"/experiments/exp/trials/{taken.trial.name}").text
        assert f"namespace: {namespace}" in page

    @pytest.mark.parametrize(("records", "program"), [(7, "here"), (2, "there")])
    def test_its_command_is_that_of_a_run_here_else_the_one_that_was_measured(
        self, records: int, program: str, tmp_path: Path
    ) -> None:
        """With the port left open in either."""
        runs = [replace(each, command=("here", "--port", "{port}")) for each in duel(records)]
        folder = saved(folder_with(tmp_path, *runs), task())
        self.taken(folder, None, "43211")
        assert export(folder).splitlines()[-1] == f'exec {program} --port "${{PORT:-8080}}"'

    def test_another_experiment_of_that_name_is_not_it(self, tmp_path: Path) -> None:
        """What it deployed was not measured for this one."""
        folder = saved(folder_with(tmp_path, *duel(2)), ome_task())
        self.taken(folder, IN_A_TRIAL, "43211")
        old = ExperimentFolder(folder.storage, "old")
        old.save_record(replace(old.records()[0], started_at="2026-02-02T00:00:00+00:00"))
        with pytest.raises(EnvironmentFault, match="old, which measured it, is gone; run the task without --reuse"):
            export(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    crds = ome_crds()
    if crds is None:
        pytest.skip("OME's CRDs are not here; set RAYTUNE_AUTOTUNER_OME_CRDS")
    with ApiServer(crds) as server:
        connected = Cluster.connect(str(server.kubeconfig(tmp_path_factory.mktemp("k") / "kubeconfig", plain=True)))
        yield connected
        connected.close()


def test_what_is_exported_is_valid_for_ome(ome: ExperimentFolder, cluster: Cluster) -> None:
    """With strict validation, by OME's own schemas."""
    service = yaml.safe_load(export(ome, Wish(namespace="default")))
    assert cluster.create(INFERENCE_SERVICE, service, dry_run=True)["metadata"]["creationTimestamp"]
    about = provenance(load_results(ome, ome_task()), duel(2)[1])
    runtime = runtime_with(RUNTIME, service, about, Wish(name="tuned"))
    assert cluster.create(CLUSTER_SERVING_RUNTIME, runtime, dry_run=True)["metadata"]["creationTimestamp"]


class TestRuntime:
    """The runtime in use, with the winner's command line."""

    def test_it_keeps_what_the_trial_does_not_say(self, ome: ExperimentFolder) -> None:
        """Ports, probes and the other sections are the runtime's; command, variables and GPUs the trial's."""
        base = {**RUNTIME, "metadata": {"name": "srt-llama", "annotations": {"x/last-applied-y": "{}", "own": "1"}}}
        service = yaml.safe_load(export(ome))
        made = runtime_with(base, service, {PREFIX + "experiment": "exp"}, Wish())
        runner = made["spec"]["engineConfig"]["runner"]
        before = RUNTIME["spec"]["engineConfig"]["runner"]
        assert made["metadata"] == {
            "name": "srt-llama-tuned",
            "annotations": {"own": "1", PREFIX + "experiment": "exp"},
        }
        assert made["kind"] == "ClusterServingRuntime"
        assert runner["args"] == service["spec"]["engine"]["runner"]["args"]
        assert (runner["image"], runner["readinessProbe"]) == (before["image"], before["readinessProbe"])
        assert runner["resources"]["limits"] == {"nvidia.com/gpu": 2}
        assert made["spec"]["routerConfig"] == RUNTIME["spec"]["routerConfig"]
        assert RUNTIME["spec"]["engineConfig"]["runner"]["args"] == ["--mem-frac", "0.9", "--enable-metrics"]


class TestScript:
    """The local engine's command."""

    def test_a_shell_runs_what_was_measured(self, local: ExperimentFolder, tmp_path: Path) -> None:
        """Host and port come from outside, quotes and line breaks survive, and secrets are not in it."""
        text = export(local, Wish(port=9000))
        assert "s3cret" not in text
        assert text.startswith("#!/bin/sh\n")
        show = text.replace("exec ", "printf '%s\\0' ")
        file = tmp_path / "show.sh"
        file.write_text(show)
        env = {"API_KEY": "given", "SOME_API_KEY": "x", "HOST": "::", "PATH": "/bin:/usr/bin"}
        words = subprocess.run(["sh", str(file)], env=env, capture_output=True, check=True, text=True).stdout
        assert words.split("\0")[:-1] == [
            *("python3", "-m", "server", "--host", "::", "--port", "9000", "--api-key", "given"),
            *TRICKY,
        ]
        assert "export MODE='a b'" in text
        assert f"# {PREFIX}experiment: exp" in text

    def test_it_is_read_back_as_it_is(self, local: ExperimentFolder, tmp_path: Path) -> None:
        """With what the backend fills in left open; the file's hash stands for it."""
        file = tmp_path / "winner.sh"
        file.write_text(export(local))
        found = verification.read(file, {"API_KEY": "given", "SOME_API_KEY": "x"})
        assert found.given.argv == (
            *("{python}", "-m", "server", "--host", "{host}", "--port", "{port}", "--api-key", "given"),
            *TRICKY,
        )
        assert found.given.env == {"MODE": "a b", "SOME_API_KEY": "x"}
        assert found.about["experiment"] == "exp"
        assert found.parameters["file"] == "winner.sh"
        with pytest.raises(EnvironmentFault, match="API_KEY, which is not set"):
            verification.read(file, {})

    def test_a_record_of_an_earlier_version_has_its_port_opened(self, tmp_path: Path) -> None:
        """It knew only the command line with the trial's own port in it."""
        old = replace(duel(2)[1], argv=("server", "--port", "43211"))
        folder = saved(folder_with(tmp_path, duel(1)[0], old), task())
        folder.save_endpoint(old.trial, Endpoint("http://127.0.0.1:43211", "m"))
        assert export(folder).splitlines()[-1] == 'exec server --port "${PORT:-8080}"'

    def test_a_local_engine_has_no_manifest(self, local: ExperimentFolder) -> None:
        """It never was in a cluster."""
        with pytest.raises(SpecError, match="object of OME"):
            export(local, Wish(form="isvc"))

    def test_of_a_service_it_is_the_pods_command(self, ome: ExperimentFolder) -> None:
        """What Kubernetes expands, the shell expands."""
        _, _, command = export(ome, Wish(form="command")).partition("\nexec ")
        assert command.endswith('"${MODEL_PATH}/x"\n')
        assert command.startswith("python3 -m sglang.launch_server --port 8080 --tp-size 2")


class TestReading:
    """What ``verify`` takes."""

    def test_a_service_is_deployed_as_it_is(self, ome: ExperimentFolder, tmp_path: Path) -> None:
        """But for the trial's name, labels, owner and node."""
        file = tmp_path / "winner.yaml"
        file.write_text(export(ome, Wish(name="chat", replicas=2)))
        found = verification.read(file, {})
        assert (found.replicas, found.given.gpus, found.about["experiment"]) == (2, 2, "exp")
        meant = replace(deployment(), manifest=found.given.manifest, argv=found.given.argv)
        made = manifest(replace(SETTINGS, node="gpu-1"), meant)
        written = yaml.safe_load(file.read_text())
        written["spec"]["engine"]["nodeSelector"][HOSTNAME] = "gpu-1"
        assert made["spec"] == written["spec"]
        assert made["metadata"]["name"] == anchor.object_name(meant.experiment, meant.trial)
        assert made["metadata"]["labels"] == {"team": "chat", **anchor.labels(meant.experiment, meant.trial)}
        assert made["metadata"]["ownerReferences"] == [SETTINGS.owner]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("kind: Pod", "not what can be verified"),
            ("a: [", "is not YAML"),
            ("#!/bin/sh\nrm -rf x\n", "not a script that export wrote"),
            ("#!/bin/sh\n# nothing\n", "starts nothing"),
            ("#!/bin/sh\nexec a 'b\n", "no shell script"),
            ("apiVersion: ome.io/v1beta1\nkind: InferenceService\nmetadata: {name: x}\nspec: {}\n", "no command line"),
        ],
    )
    def test_what_is_neither_is_refused(self, text: str, said: str, tmp_path: Path) -> None:
        """Before anything starts."""
        file = tmp_path / "x"
        file.write_text(text)
        with pytest.raises(SpecError, match=said):
            verification.read(file, {})

    def test_what_scales_itself_cannot_be_compared(self, ome: ExperimentFolder, tmp_path: Path) -> None:
        """Nor what is not there."""
        made = yaml.safe_load(export(ome))
        made["spec"]["engine"]["maxReplicas"] = 9
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump(made))
        with pytest.raises(SpecError, match="write the same for both"):
            verification.read(file, {})
        with pytest.raises(SpecError, match="cannot be read"):
            verification.read(tmp_path / "none", {})

    def test_a_file_must_fit_the_experiment(
        self, ome: ExperimentFolder, local: ExperimentFolder, tmp_path: Path
    ) -> None:
        """A script cannot be measured in a cluster; and something must be measured."""
        file = tmp_path / "winner.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(to_yaml(manifest(SETTINGS, deployment())))))
        found = verification.read(file, {})
        none = ome_task().model_copy(update={"optimization": task(confirm={"repeats": 0}).optimization})
        with pytest.raises(SpecError, match="backend is local"):
            verification.fitted(task(), found, "f")
        with pytest.raises(SpecError, match="is 0"):
            verification.fitted(none, found, "f")
        assert verification.fitted(ome_task(), found, "f").parameters == {}


SGLANG = 'exec "${PYTHON:-python3}" -m sglang.launch_server --port "${PORT:-8080}"'


class TestGpus:
    """What a file takes, which it is compared and reserved by."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "file"
        self.ran: list[Setup] = []
        monkeypatch.setattr(experiment, "run", self.run)
        self.setup = Setup(
            task=task(),
            engine=load_engine("sglang"),
            folder=ExperimentFolder(Storage(str(tmp_path)), "again"),
            tokenizer="",
            runtime_args=("--tp-size", "2"),
        )

    def run(self, setup: Setup, options: Options, course: Course) -> Results:
        self.ran.append(setup)
        return load_results(setup.folder, setup.task)

    def gpus(self, text: str, resources: int | None = None) -> tuple[int, int]:
        """Of the file, and of the baseline."""
        self.path.write_text(text)
        found = verification.read(self.path, {})
        of = self.setup.task.model_copy(update={"resources": Resources(gpus=resources)})
        verification.verify(replace(self.setup, task=of), found, Options(aside=True))
        (ran,) = self.ran
        assert [ran.need(p).gpus for p in (found.parameters, {})] == [ran.gpus(found.parameters), ran.gpus({})]
        return ran.gpus(found.parameters), ran.gpus({})

    @pytest.mark.parametrize(("flags", "said"), [(" --tp-size 4", 4), (" --tp=2 --dp-size 4", 8), ("", 1)])
    def test_a_script_takes_what_its_command_line_comes_to(self, flags: str, said: int) -> None:
        """By the engine's formula, as the baseline does; what the runtime's flags say is not the file's."""
        assert self.gpus(f"#!/bin/sh\n{SGLANG}{flags}\n") == (said, 2)

    def test_what_every_trial_is_started_with_counts_for_the_baseline(self) -> None:
        """A file has it in its command line."""
        self.setup = replace(self.setup, task=task().model_copy(update={"extra_args": ("--tp=1", "--dp-size", "4")}))
        assert self.gpus(f"#!/bin/sh\n{SGLANG} --tp-size 2\n") == (2, 4)

    def test_what_the_task_says_comes_first(self) -> None:
        """For both."""
        assert self.gpus(f"#!/bin/sh\n{SGLANG} --tp-size 4\n", resources=8) == (8, 8)

    def test_a_service_takes_what_it_asks_the_cluster_for(self, ome: ExperimentFolder) -> None:
        """It is deployed as it is; one that leaves that to the runtime is known by its command line."""
        text = export(ome)
        made = yaml.safe_load(text)
        assert self.gpus(text, resources=8) == (2, 8)
        self.ran.clear()
        runner = made["spec"]["engine"]["runner"]
        del runner["resources"]
        runner["args"] = [*runner["args"], "--tp-size", "4"]
        assert self.gpus(yaml.safe_dump(made)) == (4, 2)

    def test_a_command_line_without_a_number_of_them_is_refused(self) -> None:
        """Before anything is started."""
        with pytest.raises(SpecError, match=r"no number of GPUs: .*tp_size='two'"):
            self.gpus(f"#!/bin/sh\n{SGLANG} --tp-size two\n")
        assert not self.ran


def invoke(folder: ExperimentFolder, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--storage", folder.storage.uri], catch_exceptions=False)


def test_the_command_writes_a_file_that_can_be_run(local: ExperimentFolder, tmp_path: Path) -> None:
    """And prints it without one."""
    file = tmp_path / "winner.sh"
    assert invoke(local, "export", "exp", "-o", str(file)).exit_code == OK
    assert file.stat().st_mode & 0o111
    assert invoke(local, "export", "exp").stdout == file.read_text()
    assert invoke(local, "export", "exp", "-o", str(tmp_path / "no" / "x")).exit_code == BAD_INPUT
    for wrong in (("--as", "isvc"), ("--name", "A_B"), ("--namespace", "A B")):
        result = invoke(local, "export", "exp", *wrong)
        assert result.exit_code == BAD_INPUT
        assert result.stderr.startswith(f"error: exp: {wrong[0]}: ")


def test_nothing_is_verified_when_the_file_is_at_fault(local: ExperimentFolder, tmp_path: Path) -> None:
    """No experiment is begun."""
    file = tmp_path / "winner.yaml"
    file.write_text("kind: Pod")
    assert invoke(local, "verify", str(file)).exit_code == BAD_INPUT
    missing = invoke(local, "verify", str(file.with_name("winer.sh")))
    assert (missing.exit_code, "there is no such file" in missing.output) == (BAD_INPUT, True)
    assert invoke(local, "verify", "exp").exit_code == ENVIRONMENT  # API_KEY is not set
    assert not [name for name in local.storage.list() if "verify" in name]


def test_importance_is_shown_or_said_why_not(local: ExperimentFolder) -> None:
    """Two trials say nothing."""
    result = invoke(local, "importance", "exp")
    assert result.exit_code == OK
    assert "no parameter took two values" in result.stdout
