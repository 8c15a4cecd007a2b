"""Opens the filesystem behind a storage URI, and bounds how long a remote one may take to answer.

======================  =====================================================================================
``results``, ``/nfs/x`` local and NFS, by path; ``file://`` too
``s3://``               Amazon S3 and what speaks it. Query: ``region``, ``endpoint_override`` (or the variables
                        ``AWS_ENDPOINT_URL_S3`` and ``AWS_ENDPOINT_URL``), ``scheme``, ``tls_ca_file_path``,
                        ``allow_bucket_creation``
``gs://``, ``abfs://``  Google and Azure, with the options of ``pyarrow.fs``
anything else           what ``fsspec`` has a driver for
======================  =====================================================================================

Credentials come from each provider's default chain (environment, files, the machine's role), never from the URI,
because the URI is shown and written in many places.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import fsspec  # type: ignore[import-untyped]
import pyarrow
import pyarrow.fs as pafs

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.errors import SpecError

T = TypeVar("T")
Opened = tuple[pafs.FileSystem, str]
"""A filesystem and the path of the folder on it."""

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 10.0
"""So long without a byte, and a request to S3 has failed; the SDK tries three times."""
RETRY_PAUSE_S = 1.0
STORE_ERRORS = (pyarrow.ArrowException, OSError)
"""What a filesystem raises when it refuses."""

_SECRET = re.compile(r"(key|secret|token|password|credential|signature|^sig$)", re.IGNORECASE)
_PASSES = re.compile(r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT")
"""Errors of S3 that a retry may get past."""
_S3_FLAGS = {"allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"}
_S3_TEXTS = {"region", "endpoint_override", "scheme", "tls_ca_file_path"}


def refuse_secrets(uri: str) -> None:
    """Raise when a URI carries credentials; the message does not repeat them.

    Raises:
        SpecError: it does.
    """
    parts = urlsplit(uri)
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme == "s3"):
        place = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise SpecError.single("", f"{place} carries credentials; {_CHAIN}", "storage")
    for name, _value in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET.search(name):
            raise SpecError.single("", f"{parts.scheme}://{parts.netloc}{parts.path}?{name}=…: {_CHAIN}", "storage")


_CHAIN = (
    "leave them out: they are taken from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS), from the provider's files, or from the machine's role"
)


def open_uri(uri: str) -> Opened:
    """The filesystem of a URI (with ``://``).

    Raises:
        STORE_ERRORS, ValueError, ImportError: no such kind, a driver that is not installed, a wrong option.
    """
    parts = urlsplit(uri)
    filesystem, root = _OPENERS.get(parts.scheme, _fsspec)(uri, parts)
    return filesystem, root.rstrip("/")


def _s3(uri: str, parts: SplitResult) -> Opened:
    """With timeouts, and with one request for a small file where ``from_uri`` makes three."""
    options: dict[str, Any] = _endpoint(os.environ)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _S3_FLAGS | _S3_TEXTS:
            raise ValueError(f"unknown option {name!r}; valid are {', '.join(sorted(_S3_FLAGS | _S3_TEXTS))}")
        options[name] = value == "true" if name in _S3_FLAGS else value
    options.setdefault("region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))
    if options["region"] is None and "endpoint_override" not in options:
        options["region"] = pafs.resolve_s3_region(parts.netloc)
    filesystem = pafs.S3FileSystem(
        **options,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        allow_delayed_open=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    if options.get("allow_bucket_creation"):
        filesystem.create_dir(parts.netloc)
    return filesystem, parts.netloc + parts.path


def _endpoint(environment: Mapping[str, str]) -> dict[str, Any]:
    url = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not url:
        return {}
    scheme, _, host = url.rpartition("://")
    return {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}


def _gcs(uri: str, parts: SplitResult) -> Opened:
    query = {"retry_limit_seconds": f"{2 * REQUEST_TIMEOUT_S:.0f}", **dict(parse_qsl(parts.query))}
    opened: Opened = pafs.FileSystem.from_uri(parts._replace(query=urlencode(query)).geturl())
    return opened


def _pyarrow(uri: str, parts: SplitResult) -> Opened:
    opened: Opened = pafs.FileSystem.from_uri(uri)
    return opened


def _fsspec(uri: str, parts: SplitResult) -> Opened:
    filesystem, root = fsspec.core.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(root)


_OPENERS: Mapping[str, Callable[[str, SplitResult], Opened]] = {
    "file": _pyarrow,
    "s3": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "abfs": _pyarrow,
    "abfss": _pyarrow,
    "hdfs": _pyarrow,
    "viewfs": _pyarrow,
}


def makes_whole_files(filesystem: pafs.FileSystem) -> bool:
    """Whether a file appears all at once when it is closed, as on an object store, and folders need not be made."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


def patient(call: Callable[[], T], timeout_s: float, patience_s: float) -> T:
    """Ask a remote store; errors that may pass are tried again for ``patience_s``.

    Raises:
        STORE_ERRORS: what the store said, or ``TimeoutError`` when it said nothing within ``timeout_s``.
    """
    patience = Deadline.after(patience_s)
    while True:
        try:
            return _in_time(call, timeout_s)
        except OSError as error:
            if patience.expired or not (_PASSES.search(str(error)) or isinstance(error, ConnectionError)):
                raise
        time.sleep(min(RETRY_PAUSE_S, patience.remaining()))


def _in_time(call: Callable[[], T], timeout_s: float) -> T:
    """A library's own timeouts do not cover everything (a server that dribbles, name resolution): this one does."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="storage")
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    return answers[0]
