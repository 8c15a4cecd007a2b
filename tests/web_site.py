"""A web front end over made-up experiments, for tests: in this process, or listening for a browser."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from starlette.testclient import TestClient

from raytune_autotuner.storage import Storage
from raytune_autotuner.web.app import create_app
from raytune_autotuner.web.launching import Launch, Launcher
from raytune_autotuner.web.server import Server, listen, make
from raytune_autotuner.web.settings import Settings
from tests.example_experiment import Example, build
from tests.waiting import until

HERE = "http://127.0.0.1:8378"
HTML = {"accept": "text/html", "origin": HERE}
BEAT_S = 10.0
DONE, RUNNING, STOPPED = "llama-8b-chat-20261120-080000", "llama-8b-agents-20261121-091500", "llama-8b-rag-20261121-14"


@dataclass
class Starts(Launcher):
    """Keeps what it was to start, and starts nothing."""

    storage: Storage
    started: list[tuple[str, str]] = field(default_factory=list)

    def start(self, name: str, task: str) -> None:
        self.started.append((name, task))

    def resume(self, name: str) -> None:
        self.started.append((name, "resume"))

    def launches(self) -> list[Launch]:
        return []

    def launch(self, name: str) -> Launch | None:
        return None


def fill(folder: Path) -> Path:
    """Three experiments: done, running, stopped by somebody. They are made once and copied."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
    beat(folder)
    return folder


def beat(folder: Path) -> None:
    """A sign of life of all that run."""
    for lock in folder.glob("*/lock.json"):
        lock.touch()


@cache
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="web-site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder, Example(name=DONE, trials=30, requests=4, confirm=2))
    build(folder, Example(name=RUNNING, trials=5, running=3, seed=3, requests=4, confirm=0))
    build(folder, Example(name=STOPPED, trials=4, seed=5, interrupted=True, confirm=0, requests=4))
    return folder


def client(folder: Path, launcher: Launcher | None = None, token: str | None = None) -> TestClient:
    beat(folder)
    storage = Storage(str(folder))
    settings = Settings(storage, token=token, kubeconfig=str(folder / "no-kubeconfig"))
    app = create_app(settings, launcher or Starts(storage))
    return TestClient(app, base_url=HERE, headers=HTML, follow_redirects=False)


@contextmanager
def serving(folder: Path, launcher: Launcher | None = None, kubeconfig: Path | None = None) -> Iterator[str]:
    """The address of a server that listens on a free port; without a ``kubeconfig`` it knows no cluster."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    storage = Storage(str(folder))
    settings = Settings(storage, port=port, kubeconfig=str(kubeconfig or folder / "none"))
    server: Server = make(settings, launcher or Starts(storage))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    ended = threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(folder, ended), daemon=True)
    beating.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        ended.set()
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()


def _keep_beating(folder: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        beat(folder)


def texts(page: str, *wanted: str) -> Sequence[str]:
    """Those of the wanted texts that the page lacks."""
    return [text for text in wanted if text not in page]
