"""What is known of the experiment while it is being killed, and whether it was true to it at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from typing import Any

import psutil

from raytune_autotuner import sessions
from raytune_autotuner.history import is_over
from raytune_autotuner.ledger import ledger
from raytune_autotuner.processes import OWNER_VARIABLE
from raytune_autotuner.records import TrialRecord, from_json
from tests.chaos.world import World
from tests.ome_cluster import NAMESPACE

PER_TRIAL_S = 1.0
"""A trial's clock starts when it asks for its service and ends when it sees that the pods are gone, so it should show
more than they held; this is for the rounding of both clocks and one interval between two looks."""
KINDS = ("InferenceService", "BenchmarkJob", "Pod", "Deployment", "Job", "ConfigMap")


class Watch:
    """Remembers every finished record and every rung from the first time that it saw them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._records: dict[str, tuple[float, str]] = {}
        self._rungs: dict[tuple[str, int], tuple[float, str]] = {}

    def look(self) -> None:
        root = self._world.experiment.root
        for trial in self._world.experiment.trial_names():
            text = root.read(f"trials/{trial}/record.json")
            if text is not None and is_over(from_json(TrialRecord, text)):
                self._records.setdefault(trial, (time.time(), text))
            for name in root.list(f"trials/{trial}/rungs"):
                if name.endswith(".json") and (rung := root.read(f"trials/{trial}/rungs/{name}")) is not None:
                    key = trial, int(name.removesuffix(".json"))
                    self._rungs.setdefault(key, (time.time(), rung))

    @property
    def finished(self) -> int:
        return len(self._records)

    def lost(self) -> list[str]:
        """Finished trials and rungs that are not what they were when they were first seen."""
        read = self._world.experiment.root.read
        records = [t for t, (_, text) in self._records.items() if read(f"trials/{t}/record.json") != text]
        rungs = [key for key, (_, text) in self._rungs.items() if read(f"trials/{key[0]}/rungs/{key[1]}.json") != text]
        return records + [f"{trial} rung {rung}" for trial, rung in rungs]

    def run_twice(self) -> list[str]:
        """Trials deployed, and rungs measured, after their end had been seen."""
        late = [
            f"{trial} was deployed after its end"
            for at, trial in self._world.log.created
            if trial in self._records and at > self._records[trial][0]
        ]
        for entry in self._world.journal():
            key = entry["trial"], entry["rung"]
            if entry["what"] == "begin" and key in self._rungs and entry["at"] > self._rungs[key][0]:
                late.append(f"{key} was measured after its end")
        return late

    def at_once(self) -> list[str]:
        """Trials that two workers measured at the same time, and drivers that ran at the same time."""
        return [*_overlapping_workers(self._world.journal()), *_overlapping_sessions(self._world)]

    def adopted(self) -> set[tuple[str, int]]:
        """Trials, each with the process that went on with the engine of another one."""
        return {(entry["trial"], entry["pid"]) for entry in self._world.journal() if entry["adopted"]}

    def left(self) -> list[str]:
        """What is there of the experiment's now: objects, engines, processes, temporary folders."""
        emulator = self._world.emulator
        found = [f"{kind} {o['metadata']['name']}" for kind in KINDS for o in emulator.objects(kind, NAMESPACE)]
        found += [f"engine {name}" for name in emulator.processes()]
        found += [f"worker {process.pid}" for process in self._world.workers()]
        found += [f"process {process.pid} {' '.join(process.cmdline())}" for process in _marked(self._world.order.name)]
        found += [f"folder {path}" for path in self._world.temporary.glob("r*-*")]
        found += [name for name in ("lock.json",) if self._world.experiment.root.exists(name)]
        return found

    def charged(self) -> tuple[float, float]:
        """GPU-seconds that the ledger shows, and those that pods held."""
        return ledger(self._world.experiment.records()).total, sum(self._world.log.gpu_seconds().values())

    def uncharged(self) -> list[str]:
        """Trials whose pods held GPUs for longer than the ledger says."""
        held = self._world.log.gpu_seconds()
        found = {
            record.trial.name: (ledger([record]).total, held[record.trial.name])
            for record in self._world.experiment.records()
        }
        return [f"{trial}: {c:.1f} of {h:.1f} GPU-s" for trial, (c, h) in found.items() if c < h - PER_TRIAL_S]


def _overlapping_workers(journal: list[dict[str, Any]]) -> Iterator[str]:
    """A worker that was killed ends nothing, so only an end after another one's beginning tells of two."""
    begun: dict[str, int] = {}
    for entry in journal:
        if entry["what"] == "begin":
            begun[entry["trial"]] = entry["pid"]
        elif begun[entry["trial"]] != entry["pid"]:
            yield f"{entry['trial']} was measured by {begun[entry['trial']]} and {entry['pid']} at once"


def _overlapping_sessions(world: World) -> Iterator[str]:
    spans = [
        (datetime.fromisoformat(each.started_at), each.ended_at and datetime.fromisoformat(each.ended_at), each.number)
        for each in sessions.load(world.experiment)
    ]
    for (_, end, number), (begin, _, after) in pairwise(sorted(spans)):
        if end and end > begin:
            yield f"sessions {number} and {after} ran at once"


def _marked(owner: str) -> Iterator[psutil.Process]:
    """The living processes whose environment says that they are the experiment's."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(OWNER_VARIABLE, "").startswith(f"{owner}/"):
                yield process
