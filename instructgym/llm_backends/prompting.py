"""Fences: how a prompt carries somebody's text so that the text can neither close its fence nor pass for the prompt.

A fence's tag ends in a digest of the text. A text that holds its own closing tag would have to contain its own hash;
should that ever happen, the next salt is taken.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["fence", "fenced_blocks"]

_BLOCK = re.compile(
    r"^<(?P<label>[a-z_]+)-(?P<digest>[0-9a-f]{8})>\n(?P<text>.*?)\n</(?P=label)-(?P=digest)>$", re.S | re.M
)


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
    for match in _BLOCK.finditer(prompt):
        blocks.setdefault(match["label"], match["text"])
    return blocks
