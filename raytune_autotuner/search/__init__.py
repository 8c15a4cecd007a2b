"""The search: where configurations come from, what is known of them, which one is next, and when one is stopped."""

from raytune_autotuner.search.knowledge import Knowledge
from raytune_autotuner.search.ladder import JudgedLadder, Ladder, make_scheduler
from raytune_autotuner.search.ports import FirstCome, Gate, Limits, Nodes, Past, Queue, Wanted
from raytune_autotuner.search.proposer import Proposer
from raytune_autotuner.search.source import WORST, Judge, Lessons, Source
from raytune_autotuner.search.sources import STRATEGIES, ListSource, RandomSource, make_source

__all__ = [
    "STRATEGIES",
    "WORST",
    "FirstCome",
    "Gate",
    "Judge",
    "JudgedLadder",
    "Knowledge",
    "Ladder",
    "Lessons",
    "Limits",
    "ListSource",
    "Nodes",
    "Past",
    "Proposer",
    "Queue",
    "RandomSource",
    "Source",
    "Wanted",
    "make_scheduler",
    "make_source",
]
