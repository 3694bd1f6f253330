"""Whether a rewrite is an instruction at all, from the texts alone: the gate before rewards that can be fooled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from instructgym.errors import ConfigError
from instructgym.metrics.faults import has_chatter, refuses, template_markers
from instructgym.metrics.text import count_words, has_only_stop_words
from instructgym.rewards.base import Reward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Instruction, Score, Transition

__all__ = ["MAX_WORDS", "Validity", "relatedness", "topic_test"]

MAX_WORDS = 320
"""No more than one in a thousand of 6,000 real instructions is longer than 240 words."""


def topic_test(name: str, changes_topic: Collection[str] | Callable[[str], bool]) -> Callable[[str], bool]:
    """Whether an operation is one of those, from what the reward `name` was given. `ConfigError` for a string."""
    if isinstance(changes_topic, str):
        raise ConfigError(
            f"{name} got changes_topic = {changes_topic!r}; expected a list of operations, or a function of a name."
        )
    return changes_topic if callable(changes_topic) else frozenset(changes_topic).__contains__


async def relatedness(encoder: Encoder, child: Instruction, parent: Instruction) -> float:
    """The cosine of a rewrite and its parent, with or without their inputs, whichever is larger.

    A large table that the rewrite brought along must not drown the words that it kept, and other words about the same
    data are on the subject still.
    """
    texts = [child.render(), parent.render()]
    if child.input or parent.input:
        texts += [child.text, parent.text]
    vectors = await encoder.encode(texts)
    return max(float(vectors[i] @ vectors[i + 1]) for i in range(0, len(texts), 2))


class Validity(Reward):
    """1.0 if a rewrite passes every check, else 0.0.

    Checks, each a term ``validity/<check>`` of 1.0 or 0.0: ``length`` (words within `min_words`..`max_words`),
    ``content`` (not function words alone), ``no_refusal``, ``no_leak``, ``no_chatter`` (what the parent has as well is
    not the rewrite's fault), and with an encoder ``relevant``: cosine to the parent of at least `relevance`.

    Args:
        encoder: None leaves relevance unchecked.
        relevance: the least cosine; None takes the encoder's `related_cosine`.
        changes_topic: operations that are meant to leave the parent's subject: their names, or a function of a name.
        extra_markers: further template words that must not appear.
    """

    name = "validity"

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        min_words: int = 2,
        max_words: int = MAX_WORDS,
        relevance: float | None = None,
        changes_topic: Collection[str] | Callable[[str], bool] = ("breadth",),
        extra_markers: Sequence[str] = (),
    ) -> None:
        if not 0 <= min_words <= max_words:
            raise ConfigError(
                f"validity got min_words = {min_words}, max_words = {max_words}; expected 0 <= min <= max."
            )
        if relevance is not None and not -1.0 <= relevance <= 1.0:
            raise ConfigError(f"validity got relevance = {relevance}; expected a cosine, -1 to 1.")
        if isinstance(extra_markers, str):
            raise ConfigError(f"validity got extra_markers = {extra_markers!r}; expected a list of words.")
        self._encoder = encoder
        self._words = (min_words, max_words)
        self._relevance = relevance
        self._changes_topic = topic_test(self.name, changes_topic)
        self._extra_markers = tuple(extra_markers)

    @property
    def instant(self) -> bool:
        return self._encoder is None or self._encoder.instant

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        checks = self._text_checks(transition.child, transition.parent)
        # An invalid text needs no vector.
        if self._encoder is not None and all(checks.values()) and not self._changes_topic(transition.operation):
            least = self._encoder.related_cosine if self._relevance is None else self._relevance
            cosine = await relatedness(self._encoder, transition.child, transition.parent)
            checks["relevant"] = cosine >= least
        value = float(all(checks.values()))
        return Score(value, {self.name: value} | {f"{self.name}/{check}": float(ok) for check, ok in checks.items()})

    def _text_checks(self, child: Instruction, parent: Instruction) -> dict[str, bool]:
        low, high = self._words
        written = child.text if child.input == parent.input else child.render()
        leaked = template_markers(written, self._extra_markers)
        return {
            "length": low <= count_words(child.text) <= high,
            "content": not has_only_stop_words(child.text),
            "no_refusal": not refuses(child.text) or refuses(parent.text),
            "no_leak": not leaked or leaked <= template_markers(parent.render(), self._extra_markers),
            "no_chatter": not has_chatter(child.text) or has_chatter(parent.text),
        }
