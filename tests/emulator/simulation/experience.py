"""What the trials of a simulated experiment say of those to come: pruning and duplicates as ``gate`` has them."""

from __future__ import annotations

from typing import Any

from raytune_autotuner.foresight import Case, Equals, Launch, Pruner
from raytune_autotuner.proposal import Proposal
from raytune_autotuner.records import Failure, Parameters
from tests.emulator.simulation.controller import Search
from tests.emulator.simulation.table import Table


class Experience:
    """Hears how trials end; what a row of the table says stands for what a record would."""

    def __init__(self, table: Table) -> None:
        world = table.world
        raw_flags = {name: p.flag for name, p in world.task.parameters.items() if p.flag}
        self._table = table
        self._launch = Launch(world.engine, world.args, world.task.extra_args, raw_flags)
        self._cases: list[Case] = []
        self._pruner = Pruner(self._launch, ())
        self._equals = Equals(self._launch)
        self._equals.add({})

    def problem(self, parameters: Parameters) -> Failure | None:
        return self._pruner.problem(parameters)

    def same_as(self, parameters: Parameters) -> Parameters:
        found = self._equals.same_as(parameters)
        self._equals.add(found)
        return found

    def hear(self, proposal: Proposal, result: dict[str, Any]) -> None:
        """A trial's last report."""
        row, failed = self._table[proposal.parameters], result["outcome"] == "infeasible"
        failure = Failure(row.failure or "timeout", row.reason) if failed else None
        started = bool(result["rungs_done"]) or row.feasible or row.failing_s > 0 or bool(row.rungs)
        case = Case(
            proposal.trial.name, proposal.parameters, result["outcome"], failure, int(result["rungs_done"]), started
        )
        self._cases.append(case)
        self._pruner = Pruner(self._launch, self._cases)


class Experienced:
    """A search whose gate hears what its trials came to."""

    def __init__(self, search: Search, experience: Experience) -> None:
        self._search, self._experience = search, experience
        self._running: dict[str, Proposal] = {}

    def suggest(self, trial_id: str) -> Any:
        config = self._search.suggest(trial_id)
        if isinstance(config, dict):
            self._running[trial_id] = Proposal.from_config(config)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._search.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        proposal = self._running.pop(trial_id, None)
        if proposal is not None and result and result.get("outcome"):
            self._experience.hear(proposal, result)
        self._search.on_trial_complete(trial_id, result, error)
