"""What kube-proxy does: connections to a Service's address go to one of its pods.

A process of its own; reads JSON lines ``{"listen": [host, port], "targets": [[host, port], …]}``, where no targets
means that connections are refused, and ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys

Address = tuple[str, int]
CHUNK = 65536
BACKLOG = 1024


class Proxy:
    """Listens for each Service port that has targets."""

    def __init__(self) -> None:
        self._targets: dict[Address, list[Address]] = {}
        self._servers: dict[Address, asyncio.Server] = {}

    async def set(self, listen: Address, targets: list[Address]) -> None:
        self._targets[listen] = targets
        if targets and listen not in self._servers:
            host, port = listen
            with contextlib.suppress(OSError):
                self._servers[listen] = await asyncio.start_server(
                    lambda reader, writer: self._connect(listen, reader, writer), host, port, backlog=BACKLOG
                )
        elif not targets and listen in self._servers:
            self._servers.pop(listen).close()

    async def _connect(self, listen: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host, port = random.choice(self._targets[listen])
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except (OSError, IndexError):
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()


async def _main() -> None:
    proxy = Proxy()
    reader = asyncio.StreamReader(limit=2**22)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        host, port = order["listen"]
        await proxy.set((host, port), [(host, port) for host, port in order["targets"]])
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main())
