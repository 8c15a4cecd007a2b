"""The live view of an experiment in a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raytune_autotuner.board import board
from raytune_autotuner.records import TrialState
from tests.example_experiment import Example, build


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[TrialState]:
    folder = build(tmp_path_factory.mktemp("board"), Example(trials=14, confirm=1, requests=4, running=3))
    return folder.states()


def shown(*arguments: object, width: int = 140, **more: object) -> list[str]:
    console = Console(width=width, record=True, highlight=False, file=io.StringIO())
    console.print(board(*arguments, **more))  # type: ignore[arg-type]
    return console.export_text().rstrip().splitlines()


def test_the_answer_so_far_progress_and_cost_stand_above_the_trials(states: list[TrialState]) -> None:
    """With what waits below them."""
    lines = shown(states, 40, 600.0, {"search-1": "4 GPUs"})
    text = "\n".join(lines)
    best = max(
        (s.score.value for s in states if s.trial.purpose == "search" and s.outcome == "completed" and s.score),
        default=0,
    )
    assert "of at most 40 trials ended, 600 s" in lines[0]
    assert "open)" in lines[0]
    assert f"{best:.4g} tokens/s/GPU" in text
    assert "against the baseline in the search" in text
    assert "Confirming the answer" in text
    assert "GPU-hours" in text
    assert lines[-1] == "search-1 waits: 4 GPUs"


def test_the_view_fits_the_terminal_and_keeps_what_is_open(states: list[TrialState]) -> None:
    """A small terminal shows the running trials, one line each; the oldest that have ended make room."""
    lines = shown(states, 40, 1.0, {}, height=20, width=100)
    assert len(lines) <= 20
    for state in states:
        if state.outcome is None:
            assert any(line.startswith(f"{state.number} ") for line in lines)


def test_who_did_not_hold_up_is_not_the_best_so_far(tmp_path: Path) -> None:
    """From the moment at which it breaks the SLO on being measured again."""
    states = build(tmp_path, Example(trials=14, confirm=0, requests=4, out=True)).states()
    out = next(s for s in states if s.trial.purpose == "confirm")
    (before,) = (
        line for line in shown([s for s in states if s is not out], 14, 600.0, width=300) if "Best so far" in line
    )
    (after,) = (line for line in shown(states, 14, 600.0, width=300) if "Best so far" in line)
    first = next(s for s in states if s.trial.config == out.trial.config)
    assert before.endswith(f"trial #{first.number}")
    assert not after.endswith(f"trial #{first.number}")
    (alone,) = (line for line in shown([first, out], 14, 600.0, width=300) if "Best so far" in line)
    assert alone.endswith(f"trial #{first.number}")


def test_before_anything_has_ended_there_is_no_answer(states: list[TrialState]) -> None:
    """No best, no cost; and when nothing keeps the SLO that is said."""
    assert not any("so far" in line for line in shown([], 10, 0.0))
    broken = [
        replace(s, score=replace(s.score, violation=1.0, worst="ttft_p99_s 2, limit <= 1")) if s.score else s
        for s in states
    ]
    assert any("Nothing so far keeps the SLO" in line for line in shown(broken, 10, 0.0))


def test_many_that_wait_are_counted(states: list[TrialState]) -> None:
    """Five are named."""
    lines = shown(states, 40, 1.0, {f"search-{i}": "8 GPUs" for i in range(9)})
    assert lines[-1] == "4 more wait"
