"""Talking to a server that was started here."""

from __future__ import annotations

import socket

import requests


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now; whoever uses it must bear that it may be taken a moment later."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def get(url: str, timeout_s: float) -> requests.Response | None:
    """The answer to a GET, past any proxy; ``None`` when there is none."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=timeout_s)
        except requests.RequestException:
            return None
