"""A reviewer LLM says whether a rewrite differs from where it came from (TeaMs-RL, arXiv 2403.08694; 2304.12244)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.judging.asking import PARSE_RETRIES, ask_until_read, check_retries
from instructgym.rewards.judging.equality import EQUALITY_VERSION, equality_messages, read_equality
from instructgym.rewards.judging.rating import logprob_sampling
from instructgym.rewards.quality.scoring import check_flag
from instructgym.rewards.reviewers.orders import BothOrders, Orders, check_orders
from instructgym.types import Instruction, Score, Transition, Usage

__all__ = ["ReviewerEquality", "Verdict", "ask_equality", "ask_equality_orders"]

Against = Literal["parent", "seed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reviewer said. `not_equal` is 1.0, 0.0, a probability between, or None if no reply could be parsed."""

    not_equal: float | None
    usage: Usage
    calls: int
    unparsable: int = 0
    from_logprobs: bool = False


async def ask_equality(
    llm: LLM, first: Instruction, second: Instruction, *, parse_retries: int = PARSE_RETRIES, logprobs: bool = False
) -> Verdict:
    """Ask whether two instructions are equal; unparsable and cut replies are asked for again.

    The rewards and the elimination rule "no_gain" all ask through here, so that their requests are the same ones
    (those with `logprobs` are requests of their own). `logprobs` asks the endpoint for P(not equal); where it gives
    none, the written verdict counts. Raises `BackendError` if a call fails.
    """
    judgement = await ask_until_read(
        llm,
        equality_messages(first, second),
        prompt_version=EQUALITY_VERSION,
        read=lambda completion: read_equality(completion, logprobs=logprobs),
        retries=parse_retries,
        sampling=logprob_sampling(llm, logprobs),
    )
    rating = judgement.value
    return Verdict(
        None if rating is None else rating.value,
        judgement.usage,
        judgement.calls,
        judgement.unparsable,
        rating is not None and rating.from_logprobs,
    )


async def ask_equality_orders(
    llm: LLM,
    origin: Instruction,
    child: Instruction,
    *,
    orders: Orders = "both",
    parse_retries: int = PARSE_RETRIES,
    logprobs: bool = False,
) -> BothOrders:
    """`ask_equality` with the origin first and, for ``both``, with the child first, at the same time.

    The value is the mean of the orders: 0.5 where two written verdicts disagree.
    """
    pairs = [(origin, child), (child, origin)][: 2 if orders == "both" else 1]
    verdicts = await gather(
        [ask_equality(llm, *pair, parse_retries=parse_retries, logprobs=logprobs) for pair in pairs],
        instant=llm.instant,
    )
    sides = [verdict.not_equal for verdict in verdicts]
    read = [side for side in sides if side is not None]
    return BothOrders(
        value=sum(read) / len(read) if len(read) == len(sides) else None,
        forward=sides[0],
        backward=sides[1] if len(sides) == 2 else None,
        disagree=(read[0] > 0.5) != (read[1] > 0.5) if len(read) == 2 else None,
        usage=sum((verdict.usage for verdict in verdicts), Usage()),
        calls=sum(verdict.calls for verdict in verdicts),
        unparsable=sum(verdict.unparsable for verdict in verdicts),
        from_logprobs=all(verdict.from_logprobs for verdict in verdicts),
    )


class ReviewerEquality(Reward):
    """1.0 if the reviewer finds parent and child not equal, 0.0 if equal; None if it cannot be read.

    Args:
        reviewer: who is asked.
        orders: ``both`` asks with the parent first and with the child first, at the same time, and takes the mean:
            0.5 when the two disagree. ``forward`` asks once, parent first.
        against: what the child is compared with: the ``parent``, or the ``seed`` of the chain. For the nearest of all
            that was kept before there is `ReviewerArchive`.
        parse_retries: how often an unparsable reply is asked for again, as another sample.
        logprobs: P(not equal) from the token at the verdict's place; as written where the endpoint gives none.

    Terms: ``/forward`` and ``/backward`` are the single verdicts, ``/disagree`` is 1.0 when they fall on different
    sides, ``/unparsable`` counts replies that could not be read; with `logprobs`, ``/from_logprobs`` says whether the
    value comes from them.
    """

    name = "reviewer_equality"

    def __init__(
        self,
        reviewer: LLM,
        orders: Orders = "both",
        *,
        against: Against = "parent",
        parse_retries: int = PARSE_RETRIES,
        logprobs: bool = False,
    ) -> None:
        if against not in get_args(Against):
            hint = " The reward 'reviewer_archive' compares with the archive." if str(against) == "archive" else ""
            raise ConfigError(f"reviewer_equality got against = {against!r}; expected 'parent' or 'seed'.{hint}")
        self._reviewer = reviewer
        self._orders = check_orders(self.name, orders)
        self._against = against
        self._parse_retries = check_retries(self.name, parse_retries)
        self._logprobs = check_flag(self.name, "logprobs", logprobs)

    @property
    def instant(self) -> bool:
        return self._reviewer.instant

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        origin = transition.seed if self._against == "seed" else transition.parent
        asked = await ask_equality_orders(
            self._reviewer,
            origin,
            transition.child,
            orders=self._orders,
            parse_retries=self._parse_retries,
            logprobs=self._logprobs,
        )
        return asked.score(self.name, logprobs=self._logprobs)
