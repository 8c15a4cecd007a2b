"""A trial as a Ray Tune trainable. Imports little: every trial starts a process that loads this module."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from raytune_autotuner.errors import StorageFault, Superseded
from raytune_autotuner.proposal import Ending, Proposal, label, reduction_factor, report
from raytune_autotuner.reservation import Reservation
from raytune_autotuner.setup import Setup
from raytune_autotuner.trial import Trial


class TrialActor(tune.Trainable):
    """A trial under Tune. Deploys in the first ``step``: Ray does not clean up after a failed ``setup``."""

    shared: Setup
    _trial: Trial | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return Reservation.from_dict(Proposal.from_config(config).place).request()

    def setup(self, config: dict[str, Any]) -> None:
        self._proposal = Proposal.from_config(config)

    def __repr__(self) -> str:
        return label(self.shared.folder.name, self._proposal)

    def step(self) -> dict[str, Any]:
        if self._trial is None:
            p = self._proposal
            node = Reservation.from_dict(p.place).node
            self._trial = self.shared.trial(
                p.trial, p.number, p.parameters, max(0.0, time.time() - p.proposed_at), node
            )
        try:
            with _leaving():
                record = self._trial.step()
        except StorageFault:  # its end cannot be written, so it is to be begun again
            self._trial = None
            raise
        rungs = self._trial.rungs
        return report(
            rungs[-1].score if rungs else None,
            len(rungs),
            reduction_factor(self.shared.task.optimization),
            ending=Ending(record.outcome, record.failure) if record else None,
            node=self._trial.job.node,
            cut=bool(rungs) and rungs[-1].cut is not None,
        )

    def cleanup(self) -> None:
        if self._trial is not None:
            with _leaving():
                self._trial.finish("stopped")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass


@contextmanager
def _leaving() -> Iterator[None]:
    """Where another session has the experiment, be gone at once: what this process started ends with it."""
    try:
        yield
    except Superseded as told:
        sys.stderr.write(f"{told}: this worker leaves\n")
        sys.stderr.flush()
        os._exit(0)


def actor_class(setup: Setup) -> type[TrialActor]:
    """The trainable of one experiment; named ``Trial`` because Ray's dashboard shows the class."""
    return type("Trial", (TrialActor,), {"shared": setup})
