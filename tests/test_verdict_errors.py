"""How often the verdict errs: 200 confirmations in each of many made-up worlds (``scripts/bench_verdict`` has more)."""

from __future__ import annotations

import numpy as np
import pytest

from raytune_autotuner.verdict import Ask, drift
from tests.fakes.confirming import (
    World,
    better,
    confirm_finalists,
    detailed_run,
    finalists_that_err,
    same,
    simple_run,
    tally,
)

REPETITIONS = 200


@pytest.mark.parametrize("name", same())
def test_identical_configurations_seldom_win(name: str) -> None:
    """A/A: WIN in at most 5 % of the repetitions, whatever the noise, the drift and the nodes."""
    assert tally(same()[name], REPETITIONS, seed=11).share("WIN") <= 0.05


@pytest.mark.parametrize("name", better())
def test_a_gain_of_five_per_cent_wins(name: str) -> None:
    """A/B: WIN in at least 90 % at 1 % noise, and the interval holds the truth as often as it says."""
    found = tally(better()[name], REPETITIONS, seed=12)
    assert found.share("WIN") >= 0.9
    assert found.covered / REPETITIONS >= 0.95


@pytest.mark.parametrize("broken_share", [0.05, 0.2])
def test_identical_finalists_seldom_win(broken_share: float) -> None:
    """A/A/A/A: also when the next best takes the place of whoever breaks the SLO. (More broken runs, fewer of any.)"""
    world = World(0.03, broken_share=broken_share)
    assert finalists_that_err(world, 4, REPETITIONS, seed=17) <= 0.05


def test_a_better_one_wins_in_the_place_of_one_that_broke_the_slo() -> None:
    """With the runs that are left."""
    rng = np.random.default_rng(18)
    told = [confirm_finalists(World(0.01, 0.05, broken_share=0.1), 4, rng) for _ in range(40)]
    assert sum(len(verdicts) > 1 and verdicts[0].kind == "WIN" for verdicts in told) >= 4


def test_nodes_that_are_not_swapped_never_win() -> None:
    """Each configuration on a node of its own, one of them slow."""
    assert tally(same()["1% slow node, not swapped"], 20, seed=13).share("UNSTABLE") == 1.0


def test_identical_configurations_seldom_win_by_their_requests() -> None:
    """The same with runs that are made of correlated requests."""
    world = World(0.01, slow_node=0.1, drifting="wandering", drift=0.05)
    assert tally(world, 12, seed=14, make=detailed_run).share("WIN") <= 0.05


def test_a_gain_wins_by_its_requests() -> None:
    """The noise of the requests does not hide 5 %."""
    assert tally(World(0.01, 0.05), 6, seed=15, make=detailed_run).share("WIN") >= 0.9


def test_noise_seldom_passes_for_drift() -> None:
    """At 95 % confidence, in 200 searches with eight runs of the baseline on two nodes."""
    rng = np.random.default_rng(16)
    alarms = 0
    for _ in range(REPETITIONS):
        values = 0.03 * rng.standard_normal(8)
        runs = [
            simple_run(World(0.03), Ask("baseline", "ab"[i % 2]), float(value), i, rng)
            for i, value in enumerate(values)
        ]
        alarms += drift(runs).significant
    assert alarms <= 0.1 * REPETITIONS
