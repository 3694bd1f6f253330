"""The console script `instructgym`: the outermost layer, which nothing else imports."""

from instructgym.cli.app import app, main

__all__ = ["app", "main"]
