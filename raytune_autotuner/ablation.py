"""Run an ablation of an experiment's winner, and export what is left (see ``minimal`` for how it is decided).

It is an experiment of its own beside the one that it belongs to, ``NAME-minimal``, without a search; begun again, it
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from raytune_autotuner import experiment, overview
from raytune_autotuner.engines.engine import Engine
from raytune_autotuner.errors import SpecError
from raytune_autotuner.experiment import Options
from raytune_autotuner.export import PREFIX, Wish, export, provenance, written
from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.foresight import Launch
from raytune_autotuner.importance import Importances, importance
from raytune_autotuner.minimal import Ablation, Plan, order
from raytune_autotuner.planning.space import Space
from raytune_autotuner.records import Parameters, TrialRecord, config_hash
from raytune_autotuner.results import Results, load_results
from raytune_autotuner.results_file import to_text
from raytune_autotuner.setup import Setup, prepare
from raytune_autotuner.task.spec import Task

SUFFIX = "-minimal"
FILE = "minimal.json"


@dataclass(frozen=True)
class Prepared:
    """An ablation that can be run."""

    of: ExperimentFolder
    results: Results
    plan: Plan
    setup: Setup


def begin(of: ExperimentFolder, task: Task, engine: Engine, margin: float) -> Prepared:
    """Look at everything that an ablation needs; starts nothing. The task is that of the experiment.

    Raises:
        SpecError: there is nothing to leave out.
        EnvironmentFault: something the task needs is not here.
    """
    results = load_results(of, task)
    optimization = task.optimization.model_copy(update={"scheduler": "none"})
    fitted = task.model_copy(update={"optimization": optimization})
    setup = prepare(fitted, engine, of.storage, of.name + SUFFIX)
    winner = results.recommended.parameters if results.recommended else {}
    idle = without_effect(setup.launch, winner)
    if idle.issuperset(winner):
        raise SpecError.single("--minimal", "what is recommended changes nothing of the baseline", of.name)
    space = Space.of(task, setup.engine)
    known = overview.importances(of) or importance(results.records)
    needs = {name: tuple(rule.names.values()) for name, rule in space.whens.items()}
    plan = Plan(
        winner=winner,
        order=order(winner, shares(known), needs, idle),
        optimization=task.optimization,
        margin=margin,
        allowed=lambda parameters: problem(space, parameters),
        idle=idle,
    )
    return Prepared(of, results, plan, setup)


def without_effect(launch: Launch, winner: Parameters) -> frozenset[str]:
    """The parameters without which the engine is started with the same."""
    rests = {name: {other: value for other, value in winner.items() if other != name} for name in winner}
    return frozenset(name for name, rest in rests.items() if launch.values(rest) == launch.values(winner))


def shares(found: Importances) -> Mapping[str, float]:
    return {each.parameter: each.importance for each in found.parameters}


def problem(space: Space, parameters: Parameters) -> str | None:
    """Why a configuration may not run: a constraint that it breaks, or a parameter without what it depends on."""
    for name, rule in space.whens.items():
        if name in parameters and (missing := [of for of in rule.names.values() if of not in parameters]):
            return f"{name} depends on {', '.join(missing)}"
    return space.problem(parameters)


def run(prepared: Prepared) -> Ablation:
    """Measure until every flag has its answer, or somebody or the budget ends it; nothing is left running."""
    folder = prepared.setup.folder
    about = {"kind": "minimal", "of": prepared.of.name}
    options = Options(aside=True, resume=folder.root.exists("task.json"), about=about)
    results = experiment.run(prepared.setup, options, prepared.plan)
    stand = prepared.plan.stand(folder.records())
    if results.budget is not None and not stand.is_over and not results.interrupted:
        stand = replace(stand, unpaid=results.budget.confirming)
    folder.root.write(FILE, to_text({**asdict(stand), "is_over": stand.is_over, "margin": prepared.plan.margin}))
    return stand


def export_minimal(prepared: Prepared, stand: Ablation, wish: Wish) -> str:
    """What is left, as something to apply; raises what ``export`` does."""
    found = _measured(prepared, stand.parameters)
    if found is None:
        return export(prepared.of, wish)
    about = provenance(prepared.results, found)
    left_out = [name for name in prepared.plan.winner if name not in found.parameters]
    about |= {
        f"{PREFIX}experiment": prepared.of.name,
        f"{PREFIX}ablation": prepared.setup.folder.name,
        f"{PREFIX}left-out": ", ".join(left_out) or "nothing",
        f"{PREFIX}verdict": _verdict(prepared, left_out, stand),
    }
    return written(prepared.setup.folder, prepared.setup.task, found, about, wish)


def _measured(prepared: Prepared, parameters: Parameters) -> TrialRecord | None:
    """A run of this configuration, rather than of one whose launch is the same."""
    told, config = prepared.plan.told(parameters), config_hash(parameters)
    completed = (r for r in prepared.setup.folder.records() if r.outcome == "completed")
    runs = [r for r in completed if prepared.plan.told(r.parameters) == told]
    return min(runs, key=lambda run: run.trial.config != config, default=None)


def _verdict(prepared: Prepared, left_out: list[str], stand: Ablation) -> str:
    winner = prepared.results.recommended
    assert winner is not None
    said = provenance(prepared.results, winner)[f"{PREFIX}verdict"]
    losses = [-step.low for step in stand.steps if step.answer == "dropped" and step.low is not None]
    if not losses:
        return said
    return f"{said} with {', '.join(left_out)} as well, which is worth no more than {losses[-1]:.1%}"
