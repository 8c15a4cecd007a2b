"""Commands in a pod's container over WebSocket, as ``kubectl exec`` and the Python client ask for them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable
from typing import BinaryIO

from tests.emulator.api.errors import ApiError
from tests.emulator.api.kinds import Object
from tests.emulator.api.requests import Request, Upgrade
from tests.emulator.api.websocket import WebSocket, choose, shake_hands

STDIN, STDOUT, STDERR, ERROR, CLOSED = 0, 1, 2, 3, 255
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
Launch = Callable[[list[str]], "subprocess.Popen[bytes]"]
"""From an argv to a process with pipes for its three streams."""


def upgrade(request: Request, launch: Launch) -> Upgrade:
    """Take over the connection for a command's streams.

    Raises:
        ApiError: 400, no command or no protocol that is known here.
    """
    if not request.values("command"):
        raise ApiError(400, "you must specify at least 1 command for the container")
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise ApiError(400, "unable to upgrade: only websocket is known here")
    protocol = choose(request.headers.get("Sec-WebSocket-Protocol", ""), PROTOCOLS)
    argv = request.values("command")
    return Upgrade(lambda connection: _serve(shake_hands(connection, request.headers, protocol), launch, argv))


def _serve(ws: WebSocket, launch: Launch, argv: list[str]) -> None:
    try:
        process = launch(argv)
    except OSError as error:
        ws.send(bytes([ERROR]) + json.dumps(_status(126, str(error))).encode())
        ws.close()
        return
    ended = threading.Thread(target=_report, args=(ws, process), name="emulated exec")
    ended.start()
    for message in ws.messages():
        with contextlib.suppress(OSError, ValueError):
            _take(process, message)
    process.kill()
    ended.join()


def _take(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin
    if message[:2] == bytes([CLOSED, STDIN]):
        process.stdin.close()
    elif message[:1] == bytes([STDIN]):
        process.stdin.write(message[1:])
        process.stdin.flush()


def _report(ws: WebSocket, process: subprocess.Popen[bytes]) -> None:
    """Send the output and, at the end, the exit status."""
    assert process.stdout
    assert process.stderr
    pumps = [
        threading.Thread(target=_pump, args=(ws, channel, pipe), name="emulated exec")
        for channel, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr))
    ]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    code = process.wait()
    with contextlib.suppress(OSError):
        ws.send(bytes([ERROR]) + json.dumps(_status(code)).encode())
    ws.close()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()


def _pump(ws: WebSocket, channel: int, pipe: BinaryIO) -> None:
    with contextlib.suppress(OSError):
        while data := pipe.read1(1 << 16):  # type: ignore[attr-defined]
            ws.send(bytes([channel]) + data)


def _status(code: int, why: str = "") -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    message = why or f"command terminated with non-zero exit code: exit status {code}"
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": message,
        "details": {"causes": causes},
    }
