"""Ray's job server as its client sees it, without a cluster: jobs end when the test says so."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, web


@dataclass
class FakeJob:
    """What the server tells of a job; the test changes it while it is followed."""

    submission_id: str
    entrypoint: str = ""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    message: str = ""
    driver_exit_code: int | None = None
    start_time: int = 0
    log: str = ""
    stops: int = 0

    def end(self, status: str, code: int | None = None, message: str = "") -> None:
        self.driver_exit_code, self.message, self.status = code, message, status


class FakeJobServer:
    """Serves on a free port until the ``with`` ends."""

    def __init__(self, token: str = "", limit: int = 100 * 1024**2) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.packages: dict[str, dict[str, bytes]] = {}
        """By URI: the files in it."""
        self.drop_after: int | None = None
        """Characters of a log after which its connection breaks."""
        self.silent = False
        """Whether connections of logs stay open without a word."""
        self.followers = 0
        """Connections of logs that were ever made."""
        self.lists = 0
        """How often it was asked for all jobs."""
        self.refused_stops = 0
        """So many requests to stop a job are answered by an error."""
        self.address = ""
        self._token, self._limit = token, limit

    def job(self, submission_id: str = "job-1", **facts: Any) -> FakeJob:
        self.jobs[submission_id] = FakeJob(submission_id, **facts)
        return self.jobs[submission_id]

    @contextmanager
    def serving(self) -> Iterator[FakeJobServer]:
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=self._limit, middlewares=[self._authenticated])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        app.router.add_get("/api/jobs/{job}/logs", self._log)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"})

    async def _list(self, request: web.Request) -> web.Response:
        self.lists += 1
        return web.json_response([_details(job) for job in self.jobs.values()])

    async def _submit(self, request: web.Request) -> web.Response:
        order = await request.json()
        if order["submission_id"] in self.jobs:
            return web.Response(status=500, text="Traceback (most recent call last):\n  …\nValueError: already exists")
        self.job(**{name: order[name] for name in ("submission_id", "entrypoint", "runtime_env", "metadata")})
        return web.json_response({"job_id": order["submission_id"], "submission_id": order["submission_id"]})

    async def _info(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        return web.json_response(_details(job)) if job else web.Response(status=404, text="does not exist")

    async def _stop(self, request: web.Request) -> web.Response:
        if self.refused_stops:
            self.refused_stops -= 1
            return web.Response(status=500, text="the head is busy")
        self.jobs[request.match_info["job"]].stops += 1
        return web.json_response({"stopped": True})

    async def _log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.jobs[request.match_info["job"]].log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        job, sent = self.jobs[request.match_info["job"]], 0
        self.followers += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while not socket.closed:
            over = job.status not in ("PENDING", "RUNNING")
            if not self.silent and len(job.log) > sent:
                end = len(job.log) if self.drop_after is None else self.drop_after
                await socket.send_str(job.log[sent:end])
                sent = end
                if self.drop_after is not None:
                    self.drop_after = None
                    await socket.close(code=WSCloseCode.INTERNAL_ERROR)
            if over and not self.silent:
                break
            await asyncio.sleep(0.02)
        return socket

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        with zipfile.ZipFile(io.BytesIO(await request.read())) as archive:
            self.packages[request.match_info["name"]] = {name: archive.read(name) for name in archive.namelist()}
        return web.Response()


def _details(job: FakeJob) -> dict[str, Any]:
    told = ("submission_id", "entrypoint", "runtime_env", "metadata", "status", "message", "start_time")
    facts = {name: getattr(job, name) for name in (*told, "driver_exit_code")}
    return {"type": "SUBMISSION", "job_id": None, **facts}
