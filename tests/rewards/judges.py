"""A judge for tests: answers by script, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import math

from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.types import Completion, Sampling, TokenLogprob, Usage


class Judge:
    """Gives `script(request, k)` at its k-th request: a text, a `Completion`, or an exception to raise."""

    name = "scripted"

    def __init__(self, script):
        self.script, self.requests = script, []

    async def complete(self, request):
        self.requests.append(request)
        reply = self.script(request, len(self.requests) - 1)
        await asyncio.sleep(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(reply, usage=Usage(10, 2))

    async def aclose(self):
        pass


def judge(script, role="reviewer"):
    """An LLM that says `script` always (a string), in turn (a list, whose last entry stays), or by function."""
    if isinstance(script, str):
        answer = lambda request, k: script  # noqa: E731
    elif callable(script):
        answer = script
    else:
        replies = list(script)
        answer = lambda request, k: replies[min(k, len(replies) - 1)]  # noqa: E731
    return LLM(Judge(answer), role, "some-model", Sampling(temperature=0.0))


def tokens(*pieces):
    """A completion of these tokens; a dict of token to probability is one whose first key was drawn."""
    logprobs, text = [], ""
    for piece in pieces:
        odds = piece if isinstance(piece, dict) else {piece: 1.0}
        top = tuple((token, math.log(share)) for token, share in odds.items())
        logprobs.append(TokenLogprob(*top[0], top))
        text += top[0][0]
    return Completion(text, logprobs=tuple(logprobs))


def simulated(role="reviewer", seed=0, **sampling):
    """An LLM of the simulated backend."""
    return LLM(SimulatedBackend(seed), role, "simulated-1", Sampling(**sampling))
