"""`ledger stats|show|export`: what was asked and answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.faults import say
from instructgym.cli.tables import print_table, print_text
from instructgym.errors import RunFolderError

if TYPE_CHECKING:
    from instructgym.llm_backends.ledger_rows import LedgerRow, Tally
    from instructgym.llm_backends.ledger_store import SqliteStore

__all__ = ["register"]

group = typer.Typer(help="Look at the calls of a run.", no_args_is_help=True)

LedgerArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or a ledger file.")]
RoleOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this role (expert, reviewer).")]
StageOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this stage.")]


@group.command()
def stats(folder: LedgerArgument) -> None:
    """Count calls, failures, attempts and tokens by role, stage and model."""
    from instructgym.llm_backends.ledger_rows import Tally

    store = _open(folder)
    try:
        tallies = sorted(store.tallies().items())
    finally:
        store.close()
    total = Tally()
    for _, tally in tallies:
        total.add(tally)
    columns = ("role", "stage", "model", "answers", "failed", "attempts", "prompt tokens", "completion tokens")
    rows = [(*at, *_counts(tally)) for at, tally in tallies]
    print_table(columns, [*rows, ("total", "", "", *_counts(total))], left=3)


@group.command()
def show(
    folder: LedgerArgument,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="A call, by the first digits of its key.")] = "",
    role: RoleOption = None,
    stage: StageOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many calls.")] = 20,
) -> None:
    """List calls, or show one whole: the messages that were sent and the answer."""
    found = 0
    listed = []
    for row in _rows(folder, role, stage):
        if not row.key.startswith(key.lower()):
            continue
        found += 1
        if found > limit:
            continue
        if key:
            _print_call(row)
        else:
            sample = ",".join(str(part) for part in _request(row)["sample"])
            listed.append((row.key[:10], row.role, row.stage, sample, _one_line(_answer(row))))
    if key and not found:
        raise RunFolderError(
            f"{folder}: no call has a key that starts with '{key}'; `instructgym ledger show` lists them."
        )
    if not key:
        print_table(("key", "role", "stage", "sample", "answer"), listed, left=5)
    if found > limit:
        say(f"{found - limit} more; --limit shows them.")


@group.command()
def export(
    folder: LedgerArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to; else stdout.")] = None,
    role: RoleOption = None,
    stage: StageOption = None,
) -> None:
    """Write every call as a JSON line: key, role, stage, model, request, and the answer or the failure."""
    import json
    import sys

    stream = sys.stdout if out is None else out.open("w", encoding="utf-8", errors="surrogatepass")
    count = 0
    try:
        for row in _rows(folder, role, stage):
            stream.write(json.dumps(_as_json(row), ensure_ascii=out is None) + "\n")
            count += 1
    finally:
        if out is not None:
            stream.close()
    if out is not None:
        say(f"wrote {count} calls to {out}")


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="ledger")


def _open(folder: Path) -> SqliteStore:
    from instructgym.llm_backends.ledger_store import SqliteStore

    return SqliteStore(folder / "ledger.sqlite" if folder.is_dir() else folder, read_only=True)


def _counts(tally: Tally) -> tuple[int, ...]:
    return tally.calls, tally.failed, tally.attempts, tally.prompt_tokens, tally.completion_tokens


def _rows(folder: Path, role: str | None, stage: str | None) -> Any:
    store = _open(folder)
    try:
        for row in store.rows():
            if role in (None, row.role) and stage in (None, row.stage):
                yield row
    finally:
        store.close()


def _request(row: LedgerRow) -> dict[str, Any]:
    _, _, messages, sampling, prompt_version, sample = row.request
    names = ("temperature", "top_p", "max_tokens", "stop", "top_logprobs", "extra")
    return {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "sampling": dict(zip(names, sampling, strict=True)),
        "prompt_version": prompt_version,
        "sample": sample,
    }


def _as_json(row: LedgerRow) -> dict[str, Any]:
    import json

    from instructgym.llm_backends.ledger_rows import Failure, completion_to_json

    outcome = row.outcome
    result: dict[str, Any]
    if isinstance(outcome, Failure):
        result = {"failure": {"error": outcome.error, "message": outcome.message, "status": outcome.status}}
    else:
        result = {"completion": json.loads(completion_to_json(outcome))}
    return {
        "key": row.key,
        "role": row.role,
        "stage": row.stage,
        "model": row.model,
        "request": _request(row),
        **result,
    }


def _answer(row: LedgerRow) -> str:
    from instructgym.llm_backends.ledger_rows import Failure

    outcome = row.outcome
    return f"failed: {outcome.error}: {outcome.message}" if isinstance(outcome, Failure) else outcome.text


def _one_line(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def _print_call(row: LedgerRow) -> None:
    request = _request(row)
    print_text(f"{row.key}  {row.role}  {row.stage}  {row.model}  sample {request['sample']}", style="bold")
    for message in request["messages"]:
        print_text(f"{message['role']}:", style="dim", indent=2)
        print_text(message["content"], indent=4)
    print_text("answer:", style="dim", indent=2)
    print_text(_answer(row), indent=4)
