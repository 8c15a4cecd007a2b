"""Where the server listens, what it serves and who may ask."""

from __future__ import annotations

import ipaddress
import platform
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from raytune_autotuner.errors import SpecError
from raytune_autotuner.storage import Storage

TOKEN_VARIABLE = "RAYTUNE_AUTOTUNER_WEB_TOKEN"
SHORTEST_TOKEN = 16
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Settings:
    storage: Storage
    host: str = "127.0.0.1"
    port: int = 8378
    token: str | None = None
    """Who has it may do everything; ``None`` lets everyone in who reaches the address."""
    allowed_hosts: frozenset[str] = frozenset()
    """Names by which the server is reached, besides its address."""
    kubeconfig: str | None = None
    ray_address: str | None = None
    """The Ray dashboard, where experiments are handed in and that pages link to."""
    behind_tls: bool = False
    """Browsers reach it through a proxy that speaks TLS, and keep their session for such connections."""

    @property
    def open_to_all(self) -> bool:
        return self.token is None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Whether a host is an IP address; no name service can make an address mean another machine."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def token_for(host: str, env: Mapping[str, str], variable: str) -> tuple[str | None, bool]:
    """The token that the server asks for, and whether it was made here and is to be shown once.

    Raises:
        SpecError: the variable holds one that could be guessed.
    """
    given = env.get(variable)
    if given is not None and len(given) < SHORTEST_TOKEN:
        raise SpecError.single("--token-env", f"{variable} holds less than {SHORTEST_TOKEN} characters", "serve")
    if given is not None or is_loopback(host):
        return given, False
    return secrets.token_urlsafe(32), True


def host_names(host: str) -> frozenset[str]:
    """The names that an address goes by on this machine."""
    return LOCAL_NAMES | {host.lower(), platform.node().lower()}
