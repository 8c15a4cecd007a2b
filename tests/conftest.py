"""Options of the test run."""

from __future__ import annotations

import anyio
import pytest

for _name in dir(anyio):
    # It imports its parts when they are first used: in the threads of the servers that tests start. pytest rewrites
    # them, as they belong to a plugin, and CPython 3.11 may fail to parse there ("AST constructor recursion depth").
    getattr(anyio, _name)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("a real cluster")
    group.addoption("--kubeconfig", help="run tests/test_ome_run.py against this cluster, not the emulated one")
    group.addoption(
        "--ome-task",
        help="with --kubeconfig: a task file whose model, runtime, namespace and tokenizer are there; "
        "default: configs/simple_task.json, with the files of configs/kubernetes applied",
    )
