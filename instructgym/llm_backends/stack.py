"""The one stack of wrappers: ledger -> retry -> budget -> limits -> transport (for endpoints: an `EndpointPool`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.budget import Budget, Budgeted, Spent
from instructgym.llm_backends.ledger import CallStats, Ledger
from instructgym.llm_backends.ledger_memory import MemoryStore
from instructgym.llm_backends.ledger_rows import Store
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.llm_backends.limits import Limited, Limits
from instructgym.llm_backends.retry import Retry
from instructgym.types import Usage

__all__ = ["BackendStack", "open_stack"]


@dataclass(frozen=True)
class BackendStack:
    """`backend` is what roles talk to. Close the stack in the event loop that used it."""

    backend: LLMBackend
    ledger: Ledger
    limited: Limited
    store: Store

    def stats(self) -> Mapping[tuple[str, str], CallStats]:
        """Counts by (role, stage); see `CallStats`."""
        return self.ledger.stats()

    async def aclose(self) -> None:
        """Cancel calls in flight, close the transport, commit what is queued. Closing twice does nothing."""
        try:
            await self.ledger.aclose()
        finally:
            self.store.close()


def open_stack(
    transport: LLMBackend,
    *,
    ledger_path: Path | None = None,
    run_seed: int = 0,
    max_attempts: int = 5,
    deadline_s: float | None = 600.0,
    backoff_s: float = 0.5,
    backoff_cap_s: float = 30.0,
    budget: Budget | None = None,
    limits: Limits | None = None,
    fsync: bool = False,
    retry_failed: bool = False,
) -> BackendStack:
    """Wrap `transport`. Without `ledger_path` the ledger is in memory and keeps the 200,000 calls used last.

    What the ledger already paid counts against `budget`. `run_seed` seeds the backoff's jitter; the request seeds are
    the transport's. Raises `RunFolderError` if the file is not a ledger that this version reads.
    """
    budget = budget or Budget()
    store: Store = MemoryStore() if ledger_path is None else SqliteStore(ledger_path, fsync=fsync)
    try:
        limited = Limited(transport, limits or Limits())
        budgeted = Budgeted(limited, budget, spent=_spent(store))
        retry = Retry(
            budgeted,
            max_attempts=max_attempts,
            deadline_s=deadline_s,
            backoff_s=backoff_s,
            backoff_cap_s=backoff_cap_s,
            jitter_seed=run_seed,
        )
        ledger = Ledger(retry, store, retry_failed=retry_failed)
        retry.on_attempt = ledger.note_attempt
    except BaseException:
        store.close()
        raise
    return BackendStack(backend=ledger, ledger=ledger, limited=limited, store=store)


def _spent(store: Store) -> list[Spent]:
    return [
        Spent(role, model, tally.attempts, Usage(tally.charged_prompt_tokens, tally.charged_completion_tokens))
        for (role, _, model), tally in store.tallies().items()
    ]
