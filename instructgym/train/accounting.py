"""Logical calls: what the run asked, whether the ledger knew the answer or not.

Paid calls are in the ledger; they depend on what was paid before. What stands in a summary must not, so it is counted
here, above the ledger.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from instructgym.errors import BackendError
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.train.bounded import ENDS_THE_RUN
from instructgym.types import Completion, Request

__all__ = ["EVOL_INSTRUCT_CALLS", "CountingBackend"]

EVOL_INSTRUCT_CALLS = 52_000 * 4 * 3
"""Evol-Instruct's cost as published: 52k instructions x 4 epochs x 3 calls (arXiv 2304.12244)."""


@dataclass
class Count:
    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class CountingBackend:
    """Passes requests on to `inner` and counts them by (stage, role).

    `fatal` is the first failure that makes every further call pointless, for callers whose own code swallows it.
    """

    def __init__(self, inner: LLMBackend) -> None:
        self.name = inner.name
        self.instant = is_instant(inner)
        self._inner = inner
        self._counts: dict[tuple[str, str], Count] = {}
        self.fatal: BackendError | None = None

    async def complete(self, request: Request) -> Completion:
        count = self._counts.get((request.stage, request.role))
        if count is None:
            count = self._counts[request.stage, request.role] = Count()
        count.calls += 1
        try:
            completion = await self._inner.complete(request)
        except BackendError as error:
            count.failed += 1
            if self.fatal is None and isinstance(error, ENDS_THE_RUN):
                self.fatal = error
            raise
        if completion.usage is not None:
            count.prompt_tokens += completion.usage.prompt_tokens
            count.completion_tokens += completion.usage.completion_tokens
        return completion

    async def aclose(self) -> None:
        await self._inner.aclose()

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """One row a role that `stage` asked, by name."""
        return [
            {"stage": stage, "role": role, **asdict(count)}
            for (of_stage, role), count in sorted(self._counts.items())
            if of_stage == stage
        ]
