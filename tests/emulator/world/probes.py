"""Readiness, liveness and startup probes as the kubelet makes them."""

from __future__ import annotations

import http.client
import socket
from typing import Any

Object = dict[str, Any]
MIN_TIMEOUT_S = 1.0
"""Real seconds: this machine is slower than the clock of the cluster says."""


def probe(spec: Object, container: Object, address: str, time_scale: float) -> str | None:
    """Why the probe fails, or ``None`` when it succeeds. Commands always succeed."""
    timeout_s = max(MIN_TIMEOUT_S, float(spec.get("timeoutSeconds", 1)) / time_scale)
    try:
        if get := spec.get("httpGet"):
            return _http(get, _port(get["port"], container), address, timeout_s)
        if tcp := spec.get("tcpSocket"):
            with socket.create_connection((address, _port(tcp["port"], container)), timeout_s):
                return None
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _http(get: Object, port: int, address: str, timeout_s: float) -> str | None:
    connection = http.client.HTTPConnection(get.get("host") or address, port, timeout=timeout_s)
    try:
        connection.request("GET", get.get("path") or "/", headers={"User-Agent": "kube-probe/1.31"})
        status = connection.getresponse().status
    finally:
        connection.close()
    return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"


def _port(port: Any, container: Object) -> int:
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    return next(int(each["containerPort"]) for each in container.get("ports") or () if each.get("name") == port)
