"""The simulated backend behind an OpenAI-compatible HTTP endpoint, with latency, capacity and faults to order.

Latency and faults are functions of (the server's seed, the prompt, how often that prompt was seen), never of arrival,
so two clients that send the same prompts are served alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from aiohttp import web

from instructgym.errors import ConfigError
from instructgym.llm_backends.portal import Portal
from instructgym.llm_backends.server_behaviour import FAULTS, FAULTS_ON_DEMAND, ServerBehaviour, prompt_digest
from instructgym.types import Completion, Message, Sampling

__all__ = ["FAULTS", "FAULTS_ON_DEMAND", "Answerer", "ServerBehaviour", "SimulatedServer", "serve_forever"]

_SIZE_LIMIT_BYTES = 64 * 2**20
_LARGE_BYTES = 10_000_000


class Answerer(Protocol):
    """What the server serves: a pure function of messages, sampling parameters and the request's seed."""

    def answer(self, messages: tuple[Message, ...], sampling: Sampling, seed: int) -> Completion: ...


class SimulatedServer:
    """Serves `answerer` at ``/v1/chat/completions``, with ``/v1/models`` and ``/stats``.

    ``async with SimulatedServer(answerer) as server`` in an event loop, or ``with server.in_thread()`` elsewhere;
    then `base_url` says where it is. A request without ``seed`` gets seed 0.
    """

    def __init__(
        self,
        answerer: Answerer,
        behaviour: ServerBehaviour | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._answerer = answerer
        self._behaviour = behaviour or ServerBehaviour()
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._by_status: Counter[str] = Counter()
        self._seen: Counter[bytes] = Counter()
        self._bodies: Counter[bytes] = Counter()
        self._answered: Counter[bytes] = Counter()
        self._window_end_s = 0.0
        self._left_in_window = self._behaviour.rate_limit or 0
        self._in_flight = 0
        self._max_in_flight = 0

    @property
    def base_url(self) -> str:
        """Where clients find it; known once it runs."""
        return f"http://{self._host}:{self._port}/v1"

    def stats(self) -> Mapping[str, Any]:
        """What ``GET /stats`` answers. Only chat completions count, each once, when its body was read.

        `by_status` says how they ended: by status, by the fault they met, or ``gone`` if the client left before.
        `repeated_bodies` came more than once, `repeated_answers` were given a whole answer more than once.
        """
        return {
            "requests": self._bodies.total(),
            "by_status": dict(sorted(self._by_status.items())),
            "distinct_bodies": len(self._bodies),
            "repeated_bodies": sum(count > 1 for count in self._bodies.values()),
            "repeated_answers": sum(count > 1 for count in self._answered.values()),
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
        }

    async def start(self) -> None:
        app = web.Application(client_max_size=_SIZE_LIMIT_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._show_stats)
        if self._behaviour.rate_limit is not None:
            app.on_response_prepare.append(self._say_what_is_left)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"cannot listen on {self._host} port {self._port}: {error.strerror}") from error
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> SimulatedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @contextmanager
    def in_thread(self) -> Iterator[SimulatedServer]:
        """Run on a thread of its own for the time of a ``with`` block."""
        portal = Portal("instructgym-server")
        try:
            portal.call(self.start)
            try:
                yield self
            finally:
                portal.call(self.stop)
        finally:
            portal.close()

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "owned_by": "instructgym"} for name in self._behaviour.models]
        return web.json_response({"object": "list", "data": models})

    async def _show_stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        self._bodies[digest] += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            if self._behaviour.capacity is not None and self._in_flight > self._behaviour.capacity:
                return self._error(429, "too many requests at once", retry_after_s=self._behaviour.retry_after_s)
            if (wait_s := self._take_from_window()) > 0.0:
                return self._error(429, "too many requests a minute", retry_after_s=wait_s)
            return await self._serve(request, raw, digest)
        except asyncio.CancelledError:
            self._by_status["gone"] += 1
            raise
        finally:
            self._in_flight -= 1

    async def _serve(self, request: web.Request, raw: bytes, digest: bytes) -> web.StreamResponse:
        behaviour = self._behaviour
        try:
            body = json.loads(raw)
            model = body.get("model")
            messages = tuple([Message(item["role"], item["content"]) for item in body["messages"]])
            sampling = _sampling(body)
            seed, n = int(body.get("seed") or 0), int(body.get("n") or 1)
            prompt = prompt_digest(messages)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return self._error(400, "the body is not a chat completions request")
        if model not in behaviour.models:
            return self._error(404, f"The model '{model}' does not exist", code="model_not_found")
        seen = self._seen[prompt]
        self._seen[prompt] = seen + 1
        fault = behaviour.fault_of(prompt, seen)
        if latency_s := behaviour.latency_of(prompt) + (behaviour.slow_s if fault == "slow" else 0.0):
            await asyncio.sleep(latency_s)
        if fault in ("429", "429_no_retry_after"):
            retry_after_s = behaviour.retry_after_s if fault == "429" else None
            return self._error(429, "rate limit reached", retry_after_s=retry_after_s)
        if fault in ("500", "503"):
            return self._error(int(fault), "the server is unwell")
        if fault == "400":
            return self._error(400, "this prompt is not to its liking")
        if fault == "hang":
            await asyncio.get_running_loop().create_future()  # until the client leaves or the server stops
        if fault == "html":
            self._by_status["html"] += 1
            return web.Response(text="<html><body>Welcome to the proxy</body></html>", content_type="text/html")
        completions = [self._answerer.answer(messages, sampling, seed + i) for i in range(n)]
        reply = _reply(completions, model)
        if fault == "no_choices":
            reply["choices"] = []
        elif fault == "null_content":
            reply["choices"][0]["message"]["content"] = None
        elif fault == "large":
            reply["padding"] = "x" * _LARGE_BYTES
        elif fault == "no_usage":
            reply.pop("usage", None)
        payload = json.dumps(reply).encode()
        if fault == "reset":
            return await self._reset_in_body(request, payload)
        self._by_status[fault or "200"] += 1
        if fault == "cut_json":
            payload = payload[: len(payload) // 2]
        if fault is None or fault in FAULTS_ON_DEMAND:
            self._answered[digest] += 1
        return web.Response(body=payload, content_type="text/plain" if fault == "text_plain" else "application/json")

    def _take_from_window(self) -> float:
        """0.0 if the rate limit lets one more request through now, else the seconds until it does."""
        if self._behaviour.rate_limit is None:
            return 0.0
        now = time.monotonic()
        if now >= self._window_end_s:
            self._window_end_s = now + self._behaviour.rate_window_s
            self._left_in_window = self._behaviour.rate_limit
        if self._left_in_window == 0:
            return self._window_end_s - now
        self._left_in_window -= 1
        return 0.0

    async def _say_what_is_left(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-ratelimit-limit-requests"] = str(self._behaviour.rate_limit)
        response.headers["x-ratelimit-remaining-requests"] = str(self._left_in_window)
        response.headers["x-ratelimit-reset-requests"] = f"{max(0.0, self._window_end_s - time.monotonic()):.3f}s"

    async def _reset_in_body(self, request: web.Request, payload: bytes) -> web.StreamResponse:
        """Half of the payload, and then the connection is gone."""
        self._by_status["reset"] += 1
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(payload))})
        await response.prepare(request)
        await response.write(payload[: len(payload) // 2])
        if request.transport is not None:
            request.transport.abort()
        return response

    def _error(
        self, status: int, message: str, *, code: str | None = None, retry_after_s: float | None = None
    ) -> web.Response:
        self._by_status[str(status)] += 1
        headers = None if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
        error = {"message": message, "type": "simulated_error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)


async def serve_forever(server: SimulatedServer, on_ready: Callable[[SimulatedServer], None] | None = None) -> None:
    """Run `server` until cancelled. `on_ready` hears when it listens."""
    async with server:
        if on_ready is not None:
            on_ready(server)
        await asyncio.get_running_loop().create_future()


def _sampling(body: Mapping[str, Any]) -> Sampling:
    """The request's sampling parameters, with the defaults of the OpenAI API."""
    stop = body.get("stop") or ()
    temperature, top_p = body.get("temperature"), body.get("top_p")
    return Sampling(
        temperature=1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        top_logprobs=int(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
    )


def _logprobs(completion: Completion) -> list[dict[str, Any]]:
    return [
        {
            "token": item.token,
            "logprob": item.logprob,
            "top_logprobs": [{"token": token, "logprob": logprob} for token, logprob in item.top],
        }
        for item in completion.logprobs
    ]


def _reply(completions: list[Completion], model: str) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": completion.text},
            "finish_reason": completion.finish_reason,
            **({"logprobs": {"content": _logprobs(completion)}} if completion.logprobs else {}),
        }
        for i, completion in enumerate(completions)
    ]
    reply: dict[str, Any] = {"id": "simulated", "object": "chat.completion", "model": completions[0].model or model}
    reply["choices"] = choices
    usages = [completion.usage for completion in completions if completion.usage is not None]
    if usages:
        prompt, completion_tokens = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
        reply["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }
    return reply
