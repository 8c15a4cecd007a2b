"""An emulated router: passes requests on to the workers that a file lists, one after the other.

The real one finds its workers through the Kubernetes API; here the kubelet keeps the file.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
from aiohttp import web

WORKERS = "EMULATED_ROUTER_WORKERS"
"""Names a JSON file: base URLs of the workers that are ready."""
ADDRESS = "EMULATED_ROUTER_ADDRESS"
HOP = frozenset({"transfer-encoding", "content-length", "connection"})


def main(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Be a router until SIGTERM; options other than host and port change nothing here."""
    parser = argparse.ArgumentParser(prog="launch_router.py")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=30000)
    said, _ = parser.parse_known_args(list(words[1:]))
    asyncio.run(_serve(environment.get(ADDRESS) or said.host, said.port, Path(environment[WORKERS])))


async def _serve(host: str, port: int, workers: Path) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        router = _Router(session, workers)
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", router.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        await ended.wait()
        await runner.cleanup()


class _Router:
    def __init__(self, session: aiohttp.ClientSession, workers: Path) -> None:
        self._session = session
        self._workers = workers
        self._turn = itertools.count()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        workers = json.loads(self._workers.read_text()) if self._workers.exists() else []
        if not workers:
            return web.json_response({"error": "No available workers"}, status=503)
        worker = workers[next(self._turn) % len(workers)]
        headers = {name: value for name, value in request.headers.items() if name.lower() not in (*HOP, "host")}
        url = worker + request.path_qs
        async with self._session.request(request.method, url, headers=headers, data=await request.read()) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response
