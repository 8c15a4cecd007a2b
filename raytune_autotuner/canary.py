"""Whether a configuration still answers as the baseline does, where it sets a parameter that may change answers.

The same prompts are put to both with temperature 0. Two answers differ when more than ``distance`` of their words do:
the edit distance between them over the length of the longer one. The divergence is the share of prompts whose answer
differs from both of the baseline's (it is asked twice); the share for which the baseline differs from itself is the
floor, which is allowed on top of the task's ``max_divergence``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import requests
import yaml

from raytune_autotuner import resources
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import TrialInfeasible
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import Answers, Endpoint, Failure, TrialId
from raytune_autotuner.task.spec import Canary

ANSWER_S = 120.0
"""For one answer."""
TRIES = 3
"""So often a prompt is put that is not answered."""
PAUSE_S = 1.0
SHOWN = 80
NOT_COMPARED = "the quality of its answers was not compared"
"""So begins the note of a trial that should have been compared."""


class Unanswered(Exception):
    """The endpoint does not answer a prompt; says why."""


@dataclass(frozen=True)
class Exam:
    """What is asked of an endpoint, and how its answers are compared."""

    settings: Canary
    reference: str
    """The configuration that others are compared with, by its hash."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        return (*shipped_prompts(), *self.settings.prompts)


class Sitting:
    """One trial's part in the exam. A configuration is asked in the first of its trials that gets answers, and
    compared as soon as the baseline has answered, too."""

    def __init__(self, exam: Exam | None, trial: TrialId, folder: ExperimentFolder) -> None:
        """``exam`` is ``None`` when nothing that the trial sets may change its answers."""
        self._exam, self._trial, self._folder = exam, trial, folder
        self._compared = exam is None or trial.config == exam.reference
        self._why_not = "the baseline has given none"

    @property
    def is_due(self) -> bool:
        """Whether the prompts are still to be put."""
        return self._exam is not None and answers_of(self._folder, self._trial.config, self._exam.prompts) is None

    def ask(self, endpoint: Endpoint, deadline: Deadline, check: Callable[[], object]) -> None:
        """Put the prompts; twice to the configuration that others are compared with."""
        exam = self._exam
        assert exam is not None
        times = 2 if self._trial.config == exam.reference else 1
        try:
            rounds = tuple(ask(exam, endpoint, deadline, check) for _ in range(times))
        except Unanswered as fault:
            self._why_not = str(fault)
            return
        self._folder.save_answers(self._trial, Answers(exam.prompts, rounds))

    def compare(self) -> None:
        """Compare the answers with the baseline's, once both are there.

        Raises:
            TrialInfeasible: ``quality``.
        """
        if self._exam is None or self._compared:
            return
        own = answers_of(self._folder, self._trial.config, self._exam.prompts)
        reference = answers_of(self._folder, self._exam.reference, self._exam.prompts)
        if own is None or reference is None:
            return
        self._compared = True
        if (failure := compare(self._exam, own.rounds[0], reference)) is not None:
            raise TrialInfeasible(failure.kind, failure.reason, hint=failure.hint)

    @property
    def note(self) -> str | None:
        """Why nothing was compared that should have been."""
        return None if self._compared else f"{NOT_COMPARED}: {self._why_not}"


def answers_of(folder: ExperimentFolder, config: str, prompts: tuple[str, ...]) -> Answers | None:
    """What a configuration has answered to these very prompts, in whichever of its trials."""
    names = (name for name in folder.trial_names() if name.split("-")[1:2] == [config])
    said = (folder.answers(name) for name in names)
    return next((each for each in said if each is not None and each.prompts == prompts), None)


def shipped_prompts() -> tuple[str, ...]:
    text = (resources.templates() / "canary" / "prompts.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text))


def ask(exam: Exam, endpoint: Endpoint, deadline: Deadline, check: Callable[[], object]) -> tuple[str, ...]:
    """The answers to all prompts, one after the other. ``check`` is called before each.

    Raises:
        Unanswered: one of them was not answered, however often it was put.
    """
    headers = {"Authorization": f"Bearer {exam.api_key}"} if exam.api_key else {}
    found = []
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(headers)
        for prompt in exam.prompts:
            check()
            found.append(_patiently(session, endpoint, _body(exam, endpoint, prompt), deadline))
    return tuple(found)


def _patiently(session: requests.Session, endpoint: Endpoint, body: dict[str, object], deadline: Deadline) -> str:
    for _ in range(TRIES - 1):
        with suppress(Unanswered):
            return _answer(session, endpoint, body, deadline)
        time.sleep(min(PAUSE_S, deadline.remaining()))
    return _answer(session, endpoint, body, deadline)


def _body(exam: Exam, endpoint: Endpoint, prompt: str) -> dict[str, object]:
    return {
        "model": endpoint.model_name,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "seed": 0,
        "max_tokens": exam.settings.max_tokens,
        "stream": False,
    }


def _answer(session: requests.Session, endpoint: Endpoint, body: dict[str, object], deadline: Deadline) -> str:
    timeout_s = min(ANSWER_S, max(0.1, deadline.remaining()))
    try:
        answer = session.post(f"{endpoint.url.rstrip('/')}/v1/chat/completions", json=body, timeout=timeout_s)
        answer.raise_for_status()
        message = answer.json()["choices"][0]["message"]
        return str(message.get("content") or message.get("reasoning_content") or "")
    except (requests.RequestException, LookupError, TypeError, ValueError, AttributeError) as error:
        said = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
        raise Unanswered(said) from error


def difference(one: str, other: str) -> float:
    """The share of words in which two answers differ: 0 when they are the same, 1 when they have none in common."""
    a, b = one.split(), other.split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, theirs in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != theirs))
    return row[-1] / max(len(a), len(b), 1)


def compare(exam: Exam, answers: Sequence[str], reference: Answers) -> Failure | None:
    """Why the answers are too far from the baseline's; ``None`` when they are not, or it was asked something else."""
    prompts, limit = exam.prompts, exam.settings.distance
    if reference.prompts != prompts or not reference.rounds:
        return None
    far = [min(difference(answer, of[n]) for of in reference.rounds) for n, answer in enumerate(answers)]
    first, last = reference.rounds[0], reference.rounds[-1]
    floor = sum(difference(a, b) > limit for a, b in zip(first, last, strict=True)) / len(prompts)
    divergence = sum(each > limit for each in far) / len(prompts)
    if divergence <= exam.settings.max_divergence + floor:
        return None
    worst = max(range(len(prompts)), key=lambda n: far[n])
    allowed = f"{exam.settings.max_divergence:.0%}"
    return Failure(
        "quality",
        f"{divergence:.0%} of its answers differ from the baseline's, allowed are {allowed} and "
        f"the {floor:.0%} in which the baseline differs from itself; most of all {prompts[worst]!r}: "
        f"{answers[worst][:SHOWN]!r} instead of {first[worst][:SHOWN]!r}",
        hint="leave out the lossy parameter, or raise optimization.canary.max_divergence if that is good enough",
    )
