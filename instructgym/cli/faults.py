"""How a command ends: what is said of an error, and with which exit code.

0 done, 1 our bug, 2 the user's input, 3 budget spent, 4 finished with lost items, 5 an alignment was halted, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sqlite3
import sys
import threading
import traceback
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from instructgym.errors import BudgetExhausted, InstructGymError, TransientError

__all__ = [
    "BUG",
    "DONE",
    "INTERRUPTED",
    "LOST_ITEMS",
    "USER_INPUT",
    "GuardedGroup",
    "leave_now",
    "say",
    "show_warnings",
    "stand_down",
    "stop_on_sigint",
]

DONE, BUG, USER_INPUT, LOST_ITEMS, INTERRUPTED = 0, 1, 2, 4, 130
PATIENCE_S = 0.7  # from Ctrl-C to the end of the process, whatever still runs: a second, less what starting costs

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GO_ON = "The same command goes on from here; what was paid for is kept."
_interruption_said = threading.Event()
_deadline_holds = threading.Event()


def say(text: str = "") -> None:
    """A line for the user on stderr."""
    typer.echo(text, err=True)


class GuardedGroup(TyperGroup):
    """The root of all commands: turns what a command raises into words on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt:
            _interruption_said.set()
            say(f"interrupted. {_GO_ON}")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            raise typer.Exit(_tell(error)) from error


def _tell(error: Exception) -> int:
    """Say what went wrong; the exit code."""
    head = typer.style("error:", fg="red", bold=True)
    if isinstance(error, InstructGymError):
        say(f"{head} {error}")
        if isinstance(error, BudgetExhausted):
            say(
                "Raise that bound (e.g. --set budget.max_calls=N; a role's is budget.ROLE.max_calls) or drop it, and "
                "run the same command: it goes on from here; what was paid for is kept."
            )
        elif isinstance(error, TransientError):
            say(_GO_ON)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _let_go_of_stdout()
        return DONE
    if (isinstance(error, OSError) and error.errno in _DISK_FULL) or (
        isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    ):
        place = getattr(error, "filename", None)
        say(f"{head} the disk is full{f': {place}' if place else ''} ({error}). Free some space. {_GO_ON}")
        return USER_INPUT
    if isinstance(error, PermissionError):
        say(f"{head} {error.filename}: {error.strerror}. Choose another place, or change its permissions.")
        return USER_INPUT
    say("".join(traceback.format_exception(error)).rstrip())
    say(
        f"{head} this is a bug of InstructGym, not of your input. Please report it with the lines above, the command, "
        "and what `instructgym doctor` prints."
    )
    return BUG


def _say_interrupted() -> None:
    if not _interruption_said.is_set():
        _interruption_said.set()
        say(f"interrupted. {_GO_ON}")


def _let_go_of_stdout() -> None:
    # The reader (head, less) has closed the pipe: without this, Python complains again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _WarningLines(logging.Handler):
    """Warnings of the library as lines on stderr, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            say(f"{typer.style('warning:', fg='yellow')} {text}")


def show_warnings() -> None:
    """From now on what the library logs as a warning is shown."""
    logging.getLogger("instructgym").addHandler(_WarningLines())


def stop_on_sigint() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, and ends the process within a second even if that is not heeded.

    A library deep in native code may not look at signals, and threads that wait for an endpoint would hold the
    interpreter at its end. Nothing is lost by leaving them: an answer counts once it is committed, files are replaced
    as a whole.
    """

    def leave() -> None:
        if not _deadline_holds.is_set():
            return
        _say_interrupted()
        os._exit(INTERRUPTED)

    def on_sigint(signum: int, frame: FrameType | None) -> None:
        _deadline_holds.set()
        timer = threading.Timer(PATIENCE_S, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_sigint)


def leave_now() -> None:
    """End an interrupted command whose own clean-up is done: what large libraries tear down takes another second."""
    _say_interrupted()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)


def stand_down() -> None:
    """The command has taken the interruption into its own hands, and ends in its own time."""
    _deadline_holds.clear()
