"""The HTTP interface of SGLang's and vLLM's servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from zlib import crc32

from aiohttp import web

from tests.emulator.engine import metrics
from tests.emulator.engine.arguments import CommandLine
from tests.emulator.engine.model import EngineFailure
from tests.emulator.engine.prefix import tokens
from tests.emulator.engine.serving import QueueFull, Serving
from tests.emulator.engine.switches import Switches

VERSIONS = {"sglang": "0.5.5.post3", "vllm": "0.32.0"}
WORDS = (
    "the",
    "of",
    "light",
    "and",
    "summer",
    "day",
    "more",
    "lovely",
    "eyes",
    "time",
    "fair",
    "art",
    "thou",
    "shall",
    "love",
    "sweet",
)
TEMPLATE_TOKENS = 9
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Routes over a running engine. ``failed`` is set with what brought it down."""

    def __init__(self, command: CommandLine, serving: Serving, switches: Switches) -> None:
        self.command = command
        self.serving = serving
        self.switches = switches
        self.failed: asyncio.Future[EngineFailure] = asyncio.get_running_loop().create_future()
        self._hung = False
        self._answered = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        routes: dict[str, Handler] = {
            "/health": self._health,
            "/v1/models": self._models,
            "/metrics": self._metrics,
        }
        sglang: dict[str, Handler] = {
            "/health_generate": self._health,
            "/get_server_info": self._server_info,
            "/server_info": self._server_info,
            "/get_model_info": self._model_info,
            "/model_info": self._model_info,
            "/flush_cache": self._flush_cache,
        }
        vllm: dict[str, Handler] = {"/version": self._version, "/ping": self._health}
        for path, handler in {**routes, **(sglang if self.command.engine.name == "sglang" else vllm)}.items():
            app.router.add_get(path, handler)
        app.router.add_post("/flush_cache", self._flush_cache)
        app.router.add_post("/reset_prefix_cache", self._flush_cache)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._hung:
            await asyncio.Event().wait()
        key = self.command.api_key
        open_path = request.path in ("/health", "/health_generate", "/metrics", "/ping")
        if key and not open_path and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self.command.served_name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": self.command.engine.name,
            "root": self.command.served_name,
            "parent": None,
            "max_model_len": self.serving.engine.plan.settings.context_length,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.command.metrics:
            return web.json_response({"detail": "Not Found"}, status=404)
        text = metrics.page(self.command, self.serving.engine, self.serving.counts)
        return web.Response(text=text, content_type="text/plain")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSIONS["vllm"]})

    async def _model_info(self, _: web.Request) -> web.Response:
        path = self.command.model_path
        return web.json_response({"model_path": path, "tokenizer_path": path, "is_generation": True})

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response(server_info(self.command, self.serving))

    async def _flush_cache(self, _: web.Request) -> web.Response:
        if self.serving.busy:
            return web.Response(text="Flush cache failed.\n", status=400)
        self.serving.clear_caches()
        return web.Response(text="Cache flushed.\n")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = "".join(_text(message.get("content")) for message in body.get("messages", []))
        return await self._generate(request, body, text, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._generate(request, body, _text(body.get("prompt")), chat=False)

    async def _generate(self, request: web.Request, body: dict[str, Any], text: str, chat: bool) -> web.StreamResponse:
        if refused := self._admit():
            return refused
        if self._hung:
            await asyncio.Event().wait()
        prompt = tokens(text) + (TEMPLATE_TOKENS if chat else 0)
        context = self.serving.engine.plan.settings.context_length
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or (context - prompt if chat else 16)
        if prompt + int(wanted) > context:
            return _error(400, _too_long(prompt, int(wanted), context), "BadRequestError")
        output = int(wanted) if body.get("ignore_eos") else min(int(wanted), 256 + crc32(text.encode()) % 512)
        answer = _Answer(body, text, chat, prompt, output, self.command.served_name)
        counts = self.serving.answer(text, prompt, output)
        try:
            first = await anext(counts)
            return await (_stream if body.get("stream") else _whole)(request, answer, first, counts)
        except QueueFull:
            return _error(503, "The request queue is full.", "ServiceUnavailableError")
        finally:
            await counts.aclose()  # type: ignore[attr-defined]

    def _admit(self) -> web.Response | None:
        """Count a request, and let the engine fail when it is its turn."""
        self._answered += 1
        switches = self.switches
        if switches.hang_after_requests is not None and self._answered > switches.hang_after_requests:
            self._hung = True
        if switches.crash_after_requests is not None and self._answered > switches.crash_after_requests:
            self._fail(EngineFailure(switches.crash_message))
        if int(self._answered * switches.error_share) > int((self._answered - 1) * switches.error_share):
            return _error(switches.error_code, "the engine fails as told", "InternalServerError")
        try:
            self.serving.engine.submitted()
        except EngineFailure as failure:
            self._hung = failure.hang
            if not failure.hang:
                self._fail(failure)
        return None

    def _fail(self, failure: EngineFailure) -> None:
        if not self.failed.done():
            self.failed.set_result(failure)


def server_info(command: CommandLine, serving: Serving) -> dict[str, Any]:
    """SGLang's server arguments with what it chose itself, and what its scheduler says."""
    values = serving.engine.plan.settings.values
    info: dict[str, Any] = {
        "model_path": command.model_path,
        "served_model_name": command.served_name,
        "host": command.host,
        "port": command.port,
        "version": VERSIONS["sglang"],
        "disaggregation_mode": command.disaggregation,
        "max_total_num_tokens": serving.engine.plan.capacity_tokens,
    }
    for name, parameter in command.engine.parameters.items():
        if parameter.info and parameter.info.startswith("server."):
            unset = False if parameter.type == "bool" else None
            info[parameter.info.removeprefix("server.")] = values.get(name, unset)
    info["internal_states"] = [{"memory_usage": {"token_capacity": serving.engine.plan.capacity_tokens}}]
    return info


class _Answer:
    """What one request is answered with, but for the timing."""

    def __init__(self, body: dict[str, Any], text: str, chat: bool, prompt: int, output: int, model: str) -> None:
        self.chat = chat
        self.output = output
        self.usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.reason = (
            "length" if output >= int(body.get("max_tokens") or body.get("max_completion_tokens") or 0) else "stop"
        )
        self._seed = crc32(text.encode())
        self._head = {"id": f"{self._seed:08x}", "created": int(time.time()), "model": model}

    def words(self, start: int, count: int) -> str:
        """The same prompt gets the same answer."""
        return "".join(WORDS[(self._seed + 7 * i * i + i) % len(WORDS)] + " " for i in range(start, start + count))

    def chunk(self, text: str, first: bool, reason: str | None) -> bytes:
        delta: dict[str, Any] = {"content": text} if self.chat else {}
        if first and self.chat:
            delta["role"] = "assistant"
        choice = {"index": 0, "finish_reason": reason, **({"delta": delta} if self.chat else {"text": text})}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _event({**self._head, "object": kind, "choices": [choice]})

    def last(self) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        usage = (
            _event({**self._head, "object": kind, "choices": [], "usage": self.usage}) if self.include_usage else b""
        )
        return usage + b"data: [DONE]\n\n"

    def whole(self) -> dict[str, Any]:
        text = self.words(0, self.output)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": self.usage}


async def _stream(request: web.Request, answer: _Answer, first: int, counts: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    given = 0
    with contextlib.suppress(ConnectionError):
        count: int | None = first
        while count is not None:
            done = given + count >= answer.output
            await response.write(answer.chunk(answer.words(given, count), given == 0, answer.reason if done else None))
            given += count
            count = None if done else await anext(counts, None)
        await response.write(answer.last())
        await response.write_eof()
    return response


async def _whole(_: web.Request, answer: _Answer, first: int, counts: Any) -> web.StreamResponse:
    async for _count in counts:
        pass
    return web.json_response(answer.whole())


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return str(content or "")


def _error(status: int, message: str, kind: str) -> web.Response:
    return web.json_response(
        {"object": "error", "message": message, "type": kind, "param": None, "code": status}, status=status
    )


def _too_long(prompt: int, wanted: int, context: int) -> str:
    if prompt >= context:
        return f"The input ({prompt} tokens) is longer than the model's context length ({context} tokens)."
    return (
        f"Requested token count exceeds the model's maximum context length of {context} tokens."
        f" You requested a total of {prompt + wanted} tokens: {prompt} tokens from the input messages and {wanted}"
        " tokens for the completion."
    )
