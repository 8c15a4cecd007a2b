"""The API server's refusals: Status objects with the codes, reasons and words of the real server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True)
class FieldFault:
    """One fault at one field, as ``message`` of the whole and as a cause in the details."""

    path: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"

    def cause(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.detail, "field": self.path}


@dataclass
class ApiError(Exception):
    """A request that the server refuses; ``reason`` is that of the code when it is not given."""

    code: int
    message: str
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code} {self.status()['reason']}: {self.message}"

    def status(self) -> dict[str, Any]:
        """The Status object that a client gets."""
        reason = REASONS.get(self.code, "") if self.reason is None else self.reason
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        if reason:
            status["reason"] = reason
        if self.details:
            status["details"] = self.details
        return status | {"code": self.code}


def _details(resource: str, name: str) -> dict[str, Any]:
    plural, _, group = resource.partition(".")
    return {key: value for key, value in {"name": name, "group": group, "kind": plural}.items() if value}


def not_found(resource: str, name: str) -> ApiError:
    return ApiError(404, f'{resource} "{name}" not found', details=_details(resource, name))


def no_such_path() -> ApiError:
    return ApiError(404, "the server could not find the requested resource")


def already_exists(resource: str, name: str) -> ApiError:
    return ApiError(409, f'{resource} "{name}" already exists', "AlreadyExists", _details(resource, name))


def conflict(resource: str, name: str, why: str = "") -> ApiError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource} "{name}": {why}'
    return ApiError(409, message, details=_details(resource, name))


def invalid(kind: str, group: str, name: str, faults: Sequence[FieldFault]) -> ApiError:
    """422 with every faulty field; ``kind`` and ``group`` are those of the object."""
    listed = ", ".join(str(fault) for fault in faults)
    subject = f"{kind}.{group}" if group else kind
    message = f'{subject} "{name}" is invalid: {listed if len(faults) == 1 else f"[{listed}]"}'
    details = {"name": name, "group": group, "kind": kind, "causes": [fault.cause() for fault in faults]}
    return ApiError(422, message, details={key: value for key, value in details.items() if value})


def cannot_decode(kind: str, version: str, why: str) -> ApiError:
    return ApiError(400, f'{kind} in version "{version}" cannot be handled as a {kind}: {why}')


def unknown_fields(kind: str, version: str, paths: Sequence[str]) -> ApiError:
    listed = ", ".join(f'unknown field "{path}"' for path in paths)
    return cannot_decode(kind, version, f"strict decoding error: {listed}")


def forbidden(resource: str, name: str, why: str) -> ApiError:
    subject = f'{resource} "{name}" is forbidden' if name else f"{resource} is forbidden"
    return ApiError(403, f"{subject}: {why}", details=_details(resource, name))


def expired(version: int, oldest: int) -> ApiError:
    return ApiError(410, f"too old resource version: {version} ({oldest})")


def denied_by_webhook(webhook: str, message: str, code: int = 403) -> ApiError:
    """What a validating webhook's refusal looks like from outside."""
    return ApiError(code, f'admission webhook "{webhook}" denied the request: {message}')


def webhook_unreachable(webhook: str, url: str, why: str = "connect: connection refused") -> ApiError:
    """What a webhook with ``failurePolicy: Fail`` does while nothing answers behind it."""
    return ApiError(
        500, f'Internal error occurred: failed calling webhook "{webhook}": failed to call webhook: Post "{url}": {why}'
    )
