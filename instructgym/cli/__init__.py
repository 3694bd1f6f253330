"""The console script `instructgym`: the outermost layer, which nothing else imports."""

from instructgym.cli.app import main

__all__ = ["main"]
