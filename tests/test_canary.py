"""Whether a configuration still answers as the baseline does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_autotuner.canary import Exam, Unanswered, ask, compare, difference, shipped_prompts
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import Answers, Endpoint
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Canary
from raytune_autotuner.trial import Trial, run
from tests.fakes.openai_server import Behaviour, FakeServer
from tests.test_trial import make_trial

EXAM = Exam(Canary(prompts=("one more",)), "baseline-0")


def put(fake: FakeServer, exam: Exam = EXAM, check: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    return ask(exam, Endpoint(fake.url, "m"), Deadline.after(60), check)


def answers(*rounds: list[str]) -> Answers:
    return Answers(EXAM.prompts, tuple(map(tuple, rounds)))


def good() -> list[str]:
    return [f"the answer is {n}" for n in range(len(EXAM.prompts))]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [("a b c", "a b c", 0.0), ("a b c d", "a x c d", 0.25), ("", "", 0.0), ("", "a", 1.0), ("a b", "c d e", 1.0)],
)
def test_the_difference_is_the_share_of_words(one: str, other: str, share: float) -> None:
    """By edit distance, whichever way round."""
    assert difference(one, other) == difference(other, one) == share


def test_prompts_are_asked_greedily_with_the_key() -> None:
    """Those that are shipped, then the task's own; temperature 0, bounded, and looked after in between."""
    checks: list[int] = []
    exam = replace(EXAM, api_key="k")
    with FakeServer(Behaviour(api_key="k")).running() as fake:
        said = put(fake, exam, lambda: checks.append(1))
    assert said == tuple(f"you asked: {prompt}" for prompt in (*shipped_prompts(), "one more"))
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in fake.bodies} == {(0, 32, "m")}
    assert len(checks) == len(said) >= 25
    assert "k'" not in repr(exam)


def test_an_endpoint_that_does_not_answer_is_told() -> None:
    """With the server's status, or what went wrong instead."""
    with FakeServer(Behaviour(error_share=1.0)).running() as fake, pytest.raises(Unanswered, match="500"):
        put(fake)
    with pytest.raises(Unanswered, match="ConnectionError"):
        put(fake)


def test_few_differing_answers_are_allowed_and_more_are_not() -> None:
    """The share is the task's; the reason names the worst prompt with both answers."""
    reference = answers(good(), good())
    few = [*["x y z w"] * 6, *good()[6:]]
    assert compare(EXAM, few, reference) is None
    failure = compare(EXAM, [*["x y z w"] * 7, *good()[7:]], reference)
    assert failure is not None
    assert failure.kind == "quality"
    assert "28% of its answers" in failure.reason
    assert (
        "'What is the capital of France? Answer with one word.': 'x y z w' instead of 'the answer is 0'"
        in failure.reason
    )


def test_a_baseline_that_differs_from_itself_sets_the_floor() -> None:
    """What it is uncertain about is nobody else's fault, and either of its answers is right."""
    unsure = [*["some thing else here"] * 5, *good()[5:]]
    other = [*["x y z w"] * 7, *good()[7:]]
    assert compare(EXAM, other, answers(good(), unsure)) is None
    assert compare(EXAM, unsure, answers(good(), unsure)) is None


def test_answers_to_other_prompts_are_not_compared() -> None:
    """The task was changed since the baseline answered."""
    assert compare(EXAM, good(), Answers(("another",), (("yes",),))) is None


def examined(tmp_path: Path, url: str, purpose: str = "search") -> object:
    plain, backend, benchmark = make_trial(tmp_path, purpose=purpose)  # type: ignore[arg-type]
    reference = "baseline-0" if purpose == "search" else plain.job.trial.name
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    trial = Trial(replace(plain.job, exam=Exam(Canary(), reference)), backend, benchmark, folder)
    start = backend.start
    backend.start = lambda *a: replace(start(*a), url=url)  # type: ignore[method-assign]
    return run(trial)


def test_a_trial_whose_answers_are_off_is_infeasible_before_it_is_measured(tmp_path: Path) -> None:
    """Its first rung is not paid for."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    with FakeServer().running() as fake:
        baseline = examined(tmp_path, fake.url, "baseline")
        said = folder.answers(baseline.trial.name)  # type: ignore[attr-defined]
        assert said is not None
        assert len(said.rounds) == 2
        (tmp_path / "exp/trials/baseline-0").mkdir()
        source = tmp_path / f"exp/trials/{baseline.trial.name}/canary.json"  # type: ignore[attr-defined]
        (tmp_path / "exp/trials/baseline-0/canary.json").write_text(source.read_text())
    with FakeServer(Behaviour(dialect="Nay")).running() as fake:
        record = examined(tmp_path, fake.url)
    assert (record.outcome, record.failure.kind, record.rungs) == ("infeasible", "quality", ())  # type: ignore[attr-defined]


def test_without_the_baselines_answers_a_note_says_so(tmp_path: Path) -> None:
    """Nothing is held against the trial, also when it does not answer itself."""
    with FakeServer().running() as fake:
        record = examined(tmp_path / "a", fake.url)
    assert record.outcome == "completed"  # type: ignore[attr-defined]
    assert record.notes == ("the quality of its answers was not compared: the baseline has given none",)  # type: ignore[attr-defined]
    silent = examined(tmp_path / "b", fake.url)
    assert silent.notes == ("the quality of its answers was not compared: ConnectionError",)  # type: ignore[attr-defined]
