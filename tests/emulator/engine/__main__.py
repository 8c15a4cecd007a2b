"""``python -m tests.emulator.engine [sglang|vllm] FLAGS…``: an emulated engine on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from tests.emulator.engine import messages, model
from tests.emulator.engine.arguments import CommandLine, parse
from tests.emulator.engine.model import Engine, EngineFailure
from tests.emulator.engine.profile import load_profile
from tests.emulator.engine.server import Server
from tests.emulator.engine.serving import Serving
from tests.emulator.engine.switches import Switches, from_environment

BACKLOG = 4096
SHUTDOWN_S = 0.5


def main(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Be an engine: the first word says which. Ends as the engine ends; returns after SIGTERM."""
    switches = from_environment(environment)
    if switches.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    command = parse(words[0], words[1:])
    try:
        engine = _start(command, switches)
    except EngineFailure as failure:
        if failure.hang:
            signal.pause()
        messages.fail(command.engine.name, failure, running=False)
    asyncio.run(_serve(command, engine, switches))


def _start(command: CommandLine, switches: Switches) -> Engine:
    profile = load_profile(switches.profile)
    messages.log(f"server_args=ServerArgs(model_path='{command.model_path}', port={command.port})")
    _pass(profile.start.init_s, switches)
    if switches.crash_at_start:
        raise EngineFailure(switches.crash_at_start)
    messages.log(f"Load weight begin. avail mem={profile.gpu.memory_gib - profile.gpu.other_gib:.2f} GB")
    engine = model.start(
        profile,
        command.engine.name,
        {**command.values, **switches.overrides},
        gpus=switches.gpus,
        node=switches.node,
        seed=switches.seed,
        now_s=switches.now_s,
    )
    if switches.hang_at_start:
        raise EngineFailure("", hang=True)
    messages.weights_loaded(engine.plan, profile.model.architecture)
    messages.allocated(engine.plan)
    _pass(engine.load_s - profile.start.init_s, switches)
    return engine


def _pass(seconds: float, switches: Switches) -> None:
    time.sleep(max(0.0, seconds) / switches.load_scale)


async def _serve(command: CommandLine, engine: Engine, switches: Switches) -> None:
    serving = Serving(engine, switches.scale)
    server = Server(command, serving, switches)
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    host = switches.address if switches.address and command.host in ("0.0.0.0", "::", "") else command.host
    try:
        await web.TCPSite(runner, host, command.port, backlog=BACKLOG, reuse_address=True).start()
    except OSError as error:
        messages.log(f"ERROR: [Errno 98] error while attempting to bind on address ('{host}', {command.port}): {error}")
        os._exit(1)
    messages.log(f"Uvicorn running on http://{command.host}:{command.port} (Press CTRL+C to quit)")
    messages.log("The server is fired up and ready to roll!")
    await _until_the_end(command, server, ignore=switches.ignore_sigterm)
    await runner.cleanup()


async def _until_the_end(command: CommandLine, server: Server, ignore: bool) -> None:
    ended = asyncio.Event()
    if not ignore:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
    work = asyncio.create_task(server.serving.run())
    end = asyncio.create_task(ended.wait())
    waited: set[asyncio.Future[Any]] = {work, end, server.failed}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if server.failed.done():
        messages.fail(command.engine.name, server.failed.result(), running=True)
    if work.done() and isinstance(failure := work.exception(), EngineFailure):
        messages.fail(command.engine.name, failure, running=True)
    for task in (work, end):
        task.cancel()
    await asyncio.gather(work, end, return_exceptions=True)


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
