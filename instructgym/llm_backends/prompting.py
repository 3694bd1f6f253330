"""Fences: how a prompt carries somebody's text so that the text can neither close its fence nor pass for the prompt.

A fence's tag ends in a digest of the text. A text that holds its own closing tag would have to contain its own hash;
should that ever happen, the next salt is taken.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["fence", "fenced_blocks"]

_OPENING = re.compile(r"^<(([a-z_]+)-[0-9a-f]{8})>\n", re.M)


def fence(label: str, text: str) -> str:
    """`text` between ``<label-digest>`` and ``</label-digest>`` lines; `label` is lower-case letters and ``_``."""
    salt = 0
    while True:
        digest = hashlib.blake2b(f"{salt}:{text}".encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        if f"{label}-{digest}" not in text:
            return f"<{label}-{digest}>\n{text}\n</{label}-{digest}>"
        salt += 1


def fenced_blocks(prompt: str) -> dict[str, str]:
    """The fenced texts of a prompt by label (the first of each label): the inverse of `fence`."""
    blocks: dict[str, str] = {}
    end = 0
    for opening in _OPENING.finditer(prompt):
        if opening.start() < end:
            continue  # a line of the text before
        closing = f"\n</{opening[1]}>"
        stop = prompt.find(closing, opening.end())
        while stop >= 0 and prompt[stop + len(closing) : stop + len(closing) + 1] not in ("", "\n"):
            stop = prompt.find(closing, stop + 1)
        if stop >= 0:
            end = stop + len(closing)
            blocks.setdefault(opening[2], prompt[opening.end() : stop])
    return blocks
