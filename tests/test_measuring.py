"""A rung as the loads it is made of, without processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import FailureClass, TrialInfeasible
from raytune_autotuner.measuring import Bench, in_words, measure
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import LevelSearch, Load, Metrics, Rung
from raytune_autotuner.task.spec import Optimization
from tests.fakes.trials import sample_metrics

SLO = {"e2e_s": 2.0}
SEARCH = LevelSearch(1, 64, 0.1)
RUNG = Rung(1, (Load("D(100,100)", 1),), 20, 1, levels=SEARCH)


@dataclass
class Engine:
    """Requests take a second up to ``knee`` in flight, and as many times longer as there are more of them."""

    knee: int = 11
    faults: dict[int, FailureClass] = field(default_factory=dict)
    clock_s: float = 0.0
    load_s: float = 10.0
    ran: list[tuple[str, Load]] = field(default_factory=list)

    def __call__(self, rung: Rung, name: str) -> Metrics:
        (load,) = rung.loads
        assert (rung.repeats, rung.levels) == (1, None)
        self.ran.append((name, load))
        self.clock_s += self.load_s
        if load.level in self.faults:
            raise TrialInfeasible(self.faults[load.level], f"at {load.level}")
        e2e_s = max(1.0, load.level / self.knee) * (2.0 if load.level > self.knee else 1.0)
        (measured,) = sample_metrics(rung.index, e2e_s, level=load.level, requests=20).loads
        return Metrics(rung.index, (measured,), 8.0, 0.5)

    def bench(self, time_s: float = 1e6, objective: str = "maximize_goodput", gpus: int = 2, **slo: float) -> Bench:
        context = Context(gpus, Optimization(objective=objective, slo=slo or SLO))
        return Bench(context, Deadline.after(time_s, lambda: self.clock_s), self)

    @property
    def levels(self) -> list[int]:
        return [load.level for _, load in self.ran]


def test_the_knee_is_searched_and_scored() -> None:
    """The rung's metrics are those of the knee, its time is that of all loads, each level has a name of its own."""
    engine = Engine()
    found = measure(RUNG, engine.bench())
    (knee,) = found.knees
    assert engine.levels == [1, 2, 4, 8, 16, 12, 10, 11]
    assert (knee.level, knee.breaks, knee.note, knee.reachable) == (11, 12, "", {})
    assert [load.load.level for load in found.metrics.loads] == [11]
    assert (found.metrics.traffic_s, found.metrics.client_overhead_s) == (64.0, 4.0)
    assert {name for name, _ in engine.ran} == {f"level-{level}" for level in engine.levels}
    scored = score(found.metrics, engine.bench().context)
    assert (scored.value, scored.violation) == (pytest.approx(11 / 2), 0.0)
    assert [probe.kept for probe in knee.probes] == [True] * 4 + [False, False] + [True] * 2
    assert knee.probes[0].goodput_requests_per_s == pytest.approx(1.0)
    assert knee.probes[0].goodput_tokens_per_s == pytest.approx(100.0)
    assert in_words(found.knees) == "at 11 in flight; 12 breaks slo_attainment 0, limit >= 0.9"


def test_an_slo_that_the_lowest_level_breaks_names_what_is_reachable() -> None:
    """One load is enough to know; the score says by how much the SLO is broken."""
    engine = Engine()
    bench = engine.bench(e2e_s=0.5, ttft_p99_s=0.2)
    found = measure(RUNG, bench)
    (knee,) = found.knees
    assert engine.levels == [1]
    assert (knee.level, knee.breaks) == (None, 1)
    assert knee.reachable == {"e2e_s": pytest.approx(1.0), "ttft_p99_s": 0.2}
    assert score(found.metrics, bench.context).violation > 0
    assert in_words(found.knees).startswith("no level keeps the SLO: 1 breaks slo_attainment 0")


@pytest.mark.parametrize("kind", ["request_errors", "timeout"])
def test_a_level_at_which_requests_fail_is_too_high(kind: FailureClass) -> None:
    """When a lower one has worked; the reason stands in the probe."""
    engine = Engine(knee=1000, faults=dict.fromkeys(range(20, 65), kind))
    (knee,) = measure(RUNG, engine.bench()).knees
    assert (knee.level, knee.breaks) == (19, 20)
    assert f"20 breaks {kind}: at 20" in in_words((knee,))


@pytest.mark.parametrize(("kind", "level"), [("request_errors", 1), ("crash", 8)])
def test_a_configuration_that_cannot_work_is_no_knee(kind: FailureClass, level: int) -> None:
    """Requests that fail at the lowest level, or an engine that dies at any."""
    engine = Engine(faults={level: kind})
    with pytest.raises(TrialInfeasible) as caught:
        measure(RUNG, engine.bench())
    assert caught.value.kind == kind


def test_the_search_ends_when_the_trial_has_no_time_for_another_level() -> None:
    """What is known by then is the answer, with the reason."""
    engine = Engine()
    (knee,) = measure(RUNG, engine.bench(time_s=52)).knees
    assert engine.levels == [1, 2, 4, 8]
    assert (knee.level, knee.breaks) == (8, None)
    assert "did not suffice to try 16" in in_words((knee,))


def test_a_level_in_which_the_trials_time_ends_says_nothing() -> None:
    """It may have kept the SLO."""
    engine = Engine(faults={4: "timeout"}, load_s=10.0)
    bench = engine.bench(time_s=36)

    def slow(rung: Rung, name: str) -> Metrics:
        engine.load_s = 30.0 if name == "level-4" else 10.0
        return engine(rung, name)

    (knee,) = measure(RUNG, Bench(bench.context, bench.deadline, slow)).knees
    assert (knee.level, knee.breaks, knee.note) == (2, None, "the time of the trial was over at 4")


def test_the_highest_level_may_keep_the_slo() -> None:
    """Then the knee is not known, and the record says so."""
    (knee,) = measure(RUNG, Engine(knee=1000).bench()).knees
    assert (knee.level, knee.breaks, knee.note) == (64, None, "64 is the highest level that may be tried")


def test_each_scenario_has_its_own_knee() -> None:
    """The score is the mean of their goodput; names do not collide."""
    rung = Rung(0, (Load("D(100,100)", 1), Load("D(9,9)", 1)), 20, 1, levels=LevelSearch(1, 2, 1.0))
    engine = Engine()
    found = measure(rung, engine.bench())
    assert [knee.scenario for knee in found.knees] == ["D(100,100)", "D(9,9)"]
    assert len({name for name, _ in engine.ran}) == 4
    assert len(found.metrics.loads) == 2
    assert in_words(found.knees).count("in flight") == 2


def test_loads_and_repeats_of_a_fixed_workload() -> None:
    """Each is a run of its own; the repeats of a load are one measurement."""
    rung = Rung(1, (Load("D(100,100)", 1), Load("D(100,100)", 4)), 20, 1, repeats=2)
    engine = Engine()
    found = measure(rung, engine.bench(objective="maximize_throughput"))

    assert [load.completed for load in found.metrics.loads] == [40, 40]
    assert (found.knees, in_words(found.knees)) == ((), "")
    assert found.metrics.traffic_s == 32.0
