"""One trial with fakes: whatever happens, the engine is stopped and an outcome is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_autotuner.backends import Deployment
from raytune_autotuner.clock import Clock
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.engines.engine_metrics import EngineMetrics
from raytune_autotuner.errors import StorageFault, Superseded, TransientError
from raytune_autotuner.folder import ExperimentFolder, session_file
from raytune_autotuner.history import is_over
from raytune_autotuner.ledger import was_stopped_early
from raytune_autotuner.objectives import Context
from raytune_autotuner.records import EngineSeries, LevelSearch, Load, Parameters, Purpose, Rung, TrialId, config_hash
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.ome import OmeSpec
from raytune_autotuner.task.spec import Optimization
from raytune_autotuner.trial import Job, Trial, run
from tests.fakes.trials import FakeBackend, FakeBenchmark, Faults

RUNGS = (Rung(0, (Load("D(10,10)", 4),), 8, 1), Rung(1, (Load("D(10,10)", 4),), 20, 1))


def make_trial(
    tmp_path: Path,
    fault: str = "",
    warmup: int = 2,
    session: int = 0,
    purpose: Purpose = "search",
    **optimization: object,
) -> tuple[Trial, FakeBackend, FakeBenchmark]:
    parameters: Parameters = {"threads": 1}
    trial_id = TrialId(purpose, config_hash(parameters))
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp", session)
    deployment = Deployment(
        experiment="exp",
        trial=trial_id,
        engine=load_engine("llamacpp"),
        parameters=parameters,
        argv=("server", "--threads", "1"),
        served_name="m",
        gpus=0,
        folder=folder.root.workdir(f"trials/{trial_id.name}"),
    )
    settings = Optimization.model_validate({"objective": "minimize_latency", **optimization})
    job = Job(deployment, 3, RUNGS, warmup, Context(0, settings), 60.0, 1.5)
    faults = Faults(fault)
    backend, benchmark = FakeBackend(faults), FakeBenchmark(faults, 2.0)
    return Trial(job, backend, benchmark, folder), backend, benchmark


def saved(tmp_path: Path) -> dict[str, object]:
    (path,) = tmp_path.glob("exp/trials/*/record.json")
    record: dict[str, object] = json.loads(path.read_text())
    return record


def test_a_trial_deploys_once_and_runs_every_rung(tmp_path: Path) -> None:
    """Warm-up first, then the rungs in order on one deployment, then the teardown."""
    trial, backend, benchmark = make_trial(tmp_path)
    record = run(trial)
    assert record.outcome == "completed"
    assert benchmark.journal == ["rung -1", "rung 0", "rung 1"]
    assert [e for e in backend.journal if e != "check"] == ["start", "stop"]
    assert record.score is not None
    assert record.score.value == pytest.approx(2.0)
    assert record.phases["queue"] == 1.5
    assert saved(tmp_path)["outcome"] == "completed"
    assert not backend.running
    assert not benchmark.open


def test_without_warm_up_nothing_is_sent_before_the_first_rung(tmp_path: Path) -> None:
    """Zero means none."""
    trial, _, benchmark = make_trial(tmp_path, warmup=0)
    run(trial)
    assert benchmark.journal == ["rung 0", "rung 1"]


def test_each_step_is_one_rung_and_leaves_its_metrics_on_disk(tmp_path: Path) -> None:
    """So that a scheduler can decide between them and a crash loses nothing."""
    trial, backend, _ = make_trial(tmp_path)
    assert trial.step() is None
    assert [p.name for p in tmp_path.glob("exp/trials/*/rungs/*")] == ["0.json"]
    assert backend.running
    assert not list(tmp_path.glob("exp/trials/*/record.json"))
    assert trial.step() is not None


def test_what_the_engine_said_is_kept_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each rung, with its loads."""

    def series(scrape: EngineMetrics) -> EngineSeries:
        return EngineSeries((0.0,), {"queue_length": (1.0,)}, tuple(scrape._loads))

    monkeypatch.setattr(EngineMetrics, "series", series)
    trial, _, _ = make_trial(tmp_path)
    record = run(trial)
    kept = ExperimentFolder(Storage(str(tmp_path)), "exp").engine_series(record.trial.name)
    assert [len(kept[rung.rung].loads) for rung in record.rungs] == [len(rung.metrics.loads) for rung in record.rungs]


def test_an_early_stop_keeps_the_rungs_and_stops_the_engine(tmp_path: Path) -> None:
    """The record says stopped, with no failure and no final score."""
    trial, backend, _ = make_trial(tmp_path)
    trial.step()
    record = trial.finish("stopped")
    assert (record.outcome, len(record.rungs), record.score, record.failure) == ("stopped", 1, None, None)
    assert not backend.running


def test_the_first_ending_counts(tmp_path: Path) -> None:
    """Ray may call cleanup after a trial has ended by itself."""
    trial, backend, _ = make_trial(tmp_path)
    first = run(trial)
    assert trial.finish("stopped") is first
    assert backend.journal.count("stop") == 1


STEPS = ("start", "warmup", "rung0", "rung1")
ENDINGS = {
    "out_of_memory": ("infeasible", "out_of_memory"),
    "bad_flag": ("infeasible", "bad_flag"),
    "crash": ("infeasible", "crash"),
    "request_errors": ("infeasible", "request_errors"),
    "timeout": ("infeasible", "timeout"),
    "transient": ("completed", None),
    "always_transient": ("failed", "infrastructure"),
    "environment": ("failed", "infrastructure"),
    "bug": ("failed", "infrastructure"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", sorted(ENDINGS))
def test_fault_matrix(tmp_path: Path, step: str, what: str) -> None:
    """Each fault at each step: the right outcome, everything stopped, nothing measured lost."""
    trial, backend, benchmark = make_trial(tmp_path, f"{step}:{what}")
    record = run(trial)
    outcome, kind = ENDINGS[what]
    assert record.outcome == outcome
    assert (record.failure.kind if record.failure else None) == kind
    assert not backend.running
    assert not benchmark.open
    assert backend.journal[-1] == "stop"
    assert saved(tmp_path)["outcome"] == outcome
    expected_rungs = 2 if outcome == "completed" else {"rung1": 1}.get(step, 0)
    assert len(record.rungs) == expected_rungs
    assert len(list(tmp_path.glob("exp/trials/*/rungs/*.json"))) == expected_rungs


def test_a_retry_has_all_of_the_time_again(tmp_path: Path) -> None:
    """What the infrastructure has used up is not held against the configuration."""
    trial, backend, _ = make_trial(tmp_path, "start:transient")
    run(trial)
    first, second = backend.deadlines
    assert second.at > first.at


def test_a_retry_deploys_afresh_and_goes_on_at_the_rung_that_failed(tmp_path: Path) -> None:
    """Rung 0 is not paid for twice."""
    trial, backend, benchmark = make_trial(tmp_path, "rung1:transient")
    run(trial)
    assert benchmark.journal == ["rung -1", "rung 0", "rung -1", "rung 1"]
    assert [e for e in backend.journal if e != "check"] == ["start", "stop", "start", "stop"]


def test_a_teardown_that_fails_is_told_and_does_not_hide_the_result(tmp_path: Path) -> None:
    """The measurement stands, the record says what stayed."""
    trial, _, benchmark = make_trial(tmp_path, "stop:always_transient")
    record = run(trial)
    assert record.outcome == "completed"
    assert record.failure is not None
    assert "teardown" in record.failure.reason
    assert not benchmark.open


def test_raw_output_is_kept_though_the_benchmark_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is brought to the storage for the last time."""
    trial, _, _ = make_trial(tmp_path)
    brought: list[bool] = []

    def broken(benchmark: FakeBenchmark) -> None:
        raise TransientError("its Job cannot be removed")

    monkeypatch.setattr(FakeBenchmark, "close", broken)
    monkeypatch.setattr(Trial, "_bring", lambda trial, *, last=False, every_s=0.0: brought.append(last))
    run(trial)
    assert brought[-1]


def test_a_teardown_may_take_as_long_as_a_task_can_ask_for(tmp_path: Path) -> None:
    """The backend's own limit ends it, not the trial's."""
    trial, backend, _ = make_trial(tmp_path)
    run(trial)
    longest = OmeSpec.model_json_schema()["properties"]["teardown_timeout_s"]["maximum"]
    assert backend.patience_s >= longest


def test_a_stop_request_ends_the_trial_before_and_during_a_rung(tmp_path: Path) -> None:
    """It is looked for before a step and once a second within it."""
    trial, backend, _ = make_trial(tmp_path)
    trial.step()
    ExperimentFolder(Storage(str(tmp_path)), "exp").request_stop()
    record = trial.step()
    assert record is not None
    assert (record.outcome, record.failure and record.failure.kind) == ("stopped", "interrupted")
    assert len(record.rungs) == 1
    assert not backend.running


def test_an_interrupt_stops_the_engine_and_goes_on_upwards(tmp_path: Path) -> None:
    """Ctrl-C in a single trial must not leave anything running."""
    trial, backend, benchmark = make_trial(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    benchmark.run = interrupted  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        run(trial)
    assert not backend.running
    assert saved(tmp_path)["outcome"] == "stopped"


def test_the_state_tells_phase_and_rung_as_they_change(tmp_path: Path) -> None:
    """A watcher sees where a trial stands from the folder alone."""
    trial, _, _ = make_trial(tmp_path)
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    trial.step()
    (state,) = folder.states()
    assert (state.phase, state.rung, state.total_rungs, state.outcome) == ("benchmark", 0, 2, None)
    trial.step()
    (state,) = folder.states()
    assert (state.phase, state.rung, state.outcome) == ("ended", 2, "completed")
    assert state.score is not None


def test_the_clock_charges_each_second_once() -> None:
    """Phases add up to the time that passed; moved seconds change their phase only."""
    clock = Clock({"queue": 1.0})
    for phase in ("deploy", "benchmark", "idle"):
        clock.enter(phase)
    clock.move("benchmark", "client", 0.25)
    assert clock.seconds["client"] == 0.25
    assert clock.seconds["queue"] == 1.0
    assert sum(clock.seconds.values()) == pytest.approx(1.0, abs=0.1)


def test_a_trial_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """With the rungs that were measured, what was spent, and what a leftover of it held meanwhile."""
    first, _, _ = make_trial(tmp_path)
    first.step()
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    (state,) = folder.states()
    earlier = "2026-01-01T00:00:00.000+00:00"
    folder.save_state(replace(state, phase="queue", updated_at=earlier, phases={"load": 100.0}))
    second, backend, benchmark = make_trial(tmp_path)
    backend.leftover = True
    record = run(second)
    assert (record.outcome, [r.rung for r in record.rungs]) == ("completed", [0, 1])
    assert benchmark.journal == ["rung -1", "rung 1"]
    assert record.started_at == state.started_at
    assert record.phases["load"] >= 100.0
    assert record.phases["idle"] > 1000.0


def test_what_was_left_is_charged_also_when_two_workers_die_in_a_row(tmp_path: Path) -> None:
    """The second one while it deployed: it could not say yet whether the first one's engine had been up."""
    first, _, _ = make_trial(tmp_path)
    first.step()
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(replace(folder.states()[0], updated_at="2026-01-01T00:00:00.000+00:00"))
    second, _, _ = make_trial(tmp_path)
    second._announce("deploy", "")
    third, backend, _ = make_trial(tmp_path)
    backend.leftover = True
    assert run(third).phases["idle"] > 1000.0


def test_what_was_not_there_is_not_charged_later(tmp_path: Path) -> None:
    """The second worker found nothing, so what the third one finds is the second one's."""
    first, _, _ = make_trial(tmp_path)
    first.step()
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(replace(folder.states()[0], updated_at="2026-01-01T00:00:00.000+00:00"))
    second, _, _ = make_trial(tmp_path)
    second._endpoint = second._deploy()
    second._announce("benchmark", "")
    third, backend, _ = make_trial(tmp_path)
    backend.leftover = True
    assert run(third).phases["idle"] < 100.0


def test_what_was_left_is_charged_also_when_the_start_that_found_it_fails(tmp_path: Path) -> None:
    """It held its GPUs until it was removed, whatever came then."""
    first, _, _ = make_trial(tmp_path)
    first.step()
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(replace(folder.states()[0], updated_at="2026-01-01T00:00:00.000+00:00"))
    second, backend, _ = make_trial(tmp_path, "start:out_of_memory")
    backend.leftover = True
    record = run(second)
    assert record.outcome == "infeasible"
    assert record.phases["idle"] > 1000.0


@pytest.mark.parametrize("left", [True, False])
def test_a_trial_that_is_measured_already_is_not_deployed_again(tmp_path: Path, left: bool) -> None:
    """Its worker died between the last rung and the record; what it left behind is ended, and charged until then."""
    first, _, _ = make_trial(tmp_path)
    first.step()
    first._retrying(RUNGS[1])
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    folder.save_state(replace(folder.states()[0], updated_at="2026-01-01T00:00:00.000+00:00"))
    second, backend, benchmark = make_trial(tmp_path)
    backend.leftover = left
    record = run(second)
    assert (record.phases["idle"] > 1000.0) is left
    assert (record.outcome, len(record.rungs)) == ("completed", 2)
    assert record.score is not None
    assert backend.journal == ["stop"]
    assert benchmark.journal == []
    assert record.engine_info == {"speed": 1}


def test_a_storage_that_fails_ends_the_engine_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written, but nothing is left running."""
    trial, backend, _ = make_trial(tmp_path)
    trial.step()

    def full(self: Storage, path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "_write_local", full)
    with pytest.raises(StorageFault, match="No space left"):
        trial.step()
    assert not backend.running


def test_a_measured_rung_is_kept_whatever_else_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's metrics over time come after it."""

    def full(*_: object) -> None:
        raise StorageFault("No space left on device")

    monkeypatch.setattr(EngineMetrics, "series", lambda scrape: EngineSeries((), {}, ()))
    monkeypatch.setattr(ExperimentFolder, "save_engine_series", full)
    trial, _, _ = make_trial(tmp_path)
    with pytest.raises(StorageFault):
        trial.step()
    assert [p.name for p in tmp_path.glob("exp/trials/*/rungs/*")] == ["0.json"]


def begin_session(tmp_path: Path, number: int) -> None:
    Storage(str(tmp_path)).sub("exp").write(session_file(number), "{}")


def contents(tmp_path: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in (tmp_path / "exp" / "trials").rglob("*.json")}


@pytest.mark.parametrize("then", ["step", "finish"])
def test_a_worker_of_a_session_that_is_over_touches_nothing_any_more(tmp_path: Path, then: str) -> None:
    """Another worker may have its engine and write its files by now."""
    trial, backend, _ = make_trial(tmp_path, session=3)
    begin_session(tmp_path, 3)
    trial.step()
    begin_session(tmp_path, 4)
    before = contents(tmp_path)
    with pytest.raises(Superseded, match="session 4 of exp has begun"):
        trial.step() if then == "step" else trial.finish("stopped")
    assert contents(tmp_path) == before
    assert backend.running
    assert "stop" not in backend.journal


def test_a_benchmark_ends_when_another_session_begins(tmp_path: Path) -> None:
    """Its traffic would disturb whoever measures the engine now."""
    trial, backend, benchmark = make_trial(tmp_path, session=1)
    trial.step()
    measure = benchmark.run

    def interrupted(*args: object) -> object:
        begin_session(tmp_path, 2)
        return measure(*args)  # type: ignore[arg-type]

    benchmark.run = interrupted  # type: ignore[assignment,method-assign]
    with pytest.raises(Superseded):
        trial.step()
    assert "rung 1" not in benchmark.journal
    assert backend.running


LOST = {"slo": {"e2e_p99_s": 0.5}}


def test_a_trial_whose_rung_is_hopeless_is_stopped_with_the_reason(tmp_path: Path) -> None:
    """What was measured is kept and marked, the later rungs are not paid for, and no score counts as final."""
    trial, backend, benchmark = make_trial(tmp_path, **LOST)
    record = run(trial)
    assert record.failure is not None
    assert (record.outcome, record.failure.kind, record.score) == ("stopped", "slo_lost", None)
    (rung,) = record.rungs
    assert rung.cut == record.failure
    assert rung.score.violation == pytest.approx(3.0)
    assert benchmark.journal == ["rung -1", "rung 0"]
    assert not backend.running
    assert was_stopped_early(record)
    assert is_over(record)


def test_a_short_rung_that_breaks_the_slo_by_little_is_not_cut(tmp_path: Path) -> None:
    """The whole one may keep what it breaks; there the SLO is lost for good."""
    trial, _, benchmark = make_trial(tmp_path, slo={"e2e_p99_s": 1.7})
    record = run(trial)
    assert (record.outcome, record.failure and record.failure.kind) == ("stopped", "slo_lost")
    assert [rung.cut is not None for rung in record.rungs] == [False, True]
    assert benchmark.journal == ["rung -1", "rung 0", "rung 1"]


def test_a_trial_that_was_cut_and_then_lost_its_worker_is_not_measured_again(tmp_path: Path) -> None:
    """Its worker died between the rung and the record."""
    first, _, _ = make_trial(tmp_path, **LOST)
    first._retrying(RUNGS[0])
    second, backend, benchmark = make_trial(tmp_path, **LOST)
    record = run(second)
    assert (record.outcome, record.failure and record.failure.kind) == ("stopped", "slo_lost")
    assert (benchmark.journal, backend.journal) == ([], ["stop"])


@pytest.mark.parametrize(
    ("purpose", "settings"),
    [*((purpose, LOST) for purpose in ("baseline", "control", "confirm")), ("search", {**LOST, "cut_hopeless": False})],
)
def test_what_is_compared_with_is_never_cut(tmp_path: Path, purpose: Purpose, settings: dict[str, object]) -> None:
    """Nor is anything where the task says so: the trial runs to its end, with the SLO broken."""
    trial, _, benchmark = make_trial(tmp_path, purpose=purpose, **settings)
    record = run(trial)
    assert record.outcome == "completed"
    assert record.score is not None
    assert record.score.violation == pytest.approx(3.0)
    assert benchmark.journal == ["rung -1", "rung 0", "rung 1"]


def test_the_searched_knee_stands_in_the_record(tmp_path: Path) -> None:
    """With every level that was tried, and in words beside the score; each level has a folder of its own."""
    trial, _, _ = make_trial(tmp_path, objective="maximize_goodput", slo={"e2e_s": 3.0})
    trial.job = replace(
        trial.job, rungs=(replace(RUNGS[0], loads=(Load("D(10,10)", 1),), levels=LevelSearch(1, 4, 0.1)),)
    )
    record = run(trial)
    assert record.score is not None
    assert record.score.at == "at 4 in flight; 4 is the highest level that may be tried"
    assert [probe.level for probe in record.rungs[0].knees[0].probes] == [1, 2, 4]
    names = {path.name for path in tmp_path.glob("exp/trials/*/rung-0-*")}
    assert names == {"rung-0-level-1", "rung-0-level-2", "rung-0-level-4"}


def test_an_engine_that_does_not_forget_is_noted(tmp_path: Path) -> None:
    """The engine file says how its caches are emptied; nobody listens here."""
    trial, _, _ = make_trial(tmp_path)
    deployment = replace(trial.job.deployment, engine=load_engine("sglang"))
    trial.job = replace(trial.job, deployment=deployment, timeout_s=60.0)
    trial._deadline = Deadline.after(0.5)
    record = run(trial)
    assert "the engine's caches were not empty before each load: POST /flush_cache" in "".join(record.notes)
