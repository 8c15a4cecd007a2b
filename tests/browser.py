"""Pictures of web pages by headless Chromium, once they show what they should."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from raytune_autotuner.deadline import Deadline
from raytune_autotuner.processes import OwnedProcess
from tests.waiting import until

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
START_S = 60.0
SHOWN_S = 120.0
SETTLE_S = 1.0
"""For what a page moves and fades in."""


def is_there() -> bool:
    return shutil.which("chromium") is not None


def take_picture(url: str, file: Path, *, ready: str, act: str = "", size: tuple[int, int] = (1600, 1400)) -> None:
    """Write the page as a PNG when the JavaScript expression ``ready`` is true; ``act`` is run on it before."""
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "profile"
        command = ["chromium", *FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}", url]
        log = Path(scratch) / "chromium.log"
        browser = OwnedProcess(command, log=log, env=os.environ, owner="test-browser", cwd=Path(scratch))
        try:
            port_file = profile / "DevToolsActivePort"
            until(lambda: port_file.exists() and port_file.read_text().strip(), START_S)
            port = int(port_file.read_text().split()[0])
            file.write_bytes(asyncio.run(_picture(port, ready, act)))
        finally:
            browser.stop(1)


async def _picture(port: int, ready: str, act: str) -> bytes:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(each for each in await answer.json() if each["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            deadline = Deadline.after(SHOWN_S)
            while not await _evaluate(socket, f"{{ {act} }}; Boolean({ready})"):
                assert not deadline.expired, f"the page never showed: {ready}"
                await asyncio.sleep(SETTLE_S)
            await asyncio.sleep(SETTLE_S)
            picture = await _call(socket, "Page.captureScreenshot", format="png")
            return base64.b64decode(picture["data"])


async def _evaluate(socket: aiohttp.ClientWebSocketResponse, expression: str) -> Any:
    return (await _call(socket, "Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")


async def _call(socket: aiohttp.ClientWebSocketResponse, method: str, **parameters: Any) -> dict[str, Any]:
    """One command of the DevTools protocol; events in between are of no interest."""
    await socket.send_str(json.dumps({"id": 1, "method": method, "params": parameters}))
    while "id" not in (answer := json.loads((await socket.receive(SHOWN_S)).data)):
        pass
    result: dict[str, Any] = answer["result"]
    return result
