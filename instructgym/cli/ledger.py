"""`ledger stats|show|export|import|prune`: what was asked and answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instructgym.cli.faults import say
from instructgym.cli.tables import print_table, print_text
from instructgym.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from instructgym.llm_backends.ledger_rows import LedgerRow, Tally
    from instructgym.llm_backends.ledger_store import SqliteStore
    from instructgym.llm_backends.ledger_transfer import Imported
    from instructgym.types import Choice, Completion

__all__ = ["register"]

group = typer.Typer(help="Look at the calls of a run, publish them, take in those of others.", no_args_is_help=True)

LedgerArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or a ledger file.")]
RoleOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this role (expert, reviewer).")]
StageOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only calls that this stage asked first.")]
ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only calls to this model.")]
SHOWN_CONFLICTS = 5
SHOWN_TOKENS = 200


@group.command()
def stats(folder: LedgerArgument) -> None:
    """Count calls, failures, attempts and tokens by role, stage and model."""
    from instructgym.llm_backends.ledger_rows import Tally

    with closing(_open(folder)) as store:
        tallies = sorted(store.tallies().items())
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
    failed: Annotated[bool, typer.Option("--failed", help="Only calls that failed for good.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many calls.")] = 20,
) -> None:
    """List calls, or show one whole: the messages that were sent and the answer."""
    from itertools import islice

    from instructgym.llm_backends.ledger_selection import Selection

    selection = Selection(key=key.lower(), role=role, stage=stage, failed=failed)
    with closing(_open(folder)) as store:
        found = store.count(selection)
        rows = list(islice(store.rows(selection), limit))
    if key and not rows:
        raise RunFolderError(
            f"{folder}: no call has a key that starts with '{key}'; `instructgym ledger show` lists them."
        )
    if key:
        for row in rows:
            _print_call(row)
    else:
        print_table(("key", "role", "stage", "sample", "answer"), map(_listed, rows), left=5)
    if found > limit:
        say(f"{found - limit} more; --limit shows them.")


@group.command()
def export(
    folder: LedgerArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to, gzipped if it ends in .gz; else stdout.")
    ] = None,
    role: RoleOption = None,
    stage: StageOption = None,
) -> None:
    """Write every call as a JSON line: key, role, stage, model, request, and the answer or the failure.

    That is all that `import` and the replay backend need; what was paid stays in the ledger.
    """
    import sys

    from instructgym.llm_backends.ledger_lines import to_line, write_lines
    from instructgym.llm_backends.ledger_selection import Selection

    with closing(_open(folder)) as store:
        rows = store.rows(Selection(role=role, stage=stage))
        if out is not None:
            say(f"wrote {write_lines(out, rows)} calls to {out}")
            return
        for row in rows:
            sys.stdout.buffer.write(to_line(row))
        sys.stdout.buffer.flush()


@group.command("import")
def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run's folder, or a ledger file; made if it is not there.")
    ],
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="What export wrote, a ledger file, or a run's folder.")
    ],
) -> None:
    """Take in the calls that a ledger lacks, so that a run there finds them answered.

    All of them or, on any error, none. No answer is overwritten; a failure gives way to an answer. What is taken in
    counts as answers and not as attempts, and is charged to no budget. Each key is computed anew from its request.
    """
    from instructgym.llm_backends.ledger_transfer import import_calls

    with _held(folder) as ledger:
        results = import_calls(ledger, sources)
    for source, result in zip(sources, results, strict=True):
        _say_imported(folder, source, result)


@group.command()
def prune(
    folder: LedgerArgument,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only calls that failed for good; they are asked again.")
    ] = False,
    role: RoleOption = None,
    stage: StageOption = None,
    model: ModelOption = None,
    prompt_version: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only calls with this version of a prompt (rewrite/1).")
    ] = None,
    key: Annotated[str, typer.Option(metavar="KEY", help="Only calls whose key starts like this.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Drop calls from a ledger and shrink its file: those for which all that you give holds.

    A stage that is finished stays so; one that runs asks again what it lacks, and that is paid again.
    What was paid stays counted: attempts, tokens and budgets do not change.
    """
    from instructgym.llm_backends.ledger_selection import Selection
    from instructgym.llm_backends.ledger_transfer import prune as drop

    selection = Selection(key.lower(), role, stage, model, prompt_version, failed)
    if selection.everything:
        raise ConfigError(
            "nothing says what to drop; "
            "give at least one of --failed, --role, --stage, --model, --prompt-version and --key"
        )
    if dry_run:
        pruned = drop(_ledger(folder), selection, dry_run=True)
    else:
        _open(folder).close()  # or the folder would be made
        with _held(folder) as ledger:
            pruned = drop(ledger, selection)
    answers = sum(tally.calls for tally in pruned.dropped.values())
    failures = sum(tally.failed for tally in pruned.dropped.values())
    if not pruned.dropped:
        say("no call fits; nothing is dropped")
        return
    rows = [(*at, tally.calls, tally.failed) for at, tally in sorted(pruned.dropped.items())]
    print_table(("role", "stage", "model", "answers", "failed"), [*rows, ("total", "", "", answers, failures)], left=3)
    if dry_run:
        say(f"{answers + failures} calls would be dropped")
    else:
        say(
            f"dropped {answers + failures} calls; the file went from {_size(pruned.bytes_before)} to "
            f"{_size(pruned.bytes_after)}"
        )


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="ledger")


def _ledger(folder: Path) -> Path:
    from instructgym.llm_backends.ledger_file import ledger_path

    return ledger_path(folder)


def _open(folder: Path) -> SqliteStore:
    from instructgym.llm_backends.ledger_store import SqliteStore

    return SqliteStore(_ledger(folder), read_only=True)


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """The ledger of `folder`, which no run may use meanwhile; a run's folder is locked, and made if need be."""
    from instructgym.llm_backends.ledger_file import LEDGER_NAME
    from instructgym.train.run_folder import RunFolder

    is_file = folder.is_file() or (not folder.exists() and folder.suffix != "")
    is_runs = not (folder / LEDGER_NAME).exists() or (folder / "run.json").exists() or (folder / ".lock").exists()
    if is_file:
        yield folder
    elif is_runs:
        with RunFolder.hold(folder):
            yield folder / LEDGER_NAME
    else:  # a ledger that was copied without its run
        yield folder / LEDGER_NAME


def _counts(tally: Tally) -> tuple[int, ...]:
    return tally.calls, tally.failed, tally.attempts, tally.prompt_tokens, tally.completion_tokens


def _say_imported(folder: Path, source: Path, result: Imported) -> None:
    parts = [f"{result.new} new", f"{result.known} known"]
    if result.replaced:
        parts.append(f"{result.replaced} in place of a failure")
    if result.conflicting:
        parts.append(f"{len(result.conflicting)} with another answer than ours, which is kept")
    say(f"{source}: {', '.join(parts)}")
    for key in result.conflicting[:SHOWN_CONFLICTS]:
        say(f"  kept: instructgym ledger show {folder} {key[:10]}")
    if len(result.conflicting) > SHOWN_CONFLICTS:
        say(f"  and {len(result.conflicting) - SHOWN_CONFLICTS} more")


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"


def _sample(row: LedgerRow) -> str:
    return ",".join(str(part) for part in row.request.sample)


def _listed(row: LedgerRow) -> tuple[str, ...]:
    return row.key[:10], row.request.role, row.request.stage, _sample(row), _one_line(_answer(row))


def _answer(row: LedgerRow) -> str:
    from instructgym.llm_backends.ledger_rows import Failure

    outcome = row.outcome
    return f"failed: {outcome.error}: {outcome.message}" if isinstance(outcome, Failure) else outcome.text


def _one_line(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def _print_call(row: LedgerRow) -> None:
    from instructgym.llm_backends.ledger_lines import sampling_to_value
    from instructgym.llm_backends.ledger_rows import Failure

    request = row.request
    print_text(f"{row.key}  {request.role}  {request.stage}  {request.model}  sample {_sample(row)}", style="bold")
    asked = {**sampling_to_value(request), "prompt": request.prompt_version}
    parameters = [f"{name} {value}" for name, value in asked.items() if value not in (None, ())]
    print_text(", ".join(parameters), style="dim", indent=2)
    for message in request.messages:
        print_text(f"{message.role}:", style="dim", indent=2)
        print_text(message.content, indent=4)
    if isinstance(row.outcome, Failure):
        print_text("answer:", style="dim", indent=2)
        print_text(_answer(row), indent=4)
        return
    choices: tuple[Completion | Choice, ...] = (row.outcome, *row.outcome.others)
    for number, choice in enumerate(choices, start=1):
        which = "" if len(choices) == 1 else f" {number} of {len(choices)}"
        ending = "" if choice.finish_reason == "stop" else f" ({choice.finish_reason})"
        print_text(f"answer{which}{ending}:", style="dim", indent=2)
        print_text(choice.text, indent=4)
        if choice.logprobs:
            _print_logprobs(choice)


def _print_logprobs(choice: Completion | Choice) -> None:
    tokens = choice.logprobs
    total = sum(token.logprob for token in tokens)
    print_text(f"log-probabilities: {total:.4f} in all, {len(tokens)} tokens", style="dim", indent=2)
    for token in tokens[:SHOWN_TOKENS]:
        others = ", ".join(f"{other!r} {logprob:.4f}" for other, logprob in token.top if other != token.token)
        print_text(f"{token.token!r} {token.logprob:.4f}{f'  ({others})' if others else ''}", indent=4)
    if len(tokens) > SHOWN_TOKENS:
        print_text(f"and {len(tokens) - SHOWN_TOKENS} more; `ledger export` has them all", indent=4)
