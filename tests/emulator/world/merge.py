"""How OME merges a runtime's engine configuration with that of an InferenceService: a strategic merge patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.emulator.api.objects import copied

Object = dict[str, Any]
KEYS: Mapping[str, str] = {
    "env": "name",
    "volumes": "name",
    "containers": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
}
"""Lists that are merged by a key of their entries; all others are replaced as a whole."""


def merge(runtime: Object, service: Object) -> Object:
    """The runtime's specification with that of the service laid over it; empty lists are as good as absent."""
    result: Object = copied(runtime)
    for key, value in service.items():
        if value is None or value == []:
            continue
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            result[key] = merge(old, value)
        elif key in KEYS and isinstance(old, list):
            result[key] = _by_key(old, value, KEYS[key])
        else:
            result[key] = copied(value)
    if "runner" in service and "runner" in runtime and "name" not in service["runner"]:
        result["runner"]["name"] = ""  # Container.Name is written even when it is empty
    return result


def _by_key(old: list[Object], new: list[Object], key: str) -> list[Object]:
    """Entries of the service first, as Kubernetes' merge orders them."""
    before = {entry.get(key): entry for entry in old}
    merged = [merge(before.get(entry.get(key), {}), entry) for entry in new]
    named = {entry.get(key) for entry in new}
    return merged + [copied(entry) for entry in old if entry.get(key) not in named]
