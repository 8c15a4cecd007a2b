"""``python -m tests.emulator.engine.measure PROFILE [ENGINE] [NAME=VALUE …]``: what a profile gives, level by level."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from raytune_autotuner.metrics import summarise
from tests.emulator.engine.model import EngineFailure, Load, start
from tests.emulator.engine.profile import load_profile

LEVELS = (1, 4, 16, 64, 256)
SCENARIO = "D(1000,200)"
COLUMNS = ("output_tokens_per_s", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "e2e_mean_s")


def main(words: Sequence[str]) -> None:
    """Print a table, or why the engine does not start."""
    profile = load_profile(words[0])
    engine = words[1] if len(words) > 1 and "=" not in words[1] else "sglang"
    values = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words[1:]) if value}
    try:
        running = start(profile, engine, values)
    except EngineFailure as failure:
        print(f"{profile.name}: {failure.message}")  # noqa: T201
        return
    print(f"{profile.name}: {running.plan.capacity_tokens} tokens of KV cache, ready after {running.load_s:.0f} s")  # noqa: T201
    print("level", *COLUMNS, sep="\t")  # noqa: T201
    for level in LEVELS:
        measured = running.measure(Load(SCENARIO, level, level * 8))
        found = summarise(measured.samples, level, measured.errors)
        cells = [f"{found[name]:.4g}" if name in found else "-" for name in COLUMNS]
        print(level, *cells, measured.failure or "", sep="\t")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
