"""Frozen value objects that every part of InstructGym speaks. Imports nothing of the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Choice",
    "Completion",
    "Elimination",
    "Instruction",
    "Message",
    "Request",
    "Sample",
    "Sampling",
    "Score",
    "Seed",
    "TokenLogprob",
    "Transition",
    "Usage",
]

Sample = tuple[int, ...]
"""The caller's index of a draw, e.g. ``(chain_draw, step)``; equal requests differ by it alone."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `role` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """The text being evolved, with the optional `input` it works on (as in Alpaca)."""

    text: str
    input: str = ""

    def render(self) -> str:
        """The text as one user message: instruction, blank line, input."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


@dataclass(frozen=True, slots=True)
class Seed:
    """Where an episode or a chain starts. `topic` is empty when the source names none."""

    id: str
    instruction: Instruction
    topic: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of a request.

    `n` choices are drawn for one prompt. `extra` holds further body fields as (name, JSON text) pairs, such as
    ``("response_format", '{"type": "json_object"}')``.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    n: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an LLM.

    `role` is who is asked (``expert``, ``reviewer``, ``judge``, ...). `stage` says which part of a run asks; it is
    for accounting and not part of the request's identity, so two stages that ask the same thing pay once.
    """

    role: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    prompt_version: str
    sample: Sample = (0,)
    stage: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its log-probability (nats) and the likeliest alternatives at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A further answer to the same prompt (`Sampling.n` > 1)."""

    text: str
    finish_reason: str = "stop"
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `finish_reason` is ``stop``, ``length`` or what the endpoint said; `usage` None = not reported.

    With `Sampling.n` > 1 the first choice is the answer and `others` holds the rest; `usage` covers all.
    """

    text: str
    finish_reason: str = "stop"
    usage: Usage | None = None
    model: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    others: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Elimination:
    """A rule rejected a rewrite; the parent stays. `reason` is the rule's name, `detail` is for people."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """One attempted rewrite. `child` is None if nothing could be parsed; `reply` is the expert's text, unparsed."""

    seed: Instruction
    parent: Instruction
    operation: str
    child: Instruction | None
    step: int
    horizon: int
    elimination: Elimination | None = None
    reply: str = ""
    prompt_version: str = ""

    @property
    def accepted(self) -> bool:
        """True if the child takes the parent's place."""
        return self.elimination is None and self.child is not None


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward says of a transition. None means missing, which is never the same as 0."""

    value: float | None
    terms: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    calls: int = 0
