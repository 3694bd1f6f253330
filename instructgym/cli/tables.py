"""Tables on stdout."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "print_table", "print_text"]

PIPE_WIDTH = 140

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console() -> Console:
    """The console of stdout; a pipe is taken to be wide, so that tables in files are not wrapped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    caption: str | None = None,
    left: int = 1,
) -> None:
    """A table; the first `left` columns hold words and fold, the others numbers. None is shown as nothing."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD,
        title=Text(title) if title else None,
        caption=Text(caption) if caption else None,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        if index < left:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        # Text, not markup: an instruction may hold [brackets].
        table.add_row(*(Text("" if cell is None else _printable(str(cell))) for cell in row))
    console().print(table)


def print_text(text: str = "", *, style: str = "", indent: int = 0) -> None:
    """A text as it stands, never read as markup: wrapped to a terminal, line for line into a pipe."""
    text = _printable(text)
    if not sys.stdout.isatty():
        print(textwrap.indent(text, " " * indent))
        return
    from rich.padding import Padding
    from rich.text import Text

    console().print(Padding(Text(text, style=style), (0, 0, 0, indent)) if indent else Text(text, style=style))


def _printable(text: str) -> str:
    """Control characters as escapes: what a model wrote must not steer the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
