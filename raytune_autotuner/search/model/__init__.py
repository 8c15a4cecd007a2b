"""A model of the configurations: what each is likely to be worth, why some fail, and what is to be tried next."""

from raytune_autotuner.search.model.adaptive import Adaptive, startup_points

__all__ = ["Adaptive", "startup_points"]
