"""Whether a configuration still answers as the baseline does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from raytune_autotuner import canary
from raytune_autotuner.canary import Exam, Unanswered, ask, compare, difference, shipped_prompts
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import Answers, Endpoint, Parameters, Purpose, TrialId, TrialRecord, config_hash
from raytune_autotuner.setup import Setup
from raytune_autotuner.storage import Storage
from raytune_autotuner.task.spec import Canary
from raytune_autotuner.trial import Trial, run
from tests.fakes.openai_server import Behaviour, FakeServer
from tests.test_earlier import setup as setup_of
from tests.test_earlier import task as task_of
from tests.test_trial import make_trial

EXAM = Exam(Canary(prompts=("one more",)), "0")


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


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "PAUSE_S", 0.0)


def examined(tmp_path: Path, url: str, purpose: Purpose = "search") -> TrialRecord:
    """Of a trial at this address; the baseline is another configuration, named ``0``."""
    plain, backend, benchmark = make_trial(tmp_path, purpose=purpose)
    is_baseline = purpose == "baseline"
    job = replace(plain.job, exam=Exam(Canary(), "0"))
    if is_baseline:
        job = replace(job, deployment=replace(job.deployment, trial=TrialId("baseline", "0")))
    trial = Trial(job, backend, benchmark, ExperimentFolder(Storage(str(tmp_path)), "exp"))
    start = backend.start
    backend.start = lambda *a: replace(start(*a), url=url)  # type: ignore[method-assign]
    return run(trial)


def test_a_trial_whose_answers_are_off_is_infeasible_before_it_is_measured(tmp_path: Path) -> None:
    """Its first rung is not paid for."""
    folder = ExperimentFolder(Storage(str(tmp_path)), "exp")
    with FakeServer().running() as fake:
        examined(tmp_path, fake.url, "baseline")
    said = folder.answers("baseline-0")
    assert said is not None
    assert len(said.rounds) == 2
    with FakeServer(Behaviour(dialect="Nay")).running() as fake:
        record = examined(tmp_path, fake.url)
    assert record.failure is not None
    assert (record.outcome, record.failure.kind, record.rungs) == ("infeasible", "quality", ())


def test_without_the_baselines_answers_a_note_says_so(tmp_path: Path) -> None:
    """Nothing is held against the trial, also when it does not answer itself."""
    with FakeServer().running() as fake:
        record = examined(tmp_path / "a", fake.url)
    assert record.outcome == "completed"
    assert record.notes == ("the quality of its answers was not compared: the baseline has given none",)
    silent = examined(tmp_path / "b", fake.url)
    assert silent.notes == ("the quality of its answers was not compared: ConnectionError",)


def test_a_prompt_that_fails_once_is_put_again(tmp_path: Path) -> None:
    """A passing fault of the endpoint is no reason to go without the exam."""
    with FakeServer(Behaviour(error_share=0.4)).running() as fake:
        assert len(put(fake)) == len(EXAM.prompts)


@pytest.mark.parametrize("answers_late", ["the trial", "the baseline"])
def test_a_configuration_that_was_not_compared_is_examined_when_it_is_confirmed(
    tmp_path: Path, answers_late: str
) -> None:
    """Whichever side had no answers by the end of its trial."""
    good, off = FakeServer(), FakeServer(Behaviour(dialect="Nay"))
    with good.running(), off.running():
        if answers_late == "the trial":
            examined(tmp_path, good.url, "baseline")
            examined(tmp_path, "http://127.0.0.1:1")
        else:
            examined(tmp_path, off.url)
            examined(tmp_path, good.url, "baseline")
        record = examined(tmp_path, off.url, "confirm")
    assert record.failure is not None
    assert record.failure.kind == "quality"


def test_answers_to_other_prompts_do_not_pass_for_a_comparison(tmp_path: Path) -> None:
    """The note says that there was none."""
    ExperimentFolder(Storage(str(tmp_path)), "exp").save_answers(TrialId("baseline", "0"), Answers(("b",), (("x",),)))
    with FakeServer().running() as fake:
        record = examined(tmp_path, fake.url)
    assert record.notes == ("the quality of its answers was not compared: the baseline has given none",)


def test_confirming_runs_sit_the_exam_after_a_search(tmp_path: Path) -> None:
    """Those of a configuration that sets a lossy parameter, and those of the baseline beside it."""
    lossy: Parameters = {"cache_type_k": "q4_0"}
    setup = setup_of(tmp_path, "a", task_of(parameters={"cache_type_k": {"type": "choice", "values": ["q4_0"]}}))
    winner, baseline = TrialId("confirm", config_hash(lossy), 1), TrialId("confirm", config_hash({}), 1)

    def exam(trial: TrialId, parameters: Parameters) -> Exam | None:
        return Setup.trial(setup, trial, 1, parameters).job.exam

    assert exam(winner, lossy) is None  # nothing was searched
    setup.folder.save_answers(TrialId("baseline", config_hash({})), answers(good()))
    assert exam(winner, lossy) == exam(baseline, {}) == Exam(Canary(), config_hash({}), ANY)
    assert exam(TrialId("confirm", config_hash({"threads": 2}), 1), {"threads": 2}) is None
