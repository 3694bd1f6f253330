"""Which of the prompts that a model wrote are kept: the filters of Self-Instruct (arXiv 2212.10560, appendix A)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from instructgym.errors import ConfigError
from instructgym.metrics.faults import has_chatter, leaks_template, refuses
from instructgym.metrics.text import count_words, normalise, words
from instructgym.train.alignment.contamination import Contamination
from instructgym.train.alignment.rouge_index import RougeIndex

__all__ = ["FILTER_REASONS", "PromptFilter"]

FILTER_REASONS = {
    "too_short": "fewer words than the least",
    "too_long": "more words than the most",
    "other_media": "it speaks of what a text model has not: a picture, a file, a map, a drawing, a place to go to",
    "write_a_program": "it begins with 'Write a program'",
    "starts_with_punctuation": "it begins with a punctuation mark",
    "starts_with_non_ascii": "it begins with a character that is not ASCII",
    "not_a_prompt": "a refusal, talk around a prompt, or words of a template",
    "contaminated": "it shares a run of words with an evaluation set",
    "duplicate": "equal to one before, but for case, spacing and punctuation",
    "similar": "its ROUGE-L with one before is above the limit",
}
"""What `PromptFilter.check` may say, in the order in which it looks."""

_OTHER_MEDIA = re.compile(r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go[ \t]+to)\b", re.I)
_PROGRAM = re.compile(r"write[ \t]+a[ \t]+program\b", re.I)


class PromptFilter:
    """Takes prompts one after the other; each is compared with the seeds and with those accepted before it.

    Args:
        seeds: prompts that are there already; they are compared with, and not checked themselves.
        max_rouge: a ROUGE-L F1 above it is too similar; at it, it is not. 1 leaves the comparison out.
        min_words, max_words: the fewest and the most words of a prompt (`metrics.text.count_words`).
        decontaminate: evaluation prompts to keep out (see `Contamination`).
        decontaminate_words: the run of words that makes a prompt contaminated.
        other_media: drop prompts that need what a text model has not.
        ascii_start: drop prompts that do not begin in ASCII, as Self-Instruct does; False for other languages.

    Raises:
        ConfigError: limits that no prompt can meet, or a `max_rouge` outside 0..1.
    """

    def __init__(
        self,
        seeds: Iterable[str],
        *,
        max_rouge: float = 0.7,
        min_words: int = 4,
        max_words: int = 150,
        decontaminate: Iterable[str] = (),
        decontaminate_words: int = 13,
        other_media: bool = True,
        ascii_start: bool = True,
    ) -> None:
        if not 1 <= min_words <= max_words:
            raise ConfigError(
                f"the prompt filter got min_words = {min_words} and max_words = {max_words}; expected "
                "1 <= min_words <= max_words."
            )
        if not 0.0 <= max_rouge <= 1.0:
            raise ConfigError(f"the prompt filter got max_rouge = {max_rouge}; expected a number from 0 to 1.")
        if decontaminate_words < 1:
            raise ConfigError(f"the prompt filter got decontaminate_words = {decontaminate_words}; expected 1 or more.")
        self._min_words, self._max_words = min_words, max_words
        self._other_media, self._ascii_start = other_media, ascii_start
        self._evaluation = Contamination(decontaminate, n=decontaminate_words, least=min(4, decontaminate_words))
        self._similar = RougeIndex(max_rouge)
        self._known: set[str] = set()
        for seed in seeds:
            self.accept(seed)

    def __len__(self) -> int:
        """How many prompts a new one is compared with."""
        return len(self._similar)

    def check(self, text: str) -> str | None:
        """Why a prompt is dropped (a key of `FILTER_REASONS`, the first that holds); None if it may be kept."""
        stripped = text.strip()
        reason = self._own_faults(stripped)
        if reason is not None:
            return reason
        if self._evaluation.holds(stripped):
            return "contaminated"
        if normalise(stripped) in self._known:
            return "duplicate"
        return "similar" if self._similar.has_similar(stripped) else None

    def accept(self, text: str) -> None:
        """From now on prompts are compared with this one, whatever `check` says of it."""
        stripped = text.strip()
        self._known.add(normalise(stripped))
        self._similar.add(stripped)

    def _own_faults(self, text: str) -> str | None:
        count = count_words(text)
        if count < self._min_words or not words(text):
            return "too_short"
        if count > self._max_words:
            return "too_long"
        if self._other_media and _OTHER_MEDIA.search(text):
            return "other_media"
        if _PROGRAM.match(text):
            return "write_a_program"
        if unicodedata.category(text[0])[0] == "P":
            return "starts_with_punctuation"
        if self._ascii_start and not text[0].isascii():
            return "starts_with_non_ascii"
        if refuses(text) or has_chatter(text) or leaks_template(text):
            return "not_a_prompt"
        return None
