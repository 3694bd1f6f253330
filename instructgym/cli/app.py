"""The command tree. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from instructgym.cli import align, bench, catalog, configs, doctor, evaluate, ledger, runs, serve, stages, tune
from instructgym.cli.faults import INTERRUPTED, GuardedGroup, leave_now, show_warnings, stop_on_sigint

__all__ = ["app", "main"]

app = typer.Typer(
    name="instructgym",
    cls=GuardedGroup,
    help="Evolve instructions with a learned instructor, and turn them into training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take half of the time that --help has
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (stages, align, tune, evaluate, runs, bench, catalog, configs, ledger, doctor, serve):
    module.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    from instructgym import __version__

    typer.echo(__version__)


def main() -> None:
    """Entry point of the console script."""
    stop_on_sigint()
    for stream in (sys.stdout, sys.stderr):
        # Instructions come in every script; a terminal that cannot show one must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    show_warnings()
    try:
        app(prog_name="instructgym")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            leave_now()
        raise
