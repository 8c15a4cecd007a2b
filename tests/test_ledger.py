"""What the tuning cost, by phase and purpose, and what it did not cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raytune_autotuner.errors import FailureClass
from raytune_autotuner.ledger import Terms, ledger, was_refused
from raytune_autotuner.records import Failure, Reused, TrialRecord
from tests.test_results import OOM, record

BEGUN = "2026-01-01T00:00:00+00:00"


def failed(number: int, kind: FailureClass, load_s: float, gpus: int = 1) -> TrialRecord:
    made = record(number, {"a": number}, 1.0, outcome="infeasible", rungs=0, gpus=gpus, failure=Failure(kind, "why"))
    return replace(made, phases={"load": load_s} if load_s else {})


def test_the_ledger_charges_gpus_not_the_queue_and_estimates_what_early_stopping_saved() -> None:
    """Two GPUs for 23 s are 46 GPU-seconds; the stopped trial did not run the 20 s rung on its four."""
    records = [
        record(0, {}, 1.0, purpose="baseline", gpus=2),
        record(1, {"a": 1}, 1.0, outcome="stopped", rungs=1, gpus=4),
        record(2, {"a": 2}, 1.0, outcome="infeasible", rungs=0, gpus=1, failure=OOM),
    ]
    book = ledger(records)
    assert book.unit == "GPU-seconds"
    assert book.by_phase == {"load": 14.0, "benchmark": 80.0, "teardown": 7.0}
    assert book.by_purpose == {"baseline": 46.0, "search": 55.0}
    assert book.waited == {"queue": 15.0}
    assert book.total == 101.0
    assert book.saved_by_early_stop == book.saved.early_stop == 80.0
    assert book.wasted == 3.0


def test_an_interrupted_trial_is_not_a_saving() -> None:
    """Somebody pressed Ctrl-C; nothing was saved by that. Nor when the budget ended it."""
    for kind in ("interrupted", "budget"):
        cut = record(1, {"a": 1}, 1.0, outcome="stopped", rungs=1, failure=Failure(kind, "x"))  # type: ignore[arg-type]
        book = ledger([record(0, {}, 1.0, purpose="baseline"), cut])
        assert book.saved.early_stop == 0
        assert book.unit == "machine-seconds"


def test_a_wait_for_a_node_is_told_and_not_charged() -> None:
    """A pod without a node holds no GPU."""
    waited = replace(record(0, {}, 1.0, gpus=1), phases={"schedule": 30.0, "pull": 5.0, "load": 2.0})
    book = ledger([waited])
    assert (book.by_phase, book.waited) == ({"load": 2.0, "pull": 5.0}, {"schedule": 30.0})


@pytest.mark.parametrize(
    ("refused", "ran", "saved"),
    [
        (["out_of_memory"], [("out_of_memory", 10.0), ("out_of_memory", 30.0), ("crash", 500.0)], 20.0),
        (["pruned", "pruned"], [("out_of_memory", 10.0), ("crash", 50.0)], 60.0),
        (["no_fit", "constraint"], [("crash", 50.0)], 0.0),
        (["pruned"], [], 0.0),
    ],
)
def test_a_refused_trial_saves_what_its_like_cost(
    refused: list[FailureClass], ran: list[tuple[FailureClass, float]], saved: float
) -> None:
    """The median of its class, of all failures where its class never ran; nothing where nothing ran or could have."""
    records = [failed(n, kind, load_s) for n, (kind, load_s) in enumerate(ran)]
    records += [failed(50 + n, kind, 0.0) for n, kind in enumerate(refused)]
    assert [was_refused(r) for r in records] == [False] * len(ran) + [True] * len(refused)
    book = ledger(records)
    assert book.saved.refused == saved
    assert book.total == sum(load_s for _, load_s in ran)


def test_a_failure_found_at_once_saves_the_rest_of_the_wait() -> None:
    """Only before anything was measured, only by the configuration's own fault, and never less than nothing."""
    timely = failed(1, "crash", 40.0, gpus=2)
    late = failed(2, "not_ready", 700.0)
    while_measured = replace(failed(3, "crash", 10.0), phases={"load": 5.0, "benchmark": 5.0})
    errors = failed(4, "request_errors", 10.0)
    assert ledger([timely, late, while_measured, errors], Terms(patience_s=600.0)).saved.fast_failure == 2 * 560.0
    assert ledger([timely]).saved.fast_failure == 0


def test_a_configuration_that_came_again_saves_what_it_cost_once() -> None:
    """However often it came; a confirming run of it is no part of that."""
    again = record(1, {"a": 1}, 1.0)
    records = [again, record(2, {"a": 2}, 1.0), record(3, {"a": 1}, 1.0, purpose="confirm", rungs=1)]
    book = ledger(records, Terms(repeated=frozenset({again.trial.config})))
    assert book.saved.duplicates == 23.0


def test_what_was_taken_over_costs_nothing_and_saves_what_it_cost() -> None:
    """It is no failure that was refused either."""
    taken = replace(
        record(1, {"a": 1}, 1.0, gpus=4),
        phases={},
        reused_from=Reused("exp-0", "search-1", BEGUN, 92.0),
    )
    oom = replace(failed(2, "out_of_memory", 0.0), reused_from=Reused("exp-0", "search-2", BEGUN, 8.0))
    book = ledger([taken, oom])
    assert (book.total, book.saved.reused, book.saved.refused, book.saved.total) == (0, 100.0, 0, 100.0)


def test_a_price_makes_money_of_gpu_hours() -> None:
    """Of GPUs: a machine without any has no price."""
    terms = Terms(price_per_gpu_hour=3.6)
    assert ledger([record(0, {}, 1.0, gpus=2)], terms).cost == pytest.approx(0.05)
    assert ledger([record(0, {}, 1.0)], terms).cost is None
