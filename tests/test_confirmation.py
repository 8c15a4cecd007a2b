"""Which runs confirm a winner, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from raytune_autotuner.confirmation import Confirmation, refuted
from raytune_autotuner.objectives import Context, score
from raytune_autotuner.records import Failure, RungRecord, TrialId, TrialRecord
from raytune_autotuner.task.spec import Optimization, Task, parse_task
from raytune_autotuner.verdict import Ask
from tests.fakes.trials import sample_metrics

BASELINE, WINNER, OTHER = "000000000000", "111111111111", "222222222222"


SLO = {"e2e_mean_s": 2.5}
"""Kept by all but those that are meant to break it."""


def task(**confirm: Any) -> Task:
    data = {
        "task_name": "t",
        "backend": "local",
        "engine": "llamacpp",
        "model": {"name": "m", "path": "m.gguf"},
        "optimization": {"objective": "minimize_latency", "slo": SLO, "confirm": confirm},
    }
    return parse_task(data, "task")


def run(number: int, config: str, latency_s: float, outcome: str = "completed", node: str | None = None) -> TrialRecord:
    metrics = sample_metrics(0, latency_s, noise=0.01, seed=number)
    value = score(metrics, Context(0, Optimization(objective="minimize_latency", slo=SLO)))
    rungs = (RungRecord(0, metrics, value, 1.0),) if outcome == "completed" else ()
    return TrialRecord(
        TrialId("confirm", config, number),
        "exp",
        number,
        {},
        outcome,  # type: ignore[arg-type]
        f"2026-01-01T00:{number:02}:00+00:00",
        rungs,
        1,
        score=value if rungs else None,
        failure=Failure("crash", "it broke") if outcome == "infeasible" else None,
        node=node,
    )


def runs(winner_s: float, count: int = 2) -> list[TrialRecord]:
    order = [BASELINE, WINNER, WINNER, BASELINE] * count
    return [run(n, c, winner_s if c == WINNER else 2.0) for n, c in enumerate(order[: 2 * count])]


def wanted(records: Sequence[TrialRecord], **confirm: Any) -> list[str]:
    return [ask.side for ask in Confirmation(task(**confirm)).wanted(records, BASELINE, WINNER)]


def test_runs_are_wanted_in_turn() -> None:
    """A B B A, so that a drift does not look like a gain."""
    assert wanted([]) == ["baseline", "winner", "winner", "baseline"]
    assert wanted(runs(1.0)[:1]) == ["winner", "winner", "baseline"]


def test_a_plain_gain_needs_no_more_runs() -> None:
    """It stands out after the first look."""
    assert wanted(runs(1.0)) == []
    verdict = Confirmation(task()).verdict(runs(1.0), BASELINE, WINNER)
    assert verdict is not None
    assert (verdict.kind, round(verdict.gain)) == ("WIN", 1)


def test_a_small_gain_is_measured_again_up_to_the_bound() -> None:
    """Until it stands out, or the runs that may be spent on it are."""
    assert len(wanted(runs(1.93))) == 4
    assert wanted(runs(1.93), max_repeats=2) == []


def test_nothing_is_wanted_where_nothing_may_be_spent() -> None:
    """``repeats: 0`` claims no gain."""
    assert wanted([], repeats=0) == []
    assert Confirmation(task(repeats=0)).verdict([], BASELINE, WINNER) is None


def test_nodes_are_swapped() -> None:
    """Each side runs on both, so that a slow node does not decide."""
    asks = Confirmation(task()).wanted([], BASELINE, WINNER, ["n1", "n2"])
    assert {(ask.side, ask.node) for ask in asks} == {(s, n) for s in ("baseline", "winner") for n in ("n1", "n2")}
    assert Ask("baseline", "n1") in asks


def test_runs_against_an_earlier_winner_do_not_count() -> None:
    """They were made at another time; only runs in turn compare."""
    earlier = [run(0, BASELINE, 9.0), run(1, OTHER, 1.0), run(2, OTHER, 1.0), run(3, BASELINE, 9.0)]
    later = [replace(r, number=r.number + 10) for r in runs(1.0)]
    assert len(wanted(earlier)) == 3  # the baseline's last run came after the other winner's
    verdict = Confirmation(task()).verdict([*earlier[:3], *later], BASELINE, WINNER)
    assert verdict is not None
    assert verdict.baseline == pytest.approx(2.0, rel=0.05)


def test_a_winner_that_fails_when_measured_again_is_none() -> None:
    """Whether or not it was ever measured to the end again."""
    failed = run(1, WINNER, 0.0, "infeasible")
    for records in ([run(0, BASELINE, 2.0), failed], [run(0, BASELINE, 2.0), failed, run(2, WINNER, 1.0)]):
        assert wanted(records) == []
        verdict = Confirmation(task()).verdict(records, BASELINE, WINNER)
        assert verdict is not None
        assert verdict.kind == "UNSTABLE"
        assert "it broke" in verdict.reason


@pytest.mark.parametrize("worked", [False, True])
def test_a_baseline_that_fails_when_measured_again_is_given_up(worked: bool) -> None:
    """After the second time; then the winner is to be run, and it is told why nothing is proven."""
    first = run(0, BASELINE, 1.0) if worked else run(0, BASELINE, 0.0, "infeasible")
    records = [first, run(1, WINNER, 1.0), run(2, WINNER, 1.0), run(3, BASELINE, 0.0, "infeasible")]
    if worked:
        assert wanted(records)
        records.append(run(4, BASELINE, 0.0, "infeasible"))
    assert wanted(records) == []
    verdict = Confirmation(task()).verdict(records, BASELINE, WINNER)
    assert verdict is not None
    assert (verdict.kind, verdict.winner_runs, verdict.baseline_runs) == ("UNSTABLE", 2, int(worked))
    assert verdict.winner_anyway
    assert "the baseline failed when it was measured again: crash: it broke" in verdict.reason


def test_runs_that_the_infrastructure_loses_are_not_repeated_for_ever() -> None:
    """The answer is given as it stands."""
    lost = [run(n, WINNER, 0.0, "failed") for n in range(16)]
    assert wanted(lost) == []
    assert len(wanted(lost[:3])) == 4


def of(config: str, records: Sequence[TrialRecord], **confirm: Any) -> tuple[int, Any]:
    """How many runs are wanted of a winner and the baseline, and what those so far say."""
    asked = Confirmation(task(**confirm))
    return len(asked.wanted(records, BASELINE, config)), asked.verdict(records, BASELINE, config)


def in_turn(config: str, latencies: Sequence[float], first: int = 0) -> list[TrialRecord]:
    """Runs of a winner between those of the baseline: A B B A …"""
    sides = [BASELINE, config, config, BASELINE] * len(latencies)
    values = iter(latencies)
    found: list[TrialRecord] = []
    while (at := len(found)) < len(sides) and sum(r.trial.config == config for r in found) < len(latencies):
        found.append(run(first + at, sides[at], next(values) if sides[at] == config else 2.0))
    return found


def test_who_fails_or_breaks_the_slo_when_measured_again_is_out() -> None:
    """With the reason; the baseline never is, and one that holds up is not."""
    records = [
        run(0, BASELINE, 9.0),
        run(1, WINNER, 9.0),
        run(2, WINNER, 1.0),
        run(3, OTHER, 0.0, "infeasible"),
        run(4, "333333333333", 1.0),
    ]
    found = refuted(records, BASELINE)
    assert list(found) == [WINNER, OTHER]
    assert "broke the SLO" in found[WINNER]
    assert "e2e_mean_s" in found[WINNER]
    assert "failed" in found[OTHER]
    assert "it broke" in found[OTHER]


def test_the_next_best_takes_its_place_with_the_runs_that_are_left() -> None:
    """All finalists together make no more runs than one might."""
    out = in_turn(WINNER, [9.0])
    assert of(WINNER, out)[0] == 0
    assert of(OTHER, out) == (4, None)
    assert of(OTHER, out, max_repeats=3)[0] == 4
    assert of(OTHER, out, max_repeats=2)[0] == 0
    unclear = [*out, *in_turn(OTHER, [1.93] * 2, 2), run(5, BASELINE, 2.0)]
    assert of(OTHER, unclear)[0] == 4
    assert of(OTHER, unclear, max_repeats=3)[0] == 0


def test_who_is_found_later_has_all_runs() -> None:
    """Those that were out by then have nothing to do with it."""
    search = replace(run(8, OTHER, 1.0), trial=TrialId("search", OTHER))
    out = in_turn(WINNER, [1.9] * 5 + [9.0])
    assert of(OTHER, out)[0] == 0
    assert of(OTHER, [*out, replace(search, number=20)])[0] > 0
    earlier = [replace(search, number=-1), *out]
    assert of(OTHER, earlier)[0] == 0


@pytest.mark.parametrize("baseline", ["infeasible", "failed"])
def test_a_winner_that_breaks_the_slo_is_out_whatever_the_baseline_did(baseline: str) -> None:
    """There is nothing to compare with, and all the same it is not to be run."""
    verdict = of(WINNER, [run(0, BASELINE, 0.0, baseline), run(1, WINNER, 9.0)])[1]
    assert (verdict.kind, verdict.winner_anyway) == ("UNSTABLE", False)
    assert "the winner broke the SLO" in verdict.reason


def test_who_is_out_is_not_measured_again_when_nobody_else_is_left() -> None:
    """However long ago it was."""
    records = [*in_turn(WINNER, [9.0]), *in_turn(OTHER, [9.0], 2)]
    assert of(WINNER, records)[0] == 0


@pytest.mark.parametrize(("latencies", "confidence"), [([9.0], 0.95), ([1.0, 1.0, 9.0], 1 - 0.05 * 4 / 6)])
def test_finalists_share_the_error_that_the_confidence_leaves(latencies: list[float], confidence: float) -> None:
    """One that was out before anybody looked has spent none of it."""
    out = in_turn(WINNER, latencies)
    later = [*in_turn(OTHER, [1.0, 1.0], len(out)), run(len(out) + 3, BASELINE, 2.0)]
    verdict = of(OTHER, [*out, *later])[1]
    assert verdict.kind == "WIN"
    assert verdict.confidence == pytest.approx(confidence)


def test_what_was_proven_is_not_measured_again_when_a_later_winner_is_out() -> None:
    """It stays proven."""
    proven = in_turn(WINNER, [1.0, 1.0])
    proven.append(run(3, BASELINE, 2.0))
    records = [*proven, *in_turn(OTHER, [9.0], 4)]
    assert of(WINNER, records)[0] == 0
    found = Confirmation(task()).proven(records, BASELINE)
    assert found is not None
    assert found[0] == WINNER
