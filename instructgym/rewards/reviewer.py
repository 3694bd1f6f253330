"""A reviewer LLM says whether a rewrite differs from its parent (TeaMs-RL, arXiv 2403.08694; 2304.12244)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.prompts import EQUALITY_VERSION, equality_messages, not_equal_probability, parse_equality
from instructgym.types import Instruction, Score, Transition, Usage

__all__ = ["ReviewerEquality", "Verdict", "ask_equality"]

Orders = Literal["both", "forward"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reviewer said. `not_equal` is 1.0, 0.0, a probability between, or None if no reply could be parsed."""

    not_equal: float | None
    usage: Usage
    calls: int


async def ask_equality(
    llm: LLM, first: Instruction, second: Instruction, *, parse_retries: int = 2, use_logprobs: bool = False
) -> Verdict:
    """Ask whether two instructions are equal; unparsable and cut replies are asked for again.

    The reward and the elimination rule "no_gain" both ask through here, so that their requests are the same ones: the
    k-th attempt is the sample ``(k,)`` of one prompt. Raises `BackendError` if a call fails.
    """
    messages = equality_messages(first, second)
    usage = Usage()
    for attempt in range(parse_retries + 1):
        completion = await llm.ask(messages, prompt_version=EQUALITY_VERSION, sample=(attempt,))
        usage += completion.usage or Usage()
        equal = None if completion.finish_reason == "length" else parse_equality(completion.text)
        if equal is None:
            continue
        probability = not_equal_probability(completion.text, completion.logprobs) if use_logprobs else None
        return Verdict(float(not equal) if probability is None else probability, usage, attempt + 1)
    return Verdict(None, usage, parse_retries + 1)


class ReviewerEquality(Reward):
    """1.0 if the reviewer finds parent and child not equal, 0.0 if equal; None if it cannot be read.

    Args:
        llm: the reviewer.
        orders: ``both`` asks with the parent first and with the child first, at the same time, and takes the mean:
            0.5 when the two disagree. ``forward`` asks once, parent first.
        parse_retries: how often an unparsable reply is asked for again, as another sample.
        use_logprobs: take P(not equal) of the first token where a reply is a bare verdict with log-probabilities.

    Terms: ``/forward`` and ``/backward`` are the single verdicts, ``/disagree`` is 1.0 when they fall on different
    sides, ``/unparsable`` counts the orders that could not be read.
    """

    name = "reviewer_equality"

    def __init__(
        self, llm: LLM, orders: Orders = "both", *, parse_retries: int = 2, use_logprobs: bool = False
    ) -> None:
        if orders not in get_args(Orders):
            raise ConfigError(f"reviewer_equality got orders = {orders!r}; expected 'both' or 'forward'.")
        if parse_retries < 0:
            raise ConfigError(f"reviewer_equality got parse_retries = {parse_retries}; expected 0 or more.")
        if use_logprobs and not llm.sampling.top_logprobs:
            raise ConfigError(
                f"reviewer_equality has use_logprobs, but the reviewer's sampling.top_logprobs is "
                f"{llm.sampling.top_logprobs}; set it to 5 or so, or turn use_logprobs off."
            )
        self._llm = llm
        self._orders = orders
        self._parse_retries = parse_retries
        self._use_logprobs = use_logprobs

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        pairs = {"forward": (transition.parent, transition.child)}
        if self._orders == "both":
            pairs["backward"] = (transition.child, transition.parent)
        verdicts = await gather(
            [
                ask_equality(
                    self._llm, first, second, parse_retries=self._parse_retries, use_logprobs=self._use_logprobs
                )
                for first, second in pairs.values()
            ]
        )
        terms: dict[str, float] = {}
        values: list[float] = []
        for order, verdict in zip(pairs, verdicts, strict=True):
            if verdict.not_equal is not None:
                values.append(verdict.not_equal)
                terms[f"{self.name}/{order}"] = verdict.not_equal
        unparsable = len(verdicts) - len(values)
        terms[f"{self.name}/unparsable"] = float(unparsable)
        value = None if unparsable else sum(values) / len(values)
        if value is not None:
            terms[self.name] = value
            if len(values) == 2:
                terms[f"{self.name}/disagree"] = float((values[0] > 0.5) != (values[1] > 0.5))
        usage = Usage()
        for verdict in verdicts:
            usage += verdict.usage
        return Score(value, terms, usage, sum(verdict.calls for verdict in verdicts))
