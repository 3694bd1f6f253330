"""Elimination: rules that reject a rewrite; the parent stays and the instructor is penalised.

After WizardLM (arXiv 2304.12244), with more of what real rewriters do wrong. A fault that the parent has too is not
the rewrite's, so no rule punishes an instructor for the seed it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from instructgym.envs.operations import ActionSet
from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM, is_instant
from instructgym.metrics.faults import has_chatter, refuses, template_markers
from instructgym.metrics.structure import coverage, structured_blocks
from instructgym.metrics.text import count_words, has_only_stop_words, normalise
from instructgym.plugins import nearest
from instructgym.rewards.control.validity import MAX_WORDS, relatedness
from instructgym.rewards.encoders.base import Encoder
from instructgym.rewards.reviewers.equality import ask_equality
from instructgym.types import Elimination, Instruction, Transition, Usage

__all__ = ["CUT", "DEFAULT_RULES", "RULES", "EliminationRules", "Inspection", "cut"]

CUT = "cut"
MAX_CHARACTERS = 3_000
_KEPT = 0.5  # the share of a block's words and numbers that a rewrite must still hold

RULES: Mapping[str, str] = {
    "empty": "no text, or nothing but function words and punctuation",
    "copy": "the parent again, up to case, spacing and punctuation",
    "refusal": "the expert declines to rewrite",
    "chatter": "talk around the rewrite, such as 'Sure, here is ...' or 'Let me know if ...'",
    "leak": "words of the prompt's or a chat template that the parent does not have",
    "too_long": "over the cap in words or in characters",
    "lost_input": "a table, code or list of the parent, or its input, is gone (operations that keep the topic)",
    "off_topic": "far from the parent in the encoder's space (operations that keep the topic)",
    "no_gain": "the reviewer finds it equal to the parent",
}
"""Every rule, in the order in which they run: texts alone first, then the encoder, then the reviewer."""

DEFAULT_RULES: tuple[str, ...] = tuple(name for name in RULES if name != "no_gain")


def cut(finish_reason: str) -> Elimination | None:
    """The elimination of a reply that ran into its token limit; the dynamics applies it whatever rules are on."""
    return Elimination(CUT, "the reply ran into the token limit") if finish_reason == "length" else None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the rules said, and what asking the reviewer took."""

    elimination: Elimination | None
    usage: Usage = field(default_factory=Usage)
    calls: int = 0


class EliminationRules:
    """Runs the named rules on a transition; the first that rejects it gives the reason.

    Args:
        names: rules of `RULES`; they run in the order of `RULES`, the cheap ones first, whatever their order here.
        encoder: for ``off_topic``.
        reviewer: for ``no_gain``, which asks the question of the reward `ReviewerEquality` in its forward order: the
            very same request, so a ledger pays for it once.
        changes_topic: the operations that are exempt from ``lost_input`` and ``off_topic``: an action set, names, or a
            function of a name.
        max_words, max_characters: the caps of ``too_long``, on what the rewrite wrote.
        off_topic_distance: the largest 1 - cosine to the parent; None takes the encoder's own measure.
        extra_markers: further template words for ``leak``.
        parse_retries: how often ``no_gain`` asks again when a reply cannot be read; then it keeps the rewrite.

    Raises:
        ConfigError: an unknown rule, or one whose encoder or reviewer is missing.
    """

    def __init__(
        self,
        names: Sequence[str] = DEFAULT_RULES,
        *,
        encoder: Encoder | None = None,
        reviewer: LLM | None = None,
        changes_topic: ActionSet | Collection[str] | Callable[[str], bool] = ("breadth",),
        max_words: int = MAX_WORDS,
        max_characters: int = MAX_CHARACTERS,
        off_topic_distance: float | None = None,
        extra_markers: Sequence[str] = (),
        parse_retries: int = 2,
    ) -> None:
        for name in names:
            if name not in RULES:
                raise ConfigError(f"unknown elimination rule '{name}'; {nearest(name, RULES)}")
        for name, part, need in (("off_topic", encoder, "an encoder"), ("no_gain", reviewer, "a reviewer")):
            if name in names and part is None:
                raise ConfigError(f"elimination rule '{name}' needs {need}, got None; pass one or leave the rule out.")
        self.names = tuple(name for name in RULES if name in names)
        self._encoder = encoder
        self._reviewer = reviewer
        self._changes_topic = _predicate(changes_topic)
        self._max_words = max_words
        self._max_characters = max_characters
        self._off_topic_distance = off_topic_distance
        self._extra_markers = tuple(extra_markers)
        self._parse_retries = parse_retries
        texts: dict[str, Callable[[Instruction, Instruction], str | None]] = {
            "empty": _empty,
            "copy": _copy,
            "refusal": _refusal,
            "chatter": _chatter,
            "leak": self._leak,
            "too_long": self._too_long,
        }
        self._text_rules = [(name, rule) for name, rule in texts.items() if name in self.names]

    @property
    def instant(self) -> bool:
        """Whether nothing that the rules ask makes them wait."""
        parts = [part for part in (self._encoder, self._reviewer) if part is not None]
        return all(map(is_instant, parts))

    async def check(self, transition: Transition, *, finish_reason: str = "stop") -> Elimination | None:
        """Why the transition is rejected, or None. Raises `BackendError` if the encoder or the reviewer fails."""
        return (await self.inspect(transition, finish_reason=finish_reason)).elimination

    async def inspect(self, transition: Transition, *, finish_reason: str = "stop") -> Inspection:
        """`check`, with the usage and the number of the reviewer's requests."""
        elimination = cut(finish_reason) or self.check_text(transition)
        if elimination is not None or transition.child is None:
            return Inspection(elimination)
        if "off_topic" in self.names and self._encoder is not None and not self._changes_topic(transition.operation):
            elimination = await self._off_topic(self._encoder, transition.child, transition.parent)
            if elimination is not None:
                return Inspection(elimination)
        if "no_gain" in self.names and self._reviewer is not None:
            return await self._no_gain(self._reviewer, transition.child, transition.parent)
        return Inspection(None)

    def check_text(self, transition: Transition) -> Elimination | None:
        """The rules that need the texts alone."""
        child, parent = transition.child, transition.parent
        if child is None:
            return Elimination("empty", "the reply holds no instruction")
        for name, rule in self._text_rules:
            detail = rule(child, parent)
            if detail is not None:
                return Elimination(name, detail)
        if "lost_input" in self.names and not self._changes_topic(transition.operation):
            detail = _lost_input(child, parent)
            if detail is not None:
                return Elimination("lost_input", detail)
        return None

    def _leak(self, child: Instruction, parent: Instruction) -> str | None:
        written = child.text if child.input == parent.input else child.render()
        leaked = template_markers(written, self._extra_markers)
        if leaked:
            leaked -= template_markers(parent.render(), self._extra_markers)
        return f"holds template words: {', '.join(sorted(leaked))}" if leaked else None

    def _too_long(self, child: Instruction, parent: Instruction) -> str | None:
        written = child.text if child.input == parent.input else child.render()
        if len(written) > self._max_characters:
            return f"{len(written)} characters, the cap is {self._max_characters}"
        number = count_words(written)
        return f"{number} words, the cap is {self._max_words}" if number > self._max_words else None

    async def _off_topic(self, encoder: Encoder, child: Instruction, parent: Instruction) -> Elimination | None:
        cosine = await relatedness(encoder, child, parent)
        cap = 1.0 - encoder.related_cosine if self._off_topic_distance is None else self._off_topic_distance
        if 1.0 - cosine <= cap:
            return None
        return Elimination("off_topic", f"distance to the parent {1.0 - cosine:.2f}, the cap is {cap:.2f}")

    async def _no_gain(self, reviewer: LLM, child: Instruction, parent: Instruction) -> Inspection:
        verdict = await ask_equality(reviewer, parent, child, parse_retries=self._parse_retries)
        equal = verdict.not_equal is not None and verdict.not_equal < 0.5
        why = Elimination("no_gain", "the reviewer finds it equal to the parent") if equal else None
        return Inspection(why, verdict.usage, verdict.calls)


def _predicate(changes_topic: ActionSet | Collection[str] | Callable[[str], bool]) -> Callable[[str], bool]:
    if isinstance(changes_topic, ActionSet):
        operations = changes_topic.operations
        return frozenset(operation.name for operation in operations if operation.changes_topic).__contains__
    return changes_topic if callable(changes_topic) else frozenset(changes_topic).__contains__


def _empty(child: Instruction, parent: Instruction) -> str | None:
    return "nothing but function words and punctuation" if has_only_stop_words(child.text) else None


def _copy(child: Instruction, parent: Instruction) -> str | None:
    text = normalise(child.text)
    if child.input and normalise(child.input) != normalise(parent.input):
        return None  # the same words with new data are a new task
    if text == normalise(parent.text) or (parent.input and text == normalise(parent.render())):
        return "the parent up to case, spacing and punctuation"
    return None


def _refusal(child: Instruction, parent: Instruction) -> str | None:
    return "the expert declines" if refuses(child.text) and not refuses(parent.text) else None


def _chatter(child: Instruction, parent: Instruction) -> str | None:
    if has_chatter(child.text):
        return None if has_chatter(parent.text) else "talk around the instruction"
    # Below data that the rewrite supplied; where the input is prose, such a line may be part of it (a letter, say).
    if child.input != parent.input and structured_blocks(child.input) and has_chatter(child.render()):
        return "talk below the input"
    return None


def _lost_input(child: Instruction, parent: Instruction) -> str | None:
    whole = child.render()
    if parent.input and child.input != parent.input and coverage(parent.input, whole) < _KEPT:
        return "the parent's input is gone"
    for block in structured_blocks(parent.text):
        if coverage(block.text, whole) < _KEPT:
            return f"the parent's {block.kind} is gone"
    return None
