"""What every backend must do; a backend's test subclasses ``BackendContract`` and says how to break its engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raytune_autotuner.backends import Backend, Deployment
from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import FailureClass, TrialInfeasible
from raytune_autotuner.loopback import get
from raytune_autotuner.records import Endpoint
from tests.waiting import until

PATIENCE_S = 120.0


class Phases(list[str]):
    """A progress callback that keeps what it is told."""

    def __call__(self, phase: str, detail: str) -> None:
        self.append(phase)


class CalledOff(Exception):
    """The trial is to end while its engine starts."""


def start(backend: Backend, deployment: Deployment, seconds: float = PATIENCE_S) -> Endpoint:
    return backend.start(deployment, Deadline.after(seconds), Phases())


class BackendContract:
    """Subclass it, name the class ``Test…`` and override the three methods below."""

    def new_backend(self) -> Backend:
        raise NotImplementedError

    def deployment(self, folder: Path, fault: str = "") -> Deployment:
        """An engine that is ready at once, or has a fault: out_of_memory, bad_flag, unsupported, crash, never_ready."""
        raise NotImplementedError

    def break_engine(self, backend: Backend) -> None:
        """Let the running engine end by itself."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = self.new_backend()
        yield backend
        backend.stop(Deadline.after(PATIENCE_S))

    def test_started_engine_answers(self, backend: Backend, tmp_path: Path) -> None:
        """The endpoint serves under the given name when start returns."""
        deployment = self.deployment(tmp_path)
        endpoint = start(backend, deployment)
        answer = get(endpoint.url + deployment.engine.health, 5)
        assert answer is not None
        assert answer.status_code == 200
        assert endpoint.model_name == deployment.served_name

    def test_argv_is_told_in_full(self, backend: Backend, tmp_path: Path) -> None:
        """No placeholder is left in the argv that the engine was started with."""
        endpoint = start(backend, self.deployment(tmp_path))
        assert endpoint.argv
        assert not any(word in ("{host}", "{port}", "{python}") for word in endpoint.argv)

    def test_progress_is_told(self, backend: Backend, tmp_path: Path) -> None:
        """Start announces what it waits for."""
        phases = Phases()
        backend.start(self.deployment(tmp_path), Deadline.after(PATIENCE_S), phases)
        assert "load" in phases

    def test_a_start_can_be_called_off(self, backend: Backend, tmp_path: Path) -> None:
        """However long it waits without any news."""
        waiting: list[str] = []

        def progress(phase: str, detail: str) -> None:
            waiting.append(detail)
            if waiting[-3:] == [detail] * 3:
                raise CalledOff

        with pytest.raises(CalledOff):
            backend.start(self.deployment(tmp_path, "never_ready"), Deadline.after(PATIENCE_S), progress)

    @pytest.mark.parametrize("fault", ["out_of_memory", "bad_flag", "unsupported", "crash"])
    def test_engine_that_ends_is_infeasible(self, backend: Backend, tmp_path: Path, fault: FailureClass) -> None:
        """An engine that gives up while it starts tells the class of its failure, with the end of its log."""
        with pytest.raises(TrialInfeasible) as failure:
            start(backend, self.deployment(tmp_path, fault))
        assert failure.value.kind == fault
        assert failure.value.reason
        assert failure.value.log_tail

    def test_engine_that_never_gets_ready_is_infeasible(self, backend: Backend, tmp_path: Path) -> None:
        """The deadline ends the wait."""
        with pytest.raises(TrialInfeasible) as failure:
            start(backend, self.deployment(tmp_path, "never_ready"), seconds=1.5)
        assert failure.value.kind == "not_ready"

    def test_check_is_silent_while_the_engine_runs(self, backend: Backend, tmp_path: Path) -> None:
        """Nothing to say about an engine that runs, or before there is one."""
        backend.check()
        start(backend, self.deployment(tmp_path))
        backend.check()

    def test_check_tells_the_end_of_the_engine(self, backend: Backend, tmp_path: Path) -> None:
        """An engine that ends later is infeasible too."""
        start(backend, self.deployment(tmp_path))
        self.break_engine(backend)

        def told() -> bool:
            try:
                backend.check()
            except TrialInfeasible as failure:
                return failure.kind == "crash"
            return False

        until(told)

    def test_stop_ends_the_engine(self, backend: Backend, tmp_path: Path) -> None:
        """After stop nobody answers, and a second stop is no error."""
        endpoint = start(backend, self.deployment(tmp_path))
        backend.stop(Deadline.after(PATIENCE_S))
        assert get(endpoint.url, 1) is None
        backend.stop(Deadline.after(PATIENCE_S))

    def test_stop_without_start(self, backend: Backend) -> None:
        """What never ran is stopped already."""
        backend.stop(Deadline.after(PATIENCE_S))

    def test_stop_after_a_failed_start(self, backend: Backend, tmp_path: Path) -> None:
        """What failed to start can be stopped, and started anew."""
        with pytest.raises(TrialInfeasible):
            start(backend, self.deployment(tmp_path, "crash"))
        backend.stop(Deadline.after(PATIENCE_S))
        start(backend, self.deployment(tmp_path))
        backend.check()
