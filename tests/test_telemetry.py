"""What monitoring sees: metrics, the dashboard that draws them, and the progress line."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytune_autotuner import telemetry
from raytune_autotuner.errors import StorageFault
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.ledger import CUT, charged
from raytune_autotuner.proposal import LABEL_LENGTH, Proposal, label
from raytune_autotuner.records import Failure, Outcome, Parameters, Purpose, Score, TrialId, TrialRecord, config_hash
from raytune_autotuner.sessions import JOB_VARIABLE
from raytune_autotuner.storage import Storage
from raytune_autotuner.summary import Summary, ending, gain, line, summarise
from raytune_autotuner.telemetry import METRICS, Telemetry

DASHBOARD = Path(__file__).resolve().parents[1] / "configs" / "grafana" / "raytune-autotuner.json"


def throughput(value: float, violation: float = 0.0) -> Score:
    return Score("maximize_throughput", value, "tokens/s", "max", -value, violation)


def ended(
    number: int,
    outcome: Outcome = "completed",
    value: float | None = None,
    purpose: Purpose = "search",
    **changes: Any,
) -> TrialRecord:
    parameters = {"n": number}
    trial = TrialId(purpose, config_hash(parameters))
    made = TrialRecord(
        trial, "exp", number, parameters, outcome, "2026-01-01", phases={"queue": 5.0, "benchmark": 60.0}
    )
    return replace(made, score=None if value is None else throughput(value), **changes)


def test_the_line_tells_all_that_is_known() -> None:
    """In the words of the results."""
    summary = Summary(
        planned=45,
        outcomes={"completed": 9, "infeasible": 1, "stopped early": 2},
        running=4,
        waiting=2,
        waiting_gpus=8,
        best=throughput(83.0),
        baseline=throughput(58.87),
        held_s={"load": 3600.0, "benchmark": 7920.0},
        has_gpus=True,
    )
    assert line(summary) == (
        "12 of 45 trials: 9 completed, 2 stopped early, 1 infeasible; 4 running, 2 waiting for 8 GPUs; "
        "best 83.0 tokens/s (+41 % over the baseline); 3.2 GPU-hours"
    )


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (Summary(5), "0 of 5 trials"),
        (Summary(5, running=1, waiting=1, waiting_gpus=1), "0 of 5 trials; 1 running, 1 waiting for 1 GPU"),
        (Summary(5, waiting=3), "0 of 5 trials; 3 waiting"),
        (Summary(5, {"failed": 1, "interrupted": 2}), "3 of 5 trials: 1 failed, 2 interrupted"),
        (Summary(5, best=throughput(0.12345)), "0 of 5 trials; best 0.123 tokens/s"),
        (Summary(5, best=throughput(12345.67), baseline=throughput(12345.67)), "0 of 5 trials; best 12345.7 tokens/s"),
        (Summary(5, best=throughput(1.0), baseline=throughput(0.0)), "0 of 5 trials; best 1 tokens/s"),
        (Summary(5, best=throughput(40.0), baseline=throughput(0.02)), "0 of 5 trials; best 40.0 tokens/s"),
        (Summary(5, held_s={"load": 3600}), "0 of 5 trials; 1.0 machine-hours"),
        (Summary(5, held_s={"load": 36}), "0 of 5 trials"),
    ],
)
def test_the_line_leaves_out_what_there_is_nothing_to_say_of(summary: Summary, expected: str) -> None:
    """No zeros, no gain of the baseline over itself."""
    assert line(summary) == expected


def test_a_gain_is_more_throughput_or_less_time() -> None:
    """Half the latency is twice as fast."""
    fast, slow = (Score("minimize_latency", v, "s", "min", v, 0.0) for v in (1.0, 2.0))
    assert gain(fast, slow) == pytest.approx(1.0)
    assert gain(throughput(150), throughput(100)) == pytest.approx(0.5)


def test_a_summary_counts_endings_scores_and_what_was_held() -> None:
    """The best keeps the SLO, was measured to the end and is not a confirming run; waiting holds nothing."""
    records = [
        ended(0, value=50, purpose="baseline", gpus=2),
        ended(1, value=80, gpus=4),
        replace(ended(2), score=throughput(99, violation=0.1)),
        ended(3, value=120, purpose="confirm"),
        ended(4, "stopped"),
        ended(5, "stopped", failure=Failure("interrupted", "")),
        ended(6, "infeasible"),
        *(ended(7 + n, "stopped", failure=Failure(kind, "why")) for n, kind in enumerate(CUT)),
    ]
    found = summarise(records, 10, running=1)
    assert found.outcomes == {"completed": 4, "stopped early": 3, "interrupted": 1, "infeasible": 1}
    assert (found.ended, found.best, found.baseline) == (9, throughput(80), throughput(50))
    assert found.held_s == {"benchmark": 60.0 * (2 + 4 + 7)}
    assert found.has_gpus
    assert {ending(records[n]) for n in (4, 7, 8)} == {"stopped early"}
    assert charged(records[1]) == {"benchmark": 240.0}


@dataclass
class Seen:
    """Stands for every metric of Ray: what it was told, by name and tags."""

    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    broken: bool = False

    def make(self, name: str, tags: tuple[str, ...]) -> SimpleNamespace:
        def key(given: dict[str, str]) -> tuple[str, ...]:
            assert set(given) == {*telemetry.TAGS, *tags}
            assert (given["experiment"], given["task"]) == ("exp", "chat")
            if self.broken:
                raise RuntimeError("the metrics are gone")
            return (name, *(given[tag] for tag in tags))

        def put(value: float, given: dict[str, str]) -> None:
            self.values[key(given)] = value

        def add(value: float, given: dict[str, str]) -> None:
            self.values[key(given)] = self.values.get(key(given), 0) + value

        def append(value: float, given: dict[str, str]) -> None:
            place = (*key(given), str(len(self.values)))
            self.values[place] = value

        return SimpleNamespace(set=put, inc=add, observe=append)

    def of(self, name: str) -> list[float]:
        return [value for key, value in self.values.items() if key[0] == name]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(telemetry.Metric, "make", lambda self, name: seen.make(name, self.tags))
    return seen


@dataclass
class Run:
    """A callback as Tune drives it."""

    folder: ExperimentFolder
    now: float = 100.0
    lines: list[str] = field(default_factory=list)
    trials: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.callback = Telemetry(self.folder, "chat", 9, lambda _: 4, write=self.lines.append, clock=lambda: self.now)

    def add(self, parameters: Parameters, status: str) -> Any:
        proposal = Proposal(TrialId("search", config_hash(parameters)), len(self.trials), parameters, 0.0)
        self.trials.append(SimpleNamespace(trial_id=str(len(self.trials)), config=proposal.to_config(), status=status))
        return self.trials[-1]

    def step(self, seconds: float = 10.0) -> None:
        self.now += seconds
        self.callback.on_step_end(iteration=0, trials=self.trials)


@pytest.fixture
def run(tmp_path: Path, seen: Seen) -> Run:
    run = Run(ExperimentFolder(Storage(str(tmp_path)), "exp"))
    return run


def test_metrics_follow_the_trials(run: Run, seen: Seen) -> None:
    """Running, waiting and what they want; rungs as they come; what a trial held when its record is there."""
    run.callback.setup()
    first = run.add({"n": 1}, "RUNNING")
    run.add({"n": 2}, "PENDING")
    run.step()
    assert seen.of("autotuner_trials_planned") == [9]
    assert (seen.of("autotuner_trials_running"), seen.of("autotuner_trials_waiting")) == ([1], [1])
    assert seen.of("autotuner_gpus_wanted") == [4]
    for done in (1, 2, 2):
        run.callback.on_trial_result(iteration=0, trials=run.trials, trial=first, result={"rungs_done": done})
    assert {k: v for k, v in seen.values.items() if k[0] == "autotuner_rungs"} == {
        ("autotuner_rungs", "0"): 1,
        ("autotuner_rungs", "1"): 1,
    }
    run.callback.on_trial_complete(iteration=0, trials=run.trials, trial=first)
    first.status = "TERMINATED"
    run.step()
    assert not seen.of("autotuner_gpu_seconds")
    run.folder.save_record(ended(1, value=83.0, gpus=4))
    run.step()
    run.step()
    assert seen.values[("autotuner_gpu_seconds", "benchmark")] == 240
    assert (seen.of("autotuner_queue_seconds"), seen.of("autotuner_trial_seconds")) == ([5], [60])
    assert seen.values[("autotuner_trials_ended", "completed")] == 1
    assert seen.values[("autotuner_best_score", "maximize_throughput", "tokens/s")] == 83.0
    assert not seen.of("autotuner_baseline_score")


def test_an_experiment_that_goes_on_starts_from_its_records(run: Run, seen: Seen) -> None:
    """Counted once as ended; what was held before is not counted again."""
    run.folder.save_record(ended(1, value=83.0))
    run.callback.setup()
    assert seen.values[("autotuner_trials_ended", "completed")] == 1
    assert not seen.of("autotuner_gpu_seconds")
    assert run.lines == ["1 of 9 trials: 1 completed; best 83.0 tokens/s"]


def test_the_line_is_written_once_per_change_and_not_too_often(run: Run) -> None:
    """And once more at the end, with what came last."""
    run.callback.setup()
    run.step()
    run.add({"n": 1}, "RUNNING")
    run.step(telemetry.LINE_S)
    run.add({"n": 2}, "RUNNING")
    run.step(telemetry.LINE_S / 2)
    assert run.lines == ["0 of 9 trials", "0 of 9 trials; 1 running"]
    run.step(telemetry.LINE_S)
    assert run.lines[2:] == ["0 of 9 trials; 2 running"]
    failed = run.trials[0]
    run.callback.on_trial_error(iteration=0, trials=run.trials, trial=failed)
    run.folder.save_record(ended(1, "failed"))
    run.callback.on_experiment_end(trials=run.trials)
    assert run.lines[3:] == ["1 of 9 trials: 1 failed"]


def test_no_fault_of_telemetry_reaches_the_run(run: Run, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would end the experiment; it is logged."""
    seen.broken = True
    trial = run.add({"n": 1}, "RUNNING")
    run.callback.setup()
    run.callback.on_trial_result(iteration=0, trials=run.trials, trial=trial, result={"rungs_done": 1})
    run.callback.on_trial_complete(iteration=0, trials=[], trial=SimpleNamespace(config={}))
    run.step()
    run.callback.on_experiment_end(trials=[])


def test_a_record_that_cannot_be_read_now_is_read_later(run: Run, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that does not answer costs nothing but time."""
    run.callback.setup()
    trial = run.add({"n": 1}, "TERMINATED")
    run.folder.save_record(ended(1))
    run.callback.on_trial_complete(iteration=0, trials=run.trials, trial=trial)

    def away(self: ExperimentFolder, name: str) -> None:
        raise StorageFault("away")

    with monkeypatch.context() as patched:
        patched.setattr(ExperimentFolder, "record", away)
        run.step()
    assert seen.values[("autotuner_trials_ended", "completed")] == 0
    run.step()
    assert seen.values[("autotuner_trials_ended", "completed")] == 1


def test_a_callback_can_be_pickled_while_it_runs(tmp_path: Path, seen: Seen) -> None:
    """Tune does so with each snapshot; metrics belong to their process."""
    callback = Telemetry(ExperimentFolder(Storage(str(tmp_path)), "exp"), "chat", 9, len)
    callback.setup()
    copy = pickle.loads(pickle.dumps(callback))
    copy.setup()


def test_lines_go_to_standard_output_in_a_submitted_job_only(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal there is a table."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    Telemetry(folder, "chat", 9, len).setup()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    Telemetry(folder, "chat", 9, len).setup()
    assert capsys.readouterr().out == "0 of 9 trials\n"


def exported(name: str) -> set[str]:
    """Under these names Ray shows a metric, as seen at the metrics port of Ray 2.60."""
    endings = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
    return {f"ray_{name}{ending}" for ending in endings[METRICS[name].kind]}


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_one_that_ray_takes(name: str) -> None:
    """By name, tags and buckets."""
    metric = METRICS[name].make(name)
    assert metric.info["tag_keys"] == (*telemetry.TAGS, *METRICS[name].tags)


def test_the_dashboard_draws_exactly_these_metrics() -> None:
    """Every one is drawn, and nothing is drawn that does not exist."""
    drawn = set(re.findall(r"ray_autotuner_\w+", DASHBOARD.read_text()))
    assert drawn <= {each for name in METRICS for each in exported(name)}
    assert [name for name in METRICS if not drawn & exported(name)] == []


def test_the_dashboard_groups_by_tags_that_the_metrics_have() -> None:
    """A wrong label shows as an empty panel."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            names = [n for n in METRICS if any(e in target["expr"] for e in exported(n))]
            tags = {tag for name in names for tag in (*telemetry.TAGS, *METRICS[name].tags)} | {"le"}
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert {tag.strip() for group in grouped for tag in group.split(",")} <= tags
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= tags


def test_the_dashboards_panels_do_not_overlap() -> None:
    """And each has an id of its own."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_a_trial_bears_its_experiment_name_and_parameters_in_short() -> None:
    """As Ray's dashboard shows it: one line, clipped."""
    parameters: Parameters = {"tp_size": 4, "mem": 0.8512345, "overlap": True}
    trial = TrialId("search", config_hash(parameters))
    shown = label("chat-1", Proposal(trial, 7, parameters, 0.0))
    assert shown == f"chat-1 #7 {trial.name} tp_size=4 mem=0.8512 overlap=True"
    baseline = label("chat-1", Proposal(TrialId("baseline", config_hash({})), 0, {}, 0.0))
    assert baseline.endswith(" the runtime's own flags")
    long = label("e" * 60, Proposal(trial, 7, {f"parameter{n}": n for n in range(20)}, 0.0))
    assert len(long) == LABEL_LENGTH
    assert long.endswith("…")
