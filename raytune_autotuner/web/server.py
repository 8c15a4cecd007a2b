"""The process that serves: listens, and ends open streams before it ends itself."""

from __future__ import annotations

import socket

import uvicorn

from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.web.app import create_app
from raytune_autotuner.web.launching import Launcher
from raytune_autotuner.web.settings import Settings
from raytune_autotuner.web.site import Site

END_S = 5
"""For answers that are under way when the server is told to end."""


class Server(uvicorn.Server):
    """Uvicorn's, which would wait for open streams."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._site.live.close()
        await super().shutdown(sockets)


def make(settings: Settings, launcher: Launcher | None = None) -> Server:
    app = create_app(settings, launcher)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever can reach this could send them
        timeout_graceful_shutdown=END_S,
    )
    return Server(config, app.state.site)


def serve(settings: Settings, listening: socket.socket) -> None:
    """Until SIGINT or SIGTERM."""
    make(settings).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        EnvironmentFault: nobody can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EnvironmentFault(f"cannot listen on {host} port {port}: {error}; choose another --port") from error
