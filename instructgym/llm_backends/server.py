"""The simulated backend behind an OpenAI-compatible HTTP endpoint, with latency, capacity and faults to order.

Latency and faults are functions of (the server's seed, the prompt, how often that prompt was seen), never of arrival,
so two clients that send the same prompts are served alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from types import TracebackType
from typing import Any, Protocol

from aiohttp import web

from instructgym.errors import ConfigError
from instructgym.llm_backends.portal import Portal
from instructgym.types import Completion, Message, Sampling

__all__ = ["FAULTS", "Answerer", "ServerBehaviour", "SimulatedServer", "serve_forever"]

FAULTS = ("429", "429_no_retry_after", "500", "503", "reset", "cut_json", "html", "no_choices", "null_content")
"""What a faulty answer can be; each is as likely as the others."""

_SIZE_LIMIT_BYTES = 64 * 2**20


class Answerer(Protocol):
    """What the server serves: a pure function of messages, sampling parameters and the request's seed."""

    def answer(self, messages: tuple[Message, ...], sampling: Sampling, seed: int) -> Completion: ...


@dataclass(frozen=True, slots=True)
class ServerBehaviour:
    """How the endpoint behaves. `sigma` > 0 makes the latency lognormal with mean `latency_s`.

    More than `capacity` requests at once are answered 429 with ``Retry-After: retry_after_s``. A share `fault_rate`
    of the requests is answered by one of `faults`.
    """

    latency_s: float = 0.0
    sigma: float = 0.0
    capacity: int | None = None
    retry_after_s: float = 1.0
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    models: tuple[str, ...] = ("simulated",)

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.sigma < 0 or self.retry_after_s < 0:
            raise ConfigError("latency, sigma and retry_after_s of the server must not be negative")
        if not 0.0 <= self.fault_rate <= 1.0:
            raise ConfigError(f"fault_rate is {self.fault_rate}; expected a share between 0 and 1")
        if self.capacity is not None and self.capacity < 1:
            raise ConfigError(f"capacity is {self.capacity}; expected at least 1, or none at all")
        if unknown := sorted(set(self.faults) - set(FAULTS)):
            raise ConfigError(f"unknown fault '{unknown[0]}'; expected one of {', '.join(FAULTS)}")

    def latency_of(self, prompt: bytes) -> float:
        """Seconds that the answer to `prompt` (a digest of its messages) takes."""
        if self.sigma == 0.0 or self.latency_s == 0.0:
            return self.latency_s
        normal = NormalDist().inv_cdf(self._uniform("latency", prompt, 0))
        return self.latency_s * math.exp(self.sigma * normal - self.sigma**2 / 2)

    def fault_of(self, prompt: bytes, seen: int) -> str | None:
        """The fault that `prompt` meets when it comes for the `seen`-th time (from 0); None = it is answered."""
        if self._uniform("faulty", prompt, seen) >= self.fault_rate or not self.faults:
            return None
        return self.faults[int(self._uniform("fault", prompt, seen) * len(self.faults))]

    def _uniform(self, what: str, prompt: bytes, seen: int) -> float:
        """In the open interval (0, 1)."""
        digest = hashlib.blake2b(f"{what}:{self.seed}:{seen}:".encode() + prompt, digest_size=8).digest()
        return (int.from_bytes(digest, "big") // 2**11 + 0.5) / 2**53


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
        self._in_flight = 0
        self._max_in_flight = 0

    @property
    def base_url(self) -> str:
        """Where clients find it; known once it runs."""
        return f"http://{self._host}:{self._port}/v1"

    def stats(self) -> Mapping[str, Any]:
        """What ``GET /stats`` answers. Only chat completions count; `repeated_bodies` came more than once."""
        return {
            "requests": self._bodies.total(),
            "by_status": dict(sorted(self._by_status.items())),
            "distinct_bodies": len(self._bodies),
            "repeated_bodies": sum(count > 1 for count in self._bodies.values()),
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
        }

    async def start(self) -> None:
        app = web.Application(client_max_size=_SIZE_LIMIT_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._show_stats)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
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
        self._bodies[hashlib.blake2b(raw, digest_size=16).digest()] += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            if self._behaviour.capacity is not None and self._in_flight > self._behaviour.capacity:
                return self._error(429, "too many requests at once", retry_after=True)
            return await self._serve(request, raw)
        finally:
            self._in_flight -= 1

    async def _serve(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        try:
            body = json.loads(raw)
            model = body.get("model")
            messages = tuple(Message(item["role"], item["content"]) for item in body["messages"])
            sampling = _sampling(body)
            seed, n = int(body.get("seed") or 0), int(body.get("n") or 1)
        except (AttributeError, KeyError, TypeError, ValueError):
            return self._error(400, "the body is not a chat completions request")
        if model not in self._behaviour.models:
            return self._error(404, f"The model '{model}' does not exist", code="model_not_found")
        prompt = hashlib.blake2b(repr(messages).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        seen = self._seen[prompt]
        self._seen[prompt] += 1
        if latency_s := self._behaviour.latency_of(prompt):
            await asyncio.sleep(latency_s)
        fault = self._behaviour.fault_of(prompt, seen)
        if fault in ("429", "429_no_retry_after"):
            return self._error(429, "rate limit reached", retry_after=fault == "429")
        if fault in ("500", "503"):
            return self._error(int(fault), "the server is unwell")
        if fault == "html":
            self._by_status["html"] += 1
            return web.Response(text="<html><body>Welcome to the proxy</body></html>", content_type="text/html")
        completions = [self._answerer.answer(messages, sampling, seed + i) for i in range(n)]
        reply = _reply(completions, str(model))
        if fault == "no_choices":
            reply["choices"] = []
        elif fault == "null_content":
            reply["choices"][0]["message"]["content"] = None
        payload = json.dumps(reply).encode()
        if fault == "reset":
            return await self._reset_in_body(request, payload)
        self._by_status[fault or "200"] += 1
        if fault == "cut_json":
            payload = payload[: len(payload) // 2]
        return web.Response(body=payload, content_type="application/json")

    async def _reset_in_body(self, request: web.Request, payload: bytes) -> web.StreamResponse:
        """Half of the payload, and then the connection is gone."""
        self._by_status["reset"] += 1
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(payload))})
        await response.prepare(request)
        await response.write(payload[: len(payload) // 2])
        if request.transport is not None:
            request.transport.abort()
        return response

    def _error(self, status: int, message: str, *, code: str | None = None, retry_after: bool = False) -> web.Response:
        self._by_status[str(status)] += 1
        headers = {"Retry-After": f"{self._behaviour.retry_after_s:g}"} if retry_after else None
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


def _reply(completions: list[Completion], model: str) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": completion.text},
            "finish_reason": completion.finish_reason,
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
