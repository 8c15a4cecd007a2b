"""What the Ray that this process is connected to says of its nodes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private import state  # what is left on each node is told nowhere in the public API
from ray.exceptions import RayError

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import EnvironmentFault

logger = logging.getLogger(__name__)

NODE_VARIABLE = "RAYTUNE_AUTOTUNER_NODE"
"""In the environment of a Ray node: the Kubernetes node that it is on (by the downward API)."""
NODE_LABEL = "ray.io/node-id"
"""Ray gives it to each of its nodes."""
NAMES_S = 120.0
"""For a worker process to start on each node and say where it is; several seconds on a busy one."""
AGAIN_S = 300.0
"""After so long a node that did not answer is asked again."""
WAITING = {
    "INFEASIBLE": "no node could ever hold it",
    "NO_RESOURCES": "no node has that free now",
}
"""What people are told of Ray's scheduling states."""


@dataclass(frozen=True)
class RayNode:
    """A node of Ray that is alive."""

    id: str
    host: str
    total: Mapping[str, float]
    left: Mapping[str, float] = field(default_factory=dict)
    """What no task, actor or placement group of any job holds."""
    kubernetes: str | None = None


@dataclass(frozen=True)
class Unplaced:
    """A reservation that waits for Ray, and why."""

    bundles: tuple[Mapping[str, float], ...]
    why: str

    def __str__(self) -> str:
        bundles = (
            " and ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items())) for bundle in self.bundles
        )
        return f"Ray has not placed {', '.join(bundles)} yet: {self.why}"


@dataclass
class _Question:
    answer: ray.ObjectRef[str | None]
    deadline: Deadline


class RayNodes:
    """The nodes, each asked which Kubernetes node it is on if it has the resource ``named``. For one thread."""

    def __init__(self, named: str, patience_s: float = NAMES_S) -> None:
        self._named = named
        self._patience_s = patience_s
        self._names: dict[str, str | None] = {}
        self._asked: dict[str, _Question] = {}
        self._silent: dict[str, Deadline] = {}
        """Nodes that did not answer, and go without a name until they are asked again."""

    def read(self, *, wait: bool = False) -> list[RayNode]:
        """The nodes as they are now, without those that have not said yet where they are, unless told to ``wait``.

        Raises:
            EnvironmentFault: Ray does not answer.
        """
        with _answering():
            alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
            self._ask(alive)
            self._listen(wait)
            left = state.available_resources_per_node()  # type: ignore[no-untyped-call]
        return [
            RayNode(name, told["NodeManagerHostname"], told["Resources"], left.get(name, {}), self._names.get(name))
            for name, told in sorted(alive.items())
            if name not in self._asked or name in self._silent
        ]

    def _ask(self, alive: Mapping[str, Mapping[str, Any]]) -> None:
        self._asked = {node: question for node, question in self._asked.items() if node in alive}
        self._silent = {node: again for node, again in self._silent.items() if node in alive}
        later = {node for node, again in self._silent.items() if not again.expired}
        for node, told in alive.items():
            if self._named in told["Resources"] and not any(node in them for them in (self._asked, self._names, later)):
                answer = _where.options(label_selector={NODE_LABEL: node}).remote()
                self._asked[node] = _Question(answer, Deadline.after(self._patience_s))

    def _listen(self, wait: bool) -> None:
        answers = [question.answer for question in self._asked.values()]
        if not answers:
            return
        new = [question for node, question in self._asked.items() if node not in self._silent]
        longest = max((question.deadline.remaining() for question in new), default=0.0)
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=longest if wait else 0.0)
        for node, question in list(self._asked.items()):
            if question.answer in ready:
                self._hear(node, question.answer)
            elif question.deadline.expired:
                ray.cancel(question.answer)  # by force it could end the worker that the next question went to
                self._give_up(node, f"in {self._patience_s:.0f} s")
            else:
                continue
            del self._asked[node]

    def _hear(self, node: str, answer: ray.ObjectRef[str | None]) -> None:
        """A node whose environment does not say it stays without a name: nothing is pinned to it in Kubernetes."""
        try:
            self._names[node] = ray.get(answer) or None
        except RayError as error:
            self._give_up(node, f"({type(error).__name__})")
        else:
            self._silent.pop(node, None)

    def _give_up(self, node: str, why: str) -> None:
        """For now; a busy node answers later."""
        if node not in self._silent:
            logger.warning(
                "Ray node %s has not said %s which Kubernetes node it is on; services are not pinned to it "
                "until it does",
                *(node[:6], why),
            )
        self._silent[node] = Deadline.after(AGAIN_S)


def unplaced() -> list[Unplaced]:
    """The reservations of all jobs that Ray has not placed yet.

    Raises:
        EnvironmentFault: Ray does not answer.
    """
    with _answering():
        groups = ray.util.placement_group_table().values()
    return [_unplaced(group) for group in groups if group["state"] in ("PENDING", "RESCHEDULING")]


def _unplaced(group: Mapping[str, Any]) -> Unplaced:
    state = group["stats"]["scheduling_state"]
    return Unplaced(tuple(map(dict, group["bundles"].values())), WAITING.get(state, state.lower()))


@ray.remote(num_cpus=0, max_retries=0)
def _where() -> str | None:
    return os.environ.get(NODE_VARIABLE)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RayError, ConnectionError, TimeoutError) as error:
        raise EnvironmentFault(f"Ray does not answer: {error}; is its head node up?") from error
