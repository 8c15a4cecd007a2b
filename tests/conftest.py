"""Options of the test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("a real cluster")
    group.addoption("--kubeconfig", help="run tests/test_ome_run.py against this cluster, not the emulated one")
    group.addoption(
        "--ome-task",
        help="with --kubeconfig: a task file whose model, runtime, namespace and tokenizer are there; "
        "default: configs/simple_task.json, with the files of configs/kubernetes applied",
    )
