"""From a request's body to an object that may be stored: decoding, field validation, schema."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.emulator.api import builtin, errors, schema
from tests.emulator.api.errors import FieldFault
from tests.emulator.api.kinds import CRD, Kind, Object, api_version
from tests.emulator.api.objects import copied

SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
DNS_1123 = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
DNS_1035_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
DNS_1123_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
QUALIFIED_WORDS = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def decode(kind: Kind, version: str, body: object, validation: str) -> tuple[Object, list[str]]:
    """The object that a body holds, pruned and with defaults, and the warnings (``fieldValidation=Warn``).

    Raises:
        ApiError: 400, not an object of this kind; a field of a wrong type; an unknown field under ``Strict``.
    """
    if not isinstance(body, dict):
        raise errors.ApiError(400, "couldn't get version/kind; json parse error: the body is not an object")
    value = copied(body)
    _check_type(kind, version, value)
    shape = schema_of(kind, version)
    value["metadata"] = builtin.decode(value.get("metadata") or {}, builtin.metadata_schema())
    if not kind.custom:
        value = builtin.decode(value, shape)
    unknown = _unknown(kind, value, shape)
    _check_types(kind, version, value, shape)
    if unknown and validation == "Strict":
        raise errors.unknown_fields(kind.kind, version, unknown)
    schema.default(value, shape)
    return value, [f'unknown field "{path}"' for path in unknown] if validation == "Warn" else []


def schema_of(kind: Kind, version: str) -> schema.Schema:
    return kind.schemas.get(version, {}) if kind.custom else builtin.schema_of(kind.kind)


def _check_type(kind: Kind, version: str, value: Object) -> None:
    found, named = value.get("apiVersion"), value.get("kind")
    if kind.custom and not named:
        raise errors.ApiError(400, "Object 'Kind' is missing in the body")
    if found not in (None, "", api_version(kind.group, version)):
        expected = api_version(kind.group, version)
        message = f"the API version in the data ({found}) does not match the expected API version ({expected})"
        raise errors.ApiError(400, message)
    if named not in (None, "", kind.kind):
        raise errors.ApiError(400, f'{named} in version "{version}" cannot be handled as a {kind.kind}: no kind match')
    value["apiVersion"], value["kind"] = api_version(kind.group, kind.version), kind.kind


def _unknown(kind: Kind, value: Object, shape: schema.Schema) -> list[str]:
    """Drop what the schema does not know; the type and the metadata are known of every object."""
    dropped = schema.prune(value["metadata"], builtin.metadata_schema(), "metadata")
    if kind.resource == CRD or not shape:
        return dropped
    rest = {key: part for key, part in value.items() if key not in ("apiVersion", "kind", "metadata")}
    pruned = schema.prune(rest, shape)
    for key in [key for key in value if key not in rest and key not in ("apiVersion", "kind", "metadata")]:
        del value[key]
    return pruned + dropped


def _check_types(kind: Kind, version: str, value: Object, shape: schema.Schema) -> None:
    """A wrong type in what Go decodes into a struct fails before anything is validated."""
    typed = schema.faults(value["metadata"], builtin.metadata_schema(), "metadata")
    found = next((fault for fault in typed if fault.reason == schema.TYPE_FAULT), None)
    if not found and not kind.custom:
        found = next((fault for fault in schema.faults(value, shape) if fault.reason == schema.TYPE_FAULT), None)
    if found:
        raise errors.cannot_decode(kind.kind, version, builtin.go_words(found.path, found.detail, shape))


def faults(kind: Kind, value: Object) -> list[FieldFault]:
    """What is wrong with an object that has been decoded."""
    return [*_metadata_faults(kind, value["metadata"]), *_body_faults(kind, value)]


def _body_faults(kind: Kind, value: Object) -> Iterator[FieldFault]:
    body = {key: part for key, part in value.items() if key != "metadata"}
    shape = schema_of(kind, kind.version)
    if not kind.custom:
        body.pop("status", None)
    for fault in schema.faults(body, shape):
        if fault.path != "metadata":
            yield fault


def _metadata_faults(kind: Kind, metadata: Object) -> Iterator[FieldFault]:
    name = metadata.get("name", "")
    pattern, words, limit = _name_rule(kind)
    if not name:
        yield FieldFault("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
    elif not pattern.match(name):
        yield schema.invalid("metadata.name", f'"{name}"', words)
    if len(name) > limit:
        yield schema.invalid("metadata.name", f'"{name}"', f"must be no more than {limit} bytes")
    for key, text in (metadata.get("labels") or {}).items():
        yield from _label_faults(key, text)
    for key in metadata.get("annotations") or {}:
        yield from _key_faults("metadata.annotations", key)
    yield from _owner_faults(metadata)


def _name_rule(kind: Kind) -> tuple[re.Pattern[str], str, int]:
    if kind.group == "rbac.authorization.k8s.io":
        return re.compile(r"^[^/%]+$"), "may not contain '/' or '%'", 253
    if kind.resource == "services":
        return DNS_1035, DNS_1035_WORDS, 63
    if kind.resource == "namespaces":
        return DNS_1123, DNS_1123_WORDS, 63
    return SUBDOMAIN, SUBDOMAIN_WORDS, 253


def _label_faults(key: str, text: str) -> Iterator[FieldFault]:
    yield from _key_faults("metadata.labels", key)
    if not LABEL_VALUE.match(text):
        yield schema.invalid("metadata.labels", f'"{text}"', LABEL_WORDS)
    if len(text) > 63:
        yield schema.invalid("metadata.labels", f'"{text}"', "must be no more than 63 bytes")


def _key_faults(path: str, key: str) -> Iterator[FieldFault]:
    prefix, slash, name = key.rpartition("/")
    if not QUALIFIED.match(name) or (slash and not SUBDOMAIN.match(prefix)):
        yield schema.invalid(path, f'"{key}"', QUALIFIED_WORDS)
    if len(name) > 63:
        yield schema.invalid(path, f'"{key}"', "name part must be no more than 63 bytes")


def _owner_faults(metadata: Object) -> Iterator[FieldFault]:
    owners = metadata.get("ownerReferences") or []
    for index, owner in enumerate(owners):
        for part in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(part):
                detail = f'Invalid value: "": {part} must not be empty'
                yield FieldFault(f"metadata.ownerReferences[{index}].{part}", "FieldValueInvalid", detail)
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        detail = "Only one reference can have Controller set to true"
        yield FieldFault("metadata.ownerReferences", "FieldValueInvalid", f"Invalid value: {detail}")
