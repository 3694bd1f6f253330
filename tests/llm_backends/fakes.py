"""Small transports and requests for the tests of this folder."""

from __future__ import annotations

import asyncio
from typing import Any

from instructgym.types import Completion, Message, Request, Sample, Sampling, Usage

Outcome = Completion | BaseException


def ask(
    text: str = "hello", *, role: str = "expert", sample: Sample = (0,), stage: str = "evolve", **more: Any
) -> Request:
    fields: dict[str, Any] = {"model": "simulated", "prompt_version": "test/1", "sampling": Sampling(max_tokens=50)}
    return Request(role=role, messages=(Message("user", text),), sample=sample, stage=stage, **{**fields, **more})


def answer(text: str = "hi", prompt: int = 10, completion: int = 5) -> Completion:
    return Completion(text, usage=Usage(prompt, completion), model="m")


class Scripted:
    """Gives the outcomes of its script in turn, and `answer()` after them; counts what it is asked."""

    name = "scripted"

    def __init__(self, *script: Outcome, latency_s: float = 0.0) -> None:
        self.script = list(script)
        self.latency_s = latency_s
        self.asked: list[Request] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.closed = 0

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        outcome = self.script.pop(0) if self.script else answer()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        self.closed += 1


class Held:
    """Answers a request when the test says so, by its text."""

    name = "held"

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.calls: dict[str, asyncio.Future[Completion]] = {}
        self.texts: list[str] = []

    @property
    def in_flight(self) -> int:
        return len(self.calls)

    async def complete(self, request: Request) -> Completion:
        text = request.messages[-1].content
        self.texts.append(text)
        self.requests[text] = request
        self.calls[text] = asyncio.get_running_loop().create_future()
        try:
            return await self.calls[text]
        finally:
            del self.calls[text]

    def end(self, text: str, outcome: Outcome | None = None) -> None:
        outcome = outcome or answer()
        if isinstance(outcome, BaseException):
            self.calls[text].set_exception(outcome)
        else:
            self.calls[text].set_result(outcome)

    async def aclose(self) -> None: ...


class EchoAnswerer:
    """Answers with the last message and the seed: what the server serves in tests."""

    def answer(self, messages: tuple[Message, ...], sampling: Sampling, seed: int) -> Completion:
        text = f"{messages[-1].content} / {seed} / {sampling.temperature:g}"
        return Completion(text, usage=Usage(len(messages[-1].content), 3), model="echo-1")
