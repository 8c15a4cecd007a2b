"""The Ray that an experiment runs on: one of our own that ends with us, or the cluster that we were submitted to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.utils import get_num_cpus  # heeds a container's limit; 0 where that is less than one

from raytune_autotuner.errors import EnvironmentFault

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest; nothing of ours is large, and the default takes a third of the memory."""
STARTS = 3
"""Ray gives its own daemons 30 s, which a machine that is overloaded does not keep."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the experiment folder is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours ends trials in order; Tune's kills them after 10 s
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads Tune's own state, which grows with the number of trials
    "RAY_AIR_NEW_OUTPUT": "0",  # the new reporter prints a box even when it is told to be silent
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would be handed on to the engine: whatever else runs would starve it
}


@contextmanager
def connected(resources: dict[str, float], folder: Path, *, dashboard: bool) -> Iterator[None]:
    """Be connected to Ray while the body runs: to ``RAY_ADDRESS``, else to a new one in ``folder`` with ``resources``.

    Raises:
        EnvironmentFault: there is no Ray at that address, or it does not start.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    try:
        if os.environ.get("RAY_ADDRESS"):
            _join()
        else:
            _start(resources, folder, dashboard)
        yield
    finally:
        ray.shutdown()


def _join() -> None:
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentFault(f"no Ray at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {error}") from error


def _start(resources: dict[str, float], folder: Path, dashboard: bool) -> None:
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=max(1, int(get_num_cpus())),
                resources=resources,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",  # works without any network
                _temp_dir=str(folder),
            )
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out" not in str(error):
                raise EnvironmentFault(f"Ray does not start on this machine: {error}") from error
