"""The four ways to patch an object: JSON patch, merge patch, strategic merge patch, server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.emulator.api.errors import ApiError
from tests.emulator.api.kinds import Kind, Object
from tests.emulator.api.objects import copied

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "ports": ("containerPort", "port"),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "conditions": ("type",),
    "addresses": ("type",),
    "hostAliases": ("ip",),
    "ownerReferences": ("uid",),
    "secrets": ("name",),
    "topologySpreadConstraints": ("topologyKey",),
}
"""The patch merge keys of Kubernetes' types, by the name of the list; other lists are replaced."""


def patched(kind: Kind, value: Object, patch: Any, type_: str) -> Object:
    """A patched copy of an object.

    Raises:
        ApiError: 415, a patch of a kind that this resource does not take; 400 or 422, one that cannot be applied.
    """
    if type_ == JSON:
        return _json_patched(value, patch)
    if type_ in (STRATEGIC, APPLY, MERGE) and not isinstance(patch, dict):
        raise ApiError(400, "error decoding patch: cannot unmarshal into Go value of type map[string]interface {}")
    if type_ == MERGE:
        return merged(value, patch)  # type: ignore[no-any-return]
    if type_ == APPLY or (type_ == STRATEGIC and not kind.custom):
        return _strategic(copied(value), patch)  # type: ignore[no-any-return]
    accepted = f"{JSON}, {MERGE}, {APPLY}" if kind.custom else f"{JSON}, {MERGE}, {STRATEGIC}, {APPLY}"
    words = "the body of the request was in an unknown format - accepted media types include:"
    raise ApiError(415, f"{words} {accepted}")


def merged(value: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copied(patch)
    result = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), part)
    return result


def _strategic(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copied(patch)
    if patch.get("$patch") == "replace":
        return {key: copied(part) for key, part in patch.items() if key != "$patch"}
    result = value if isinstance(value, dict) else {}
    for key, part in patch.items():
        _strategic_field(result, key, part)
    return result


def _strategic_field(result: Object, key: str, part: Any) -> None:
    if key.startswith("$deleteFromPrimitiveList/"):
        name = key.partition("/")[2]
        result[name] = [item for item in result.get(name) or () if item not in part]
    elif key.startswith(("$setElementOrder/", "$retainKeys")):
        return
    elif part is None or (isinstance(part, dict) and part.get("$patch") == "delete"):
        result.pop(key, None)
    elif isinstance(part, list):
        result[key] = _merged_list(key, result.get(key) or [], part)
    else:
        result[key] = _strategic(result.get(key), part)


def _merged_list(name: str, value: list[Any], patch: list[Any]) -> list[Any]:
    if name == "finalizers":
        return [*value, *(part for part in patch if part not in value)]
    if any(isinstance(part, dict) and part.get("$patch") == "replace" for part in patch):
        return [copied(part) for part in patch if part.get("$patch") != "replace"]
    keys = [key for key in MERGE_KEYS.get(name, ()) if all(isinstance(part, dict) and key in part for part in patch)]
    if not keys or not patch:
        return copied(patch)  # type: ignore[no-any-return]
    result = list(value)
    for part in patch:
        _merge_item(result, keys[0], part)
    return result


def _merge_item(result: list[Any], key: str, part: Object) -> None:
    index = next((index for index, item in enumerate(result) if item.get(key) == part[key]), None)
    if part.get("$patch") == "delete":
        result[:] = [item for item in result if item.get(key) != part[key]]
    elif index is None:
        result.append(copied(part))
    else:
        result[index] = _strategic(copied(result[index]), part)


def _json_patched(value: Object, patch: Any) -> Object:
    if not isinstance(patch, list):
        raise ApiError(400, "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    root: Any = {"": copied(value)}
    for step in patch:
        try:
            _json_step(root, step)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise _not_applicable(f"{step.get('op')} operation does not apply: doc is missing path: {error}") from error
    return root[""]  # type: ignore[no-any-return]


def _not_applicable(why: str) -> ApiError:
    message = "the server rejected our request due to an error in our request"
    causes = [{"reason": "UnexpectedServerResponse", "message": why}]
    return ApiError(422, message, details={"causes": causes})


def _json_step(root: Any, step: Object) -> None:
    parent, key = _resolve(root, step["path"])
    match step["op"]:
        case "add":
            _add(parent, key, copied(step["value"]))
        case "replace":
            parent[_index(parent, key)]  # raises where there is nothing
            parent[_index(parent, key)] = copied(step["value"])
        case "remove":
            del parent[_index(parent, key)]
        case "test":
            if parent[_index(parent, key)] != step["value"]:
                raise _not_applicable(f"testing value {step['path']} failed")
        case "move" | "copy" as op:
            source, name = _resolve(root, step["from"])
            part = copied(source[_index(source, name)])
            if op == "move":
                del source[_index(source, name)]
            _add(parent, key, part)
        case op:
            raise _not_applicable(f"Unexpected kind: {op}")


def _resolve(root: Any, pointer: str) -> tuple[Any, str]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    for part in parts[:-1]:
        root = root[_index(root, part)]
    return root, parts[-1]


def _index(parent: Any, key: str) -> Any:
    return int(key) if isinstance(parent, list) else key


def _add(parent: Any, key: str, value: Any) -> None:
    if isinstance(parent, list):
        place = len(parent) if key == "-" else int(key)
        if place > len(parent):
            raise IndexError(key)
        parent.insert(place, value)
    else:
        parent[key] = value
