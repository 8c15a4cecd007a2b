"""What need not be run: what must fail, what is known already, and what fails whatever is tried.

Everything here is a pure function of the trials that have ended (``Case``) and of what the engine files declare, so
real experiments and simulated ones use it alike.
"""

from raytune_autotuner.foresight.breaker import search_end
from raytune_autotuner.foresight.cases import Case
from raytune_autotuner.foresight.duplicates import Equals
from raytune_autotuner.foresight.ended import Ended
from raytune_autotuner.foresight.feasibility import Feasibility
from raytune_autotuner.foresight.launch import Launch, Usual
from raytune_autotuner.foresight.pruning import Pruner
from raytune_autotuner.foresight.roofline import Roofline, obstacle

__all__ = ["Case", "Ended", "Equals", "Feasibility", "Launch", "Pruner", "Roofline", "Usual", "obstacle", "search_end"]
