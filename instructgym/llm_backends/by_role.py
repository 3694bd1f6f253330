"""A transport for each role, below one ledger, one budget and one set of limits."""

from __future__ import annotations

from collections.abc import Mapping

from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.types import Completion, Request

__all__ = ["ByRole"]


class ByRole:
    """Hands each request to the transport of its role; roles may share one. A request of another role is a KeyError."""

    def __init__(self, transports: Mapping[str, LLMBackend]) -> None:
        self._transports = dict(transports)
        self._distinct = list({id(transport): transport for transport in transports.values()}.values())
        self.instant = all(map(is_instant, self._distinct))
        self.name = "+".join(dict.fromkeys(transport.name for transport in self._distinct))

    async def complete(self, request: Request) -> Completion:
        return await self._transports[request.role].complete(request)

    async def aclose(self) -> None:
        for transport in self._distinct:
            await transport.aclose()
