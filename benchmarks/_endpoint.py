"""A simulated endpoint in a process of its own, for benchmarks of clients.

`endpoint(...)` starts this file as a script; it prints its base URL, serves, and ends when its stdin is closed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.types import Completion, Message, Sampling, Usage

__all__ = ["Endpoint", "endpoint"]

_CANNED = "A rewritten instruction of about the usual length, the same for every prompt. " * 7


@dataclass(frozen=True)
class Endpoint:
    base_url: str

    def stats(self) -> dict[str, Any]:
        """What the server counted so far."""
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/stats") as reply:
            found: dict[str, Any] = json.load(reply)
            return found


class Canned:
    """Answers everything with the same text, so that the server costs as little as it can."""

    def answer(self, messages: tuple[Message, ...], sampling: Sampling, seed: int) -> Completion:
        return Completion(_CANNED, usage=Usage(200, 140), model="canned")


@contextmanager
def endpoint(*, canned: bool = False, **behaviour: Any) -> Iterator[Endpoint]:
    """A server with this `ServerBehaviour`, for the time of a ``with`` block."""
    server = subprocess.Popen(
        [sys.executable, __file__, json.dumps({"canned": canned, **behaviour})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield Endpoint(server.stdout.readline().strip())
    finally:
        server.stdin.close()
        server.wait(timeout=10)


async def _serve(canned: bool, behaviour: dict[str, Any]) -> None:
    answerer = Canned() if canned else SimulatedBackend()
    async with SimulatedServer(answerer, ServerBehaviour(**behaviour)) as server:
        print(server.base_url, flush=True)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wait_for_the_end() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait_for_the_end, daemon=True).start()
        await ended.wait()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    asyncio.run(_serve(options.pop("canned"), options))
