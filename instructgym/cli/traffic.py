"""What a run asked of the models, and what it is going to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from instructgym.cli.faults import say
from instructgym.cli.tables import print_table

if TYPE_CHECKING:
    from instructgym.train.config import Config
    from instructgym.train.estimate import Estimate
    from instructgym.train.traffic import Traffic

__all__ = ["print_estimate", "print_traffic", "say_failures"]


def print_traffic(rows: Sequence[Traffic]) -> None:
    """What this process asked, by stage and role. Nothing, if it asked nothing."""
    from instructgym.train.traffic import Traffic

    if not rows:
        return
    columns = ("stage", "role", "calls", "hits", "attempts", "retries", "failed", "prompt tokens", "completion tokens")
    shown = [*rows, Traffic.total(rows)]
    priced = any(row.cost_usd for row in rows)
    table = [
        (
            *(row.stage, row.role, row.calls, row.hits, row.attempts, row.retries, row.failed),
            *(row.prompt_tokens, row.completion_tokens),
            *((_usd(row.cost_usd),) if priced else ()),
        )
        for row in shown
    ]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in table]
    print_table((*columns, "US$") if priced else columns, cells, left=2, title="Calls of this run")


def say_failures(folder: Path) -> None:
    """Which calls failed for good, by what was wrong with them."""
    from instructgym.llm_backends.ledger_rows import Failure
    from instructgym.llm_backends.ledger_selection import Selection
    from instructgym.llm_backends.ledger_store import SqliteStore

    with closing(SqliteStore(folder / "ledger.sqlite", read_only=True)) as store:
        outcomes = [row.outcome for row in store.rows(Selection(failed=True))]
    kinds = Counter(outcome.error for outcome in outcomes if isinstance(outcome, Failure))
    if kinds:
        counts = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common())
        say(f"calls that failed for good: {counts}; `instructgym ledger show {folder} --failed` lists them")


def print_estimate(found: Estimate, config: Config, folder: Path) -> None:
    """The dry run: a row a stage and role, what the ledger already holds, and what the budget does not allow."""
    from instructgym.train.estimate import over_budget

    priced = found.cost_usd is not None
    rows = [
        (
            *(row.stage, row.role, row.model, f"{row.calls:,}"),
            *(f"{count:,}" for count in (row.prompt_tokens, row.completion_tokens, row.tokens_at_most)),
            *((_usd(row.cost_usd), _usd(row.cost_usd_at_most)) if priced else ()),
        )
        for row in found.rows
    ]
    columns: tuple[str, ...] = (
        "stage",
        "role",
        "model",
        "calls",
        "prompt tokens",
        "completion tokens",
        "tokens at most",
    )
    total: tuple[str, ...] = (
        *("total", "", "", f"{found.calls:,}"),
        *(
            f"{sum(getattr(row, name) for row in found.rows):,}"
            for name in ("prompt_tokens", "completion_tokens", "tokens_at_most")
        ),
    )
    if priced:
        columns = (*columns, "US$", "US$ at most")
        total = (*total, _usd(found.cost_usd), _usd(sum(row.cost_usd_at_most or 0.0 for row in found.rows)))
    print_table(
        columns,
        [*rows, total],
        left=3,
        title="Dry run: nothing was asked, nothing was written",
        caption=f"From {found.sampled} chains of a random policy on the simulated backend; answers are as long as its "
        "own. At most: every byte of a prompt a token, every answer max_tokens long. Hits and retries are not counted.",
    )
    if not priced:
        unknown = ", ".join(sorted({row.model for row in found.rows if row.cost_usd is None}))
        say(
            f'no cost: set budget.prices."MODEL" = {{prompt = ..., completion = ...}} (US$ a million tokens) for '
            f"{unknown}"
        )
    _say_what_is_paid(folder)
    for line in over_budget(found, config):
        say(f"{line}: the run will stop there, and go on with a larger budget")


def _say_what_is_paid(folder: Path) -> None:
    from instructgym.llm_backends.ledger_store import SqliteStore

    path = folder / "ledger.sqlite"
    if not path.is_file():
        return
    with closing(SqliteStore(path, read_only=True)) as store:
        answered = sum(tally.calls for tally in store.tallies().values())
    say(f"{folder} already holds {answered:,} answers; what was asked before is not asked again")


def _usd(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"
