"""A rung as the loads it is made of, without processes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from raytune_autotuner.benchmarks import Answered, Check
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
HIGH = replace(RUNG, loads=(Load("D(100,100)", 32),))
"""The search begins above most knees."""


@dataclass
class Engine:
    """Requests take a second up to ``knee`` in flight, and as many times longer as there are more of them."""

    knee: int = 11
    faults: dict[int, FailureClass] = field(default_factory=dict)
    clock_s: float = 0.0
    load_s: float = 10.0
    ran: list[tuple[str, Load]] = field(default_factory=list)

    def __call__(self, rung: Rung, name: str, watch: Check) -> Metrics:
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


def test_the_knee_may_lie_below_the_first_level() -> None:
    """Then it is searched below, but not below the lowest that may be tried."""
    engine = Engine()
    (knee,) = measure(HIGH, engine.bench()).knees
    assert engine.levels == [32, 16, 8, 12, 10, 11]
    assert (knee.level, knee.breaks, knee.reachable) == (11, 12, {})
    lowest = Engine()
    (knee,) = measure(replace(HIGH, levels=LevelSearch(32, 64, 0.1)), lowest.bench()).knees
    assert (lowest.levels, knee.level, knee.breaks) == ([32], None, 32)


def test_the_reachable_slo_is_that_of_the_lowest_level() -> None:
    """Not that of the first, and the score is of the same level."""
    engine = Engine()
    found = measure(HIGH, engine.bench(e2e_s=0.5))
    (knee,) = found.knees
    assert engine.levels == [32, 16, 8, 4, 2, 1]
    assert (knee.level, knee.breaks, knee.reachable) == (None, 1, {"e2e_s": pytest.approx(1.0)})
    assert [load.load.level for load in found.metrics.loads] == [1]


@pytest.mark.parametrize("kind", ["request_errors", "timeout"])
def test_the_first_level_may_be_too_high_for_the_engine(kind: FailureClass) -> None:
    """Which can work, since a lower one does; one that fails at the lowest cannot."""
    engine = Engine(faults={32: kind, 16: kind})
    (knee,) = measure(HIGH, engine.bench()).knees
    assert (engine.levels[:3], knee.level) == ([32, 16, 8], 11)
    assert knee.probes[0].worst == f"{kind}: at 32"
    dead = Engine(faults=dict.fromkeys((32, 16, 8, 4, 2, 1), kind))
    with pytest.raises(TrialInfeasible) as caught:
        measure(HIGH, dead.bench())
    assert (caught.value.reason, dead.levels[-1]) == ("at 1", 1)


def test_a_search_downwards_for_which_the_time_does_not_suffice() -> None:
    """The lowest level so far is the answer, with the reason, also when the time ends in the lowest of all."""
    found = measure(HIGH, Engine().bench(time_s=25, e2e_s=0.5))
    assert [load.load.level for load in found.metrics.loads] == [16]
    assert in_words(found.knees).endswith("; the time of the trial did not suffice to try 8")
    hanging = Engine(faults={1: "timeout"}, load_s=10.0)
    bench = hanging.bench(time_s=36, e2e_s=0.5)

    def slow(rung: Rung, name: str, watch: Check) -> Metrics:
        hanging.load_s = 30.0 if name == "level-1" else 10.0
        return hanging(rung, name, watch)

    (knee,) = measure(replace(HIGH, loads=(Load("D(100,100)", 2),)), replace(bench, run=slow)).knees
    assert (knee.level, knee.breaks, knee.note) == (None, 2, "the time of the trial was over at 1")


def test_a_trial_whose_time_ends_before_anything_was_measured_is_infeasible() -> None:
    """Nothing is known of it that could be scored."""
    with pytest.raises(TrialInfeasible, match="at 32"):
        measure(HIGH, Engine(faults={32: "timeout"}, load_s=60.0).bench(time_s=50))


def test_only_the_lowest_level_is_measured_whole_on_the_way_down() -> None:
    """Those above it are lost as soon as that shows."""
    found = measure(
        replace(HIGH, max_requests=60), Slow().bench(cuts=True, objective="maximize_goodput", e2e_p99_s=1.0)
    )
    (knee,) = found.knees
    assert [probe.worst.startswith("slo_lost") for probe in knee.probes] == [True] * 5 + [False]
    assert (knee.breaks, knee.reachable) == (1, {"e2e_p99_s": pytest.approx(5.0)})
    assert not found.metrics.loads[0].cut


def test_of_a_level_that_was_cut_short_it_is_not_said_what_is_reachable() -> None:
    """Where the time did not suffice for a lower one: the rest of its requests may have been slower."""
    slow = Slow()
    bench = slow.bench(cuts=True, objective="maximize_goodput", e2e_p99_s=1.0)
    bench = replace(bench, deadline=Deadline.after(25, lambda: 10.0 * len(slow.ran)))
    (knee,) = measure(replace(HIGH, max_requests=60), bench).knees
    assert (knee.level, knee.breaks, knee.reachable) == (None, 16, {})


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

    def slow(rung: Rung, name: str, watch: Check) -> Metrics:
        engine.load_s = 30.0 if name == "level-4" else 10.0
        return engine(rung, name, watch)

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


@dataclass
class Slow:
    """A load of which the watch sees every request late, and which ends when it is told to."""

    e2e_s: float = 5.0
    queue: list[float] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    resets: int = 0
    client_cpu: float | None = None

    def __call__(self, rung: Rung, name: str, watch: Check) -> Metrics:
        self.ran.append(name)
        (load,) = rung.loads
        (measured,) = sample_metrics(rung.index, self.e2e_s, level=load.level, requests=60).loads
        assert watch(None) is None
        cut = watch(Answered(measured.samples, tuple(float(n) for n in range(60))))
        return Metrics(rung.index, (replace(measured, cut=cut or "", client_cpu=self.client_cpu),), 1.0, 0.0)

    def reset(self) -> str | None:
        self.resets += 1
        return "POST /flush_cache: HTTP 404"

    def bench(self, *, cuts: bool, objective: str = "maximize_throughput", **slo: float) -> Bench:
        context = Context(1, Optimization(objective=objective, slo=slo))
        return Bench(context, Deadline.after(1e6), self, self.reset, cuts, lambda: self.queue)


TWO = Rung(0, (Load("D(1,1)", 1), Load("D(1,1)", 4)), 60, 1)


def test_a_rung_that_is_lost_is_cut_short() -> None:
    """The rest of the load and the loads after it are not run; the score says how bad it is at least."""
    slow = Slow()
    bench = slow.bench(cuts=True, e2e_p99_s=1.0)
    found = measure(TWO, bench)
    assert found.cut is not None
    assert (found.cut.kind, slow.ran) == ("slo_lost", ["load-0"])
    assert "e2e_p99_s" in found.metrics.loads[0].cut
    assert score(found.metrics, bench.context).violation == pytest.approx(4.0)


def test_what_others_are_compared_with_is_never_cut() -> None:
    """Baselines, controls and confirming runs run to the end."""
    slow = Slow()
    found = measure(TWO, slow.bench(cuts=False, e2e_p99_s=1.0))
    assert (found.cut, slow.ran) == (None, ["load-0", "load-1"])
    assert not any(load.cut for load in found.metrics.loads)


def test_a_limit_that_one_whole_load_broke_is_lost_for_the_rung() -> None:
    """Every load has to keep it; the last load has none after it to save."""
    rung = replace(TWO, max_requests=10_000)  # so that the watch cannot be sure
    slow = Slow()
    found = measure(rung, slow.bench(cuts=True, e2e_p99_s=4.9))
    assert found.cut is not None
    assert "at 1 in flight, which the other loads cannot mend" in found.cut.reason
    assert slow.ran == ["load-0"]
    alone = measure(replace(rung, loads=rung.loads[:1]), Slow().bench(cuts=True, e2e_p99_s=4.9))
    assert alone.cut is None


def test_a_repeat_that_is_lost_is_the_last() -> None:
    """Of several repeats, those after it are not run."""
    slow = Slow()
    found = measure(replace(TWO, repeats=3), slow.bench(cuts=True, e2e_p99_s=1.0))
    assert found.cut is not None
    assert slow.ran == ["load-0-repeat-0"]


def test_a_level_that_is_lost_breaks_the_slo() -> None:
    """The search goes on below it, and the rung itself is whole."""
    slow = Slow()

    def run(rung: Rung, name: str, watch: Check) -> Metrics:
        slow.e2e_s = 1.0 if rung.loads[0].level < 3 else 5.0
        return slow(rung, name, watch)

    bench = replace(slow.bench(cuts=True, objective="maximize_goodput", e2e_p99_s=2.0), run=run)
    found = measure(replace(RUNG, max_requests=60), bench)
    (knee,) = found.knees
    assert (knee.level, knee.breaks, found.cut) == (2, 3, None)
    assert all(probe.worst.startswith("slo_lost") for probe in knee.probes if not probe.kept)


def test_the_lowest_level_is_measured_whole() -> None:
    """What it says of the SLO that is reachable needs all of its requests."""
    found = measure(RUNG, Slow().bench(cuts=True, objective="maximize_goodput", e2e_p99_s=1.0))
    assert found.knees[0].reachable == {"e2e_p99_s": pytest.approx(5.0)}
    assert not found.metrics.loads[0].cut


def test_what_spoils_a_measurement_is_noted_once() -> None:
    """Caches are emptied before every load; a client without a core to spare is told of."""
    slow = Slow(client_cpu=0.97)
    found = measure(TWO, slow.bench(cuts=False))
    assert slow.resets == 2
    assert [note.split(":")[0] for note in found.notes] == [
        "the engine's caches were not empty before each load",
        "the benchmark client used 97% of its core at 1 in flight",
        "the benchmark client used 97% of its core at 4 in flight",
    ]
    assert len(measure(TWO, Slow(client_cpu=0.5).bench(cuts=False)).notes) == 1
