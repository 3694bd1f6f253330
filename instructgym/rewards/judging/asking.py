"""Asking a judge until its reply can be read: what cannot be read is counted, asked again, and never a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.types import Completion, Message, Sampling, Usage

__all__ = ["PARSE_RETRIES", "Judgement", "ask_until_read", "check_retries"]

T = TypeVar("T")

PARSE_RETRIES = 2
"""How often an unparsable reply is asked for again, unless a reward says otherwise."""


@dataclass(frozen=True, slots=True)
class Judgement(Generic[T]):
    """What a judge said: the value read, or None if no reply could be; how many replies could not."""

    value: T | None
    usage: Usage
    calls: int
    unparsable: int


async def ask_until_read(
    llm: LLM,
    messages: Sequence[Message],
    *,
    prompt_version: str,
    read: Callable[[Completion], T | None],
    retries: int = PARSE_RETRIES,
    draw: int = 0,
    sampling: Sampling | None = None,
) -> Judgement[T]:
    """Ask, and ask again with a fresh sample while `read` gives None; a cut reply is not read at all.

    Draw ``d`` of a prompt is the sample ``(d,)``, its a-th repetition ``(d, a)``, so that equal questions of different
    rewards and rules are one request. `read` sees the completion only: newly generated text, never the prompt.
    Raises `BackendError` if a call fails.
    """
    usage = Usage()
    for attempt in range(retries + 1):
        sample = (draw, attempt) if attempt else (draw,)
        completion = await llm.ask(messages, prompt_version=prompt_version, sample=sample, sampling=sampling)
        usage += completion.usage or Usage()
        value = None if completion.finish_reason == "length" else read(completion)
        if value is not None:
            return Judgement(value, usage, attempt + 1, attempt)
    return Judgement(None, usage, retries + 1, retries + 1)


def check_retries(name: str, retries: int) -> int:
    """`retries`, or a `ConfigError` that names the reward."""
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ConfigError(f"{name} got parse_retries = {retries!r}; expected 0 or more.")
    return retries
