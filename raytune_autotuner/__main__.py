"""``python -m raytune_autotuner``: the command line where no script is installed."""

from __future__ import annotations

from raytune_autotuner.cli import main

main(prog_name="raytune-autotuner")
