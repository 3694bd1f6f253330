"""Which of the waiting rows go into the next batch: a pure function of their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Size", "batch_area", "choose_batch"]


class Size(NamedTuple):
    """Tokens of one row: its prompt, and what it may generate at most."""

    prompt: int
    new: int


def batch_area(sizes: Sequence[Size]) -> int:
    """Tokens that a batch of these rows holds at most, padding included; 0 for none."""
    return len(sizes) * (max(size.prompt for size in sizes) + max(size.new for size in sizes)) if sizes else 0


def choose_batch(waiting: Sequence[Size], *, batch_tokens: int, max_rows: int) -> list[int]:
    """Indices into `waiting` (oldest first) of the rows to run now, in order of age; none only if nothing waits.

    The oldest row is always in, alone if it is larger than `batch_tokens`. The rest of the budget goes to the rows
    nearest to it in length (prompt and `new` together), older before younger at the same distance: a batch is padded
    to its longest row and runs until its last row ends, so alike rows waste least. Whoever is passed over becomes the
    oldest in at most as many batches as there are rows before it.
    """
    if not waiting:
        return []
    oldest = waiting[0]
    chosen, prompt, new = [0], oldest.prompt, oldest.new
    length = prompt + new
    for index in sorted(range(1, len(waiting)), key=lambda i: (abs(sum(waiting[i]) - length), i)):
        if len(chosen) == max_rows:
            break
        wider, longer = max(prompt, waiting[index].prompt), max(new, waiting[index].new)
        if (len(chosen) + 1) * (wider + longer) <= batch_tokens:
            chosen.append(index)
            prompt, new = wider, longer
    return sorted(chosen)
