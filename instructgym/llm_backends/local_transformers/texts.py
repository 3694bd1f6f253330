"""From generated token ids to text: what an answer says, where a stop string ends it, how one token reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

__all__ = ["Texts", "cut_at_stop"]

_MARGIN_TOKENS = 8


class Texts:
    """Reads the ids of one tokenizer. Special tokens read as nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor: int = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        self._anchor_text = self.text([self._anchor])
        self.piece = lru_cache(maxsize=65_536)(self._piece)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def holds_stop(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether one of the stop strings ends with the last token or stands shortly before it."""
        # A token is at least one byte, so this tail holds the longest stop string; the rest was looked at before.
        tail = max(len(text.encode()) for text in stop) + _MARGIN_TOKENS
        ending = self.text(ids[-tail:])
        return any(text in ending for text in stop)

    def tokens_before(self, ids: Sequence[int], characters: int) -> int:
        """How many of the ids it takes to write the first `characters` of their text."""
        count = len(ids)
        while count and len(self.text(ids[: count - 1])) >= characters:
            count -= 1
        return count

    def _piece(self, token: int) -> str:
        """One token as it reads in the middle of a text, with the space that some decoders take from the first."""
        return self.text([self._anchor, token]).removeprefix(self._anchor_text)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    found = [position for position in (text.find(one) for one in stop) if position >= 0]
    return (text[: min(found)], True) if found else (text, False)
