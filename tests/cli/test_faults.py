from __future__ import annotations

import errno

import pytest
import typer
from typer.testing import CliRunner, Result

from instructgym.cli.faults import GuardedGroup
from instructgym.errors import BudgetExhausted, ConfigError, EndpointUnreachable, RewardError


def end_with(error: BaseException) -> Result:
    """What a command that raises `error` comes to."""
    app = typer.Typer(cls=GuardedGroup, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    return CliRunner().invoke(app, ["fail"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("no"), 2), (EndpointUnreachable("no"), 2), (RewardError("no"), 1)],
)
def test_our_errors_are_one_line_and_their_own_exit_code(error: Exception, code: int) -> None:
    result = end_with(error)
    assert (result.exit_code, result.stderr, result.stdout) == (code, "error: no\n", "")


def test_a_spent_budget_ends_with_3_and_says_how_to_go_on() -> None:
    result = end_with(BudgetExhausted("the budget of 5 calls is spent"))
    assert result.exit_code == 3
    assert result.stderr == (
        "error: the budget of 5 calls is spent\n"
        "Raise that bound (e.g. --set budget.max_calls=N; a role's is budget.ROLE.max_calls) or drop it, and run the "
        "same command: it goes on from here; what was paid for is kept.\n"
    )


def test_an_error_of_ours_to_fix_has_its_traceback_and_a_line_on_reporting_it() -> None:
    result = end_with(ZeroDivisionError("division by zero"))
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith(
        "error: this is a bug of InstructGym, not of your input. Please report it with the lines above, the command, "
        "and what `instructgym doctor` prints.\n"
    )


def test_an_interruption_ends_with_130_and_says_that_the_command_goes_on() -> None:
    result = end_with(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "interrupted. The same command goes on from here; what was paid for is kept.\n"


def test_a_full_disk_is_said_in_words() -> None:
    result = end_with(OSError(errno.ENOSPC, "No space left on device", "runs/a/lineage.jsonl"))
    assert result.exit_code == 2
    assert result.stderr == (
        "error: the disk is full: runs/a/lineage.jsonl ([Errno 28] No space left on device: 'runs/a/lineage.jsonl'). "
        "Free some space. The same command goes on from here; what was paid for is kept.\n"
    )


def test_a_place_that_may_not_be_written_is_the_users_to_change() -> None:
    result = end_with(PermissionError(errno.EACCES, "Permission denied", "/somewhere/secret"))
    assert result.exit_code == 2
    assert result.stderr == (
        "error: /somewhere/secret: Permission denied. Choose another place, or change its permissions.\n"
    )
