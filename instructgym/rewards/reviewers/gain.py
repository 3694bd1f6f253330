"""A reviewer LLM says how much a rewrite adds to its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.judging.asking import PARSE_RETRIES, Judgement, ask_until_read, check_retries
from instructgym.rewards.judging.gain import GAIN_SCALE, GAIN_VERSION, gain_messages, read_gain
from instructgym.rewards.judging.rating import Rating, logprob_sampling
from instructgym.rewards.quality.scoring import check_flag, check_number, check_whole
from instructgym.rewards.reviewers.orders import BothOrders, Orders, check_orders
from instructgym.types import Instruction, Score, Transition, Usage

__all__ = ["ReviewerGain", "ask_gain", "ask_gain_orders"]


async def ask_gain(
    llm: LLM,
    first: Instruction,
    second: Instruction,
    *,
    draw: int = 0,
    temperature: float | None = None,
    parse_retries: int = PARSE_RETRIES,
    logprobs: bool = False,
) -> Judgement[Rating]:
    """Ask once what the second instruction adds to the first, 0 to 1; `temperature` None is the LLM's own.

    Unparsable and cut replies are asked for again. Raises `BackendError` if a call fails.
    """
    sampling = logprob_sampling(llm, logprobs) or llm.sampling
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    judgement = await ask_until_read(
        llm,
        gain_messages(first, second),
        prompt_version=GAIN_VERSION,
        read=lambda completion: read_gain(completion, logprobs=logprobs),
        retries=parse_retries,
        draw=draw,
        sampling=sampling,
    )
    if judgement.value is None:
        return judgement
    low, high = GAIN_SCALE
    share = (judgement.value.value - low) / (high - low)
    return replace(judgement, value=replace(judgement.value, value=share))


async def ask_gain_orders(
    llm: LLM,
    origin: Instruction,
    child: Instruction,
    *,
    orders: Orders = "both",
    draws: int = 1,
    temperature: float | None = None,
    parse_retries: int = PARSE_RETRIES,
    logprobs: bool = False,
) -> BothOrders:
    """`ask_gain` of the child over the origin and, for ``both``, of the origin over the child, at the same time.

    An order is the mean of its draws, missing if fewer than two of them (one, if one is drawn) could be read. The value
    of both is gain minus loss, no less than 0; they disagree if each instruction is said to add much to the other.
    """
    pairs = [(origin, child), (child, origin)][: 2 if orders == "both" else 1]
    judgements = await gather(
        [
            ask_gain(llm, *pair, draw=draw, temperature=temperature, parse_retries=parse_retries, logprobs=logprobs)
            for pair in pairs
            for draw in range(draws)
        ]
    )
    gain = _mean(judgements[:draws])
    loss = _mean(judgements[draws:]) if len(pairs) == 2 else 0.0
    value, disagree = None, None
    if gain is not None and loss is not None:
        value = max(gain - loss, 0.0)
        disagree = min(gain, loss) > 0.5 if len(pairs) == 2 else None
    return BothOrders(
        value=value,
        forward=gain,
        backward=loss if len(pairs) == 2 else None,
        disagree=disagree,
        usage=sum((judgement.usage for judgement in judgements), Usage()),
        calls=sum(judgement.calls for judgement in judgements),
        unparsable=sum(judgement.unparsable for judgement in judgements),
        from_logprobs=all(judgement.value.from_logprobs for judgement in judgements if judgement.value is not None),
    )


def _mean(draws: Sequence[Judgement[Rating]]) -> float | None:
    values = [draw.value.value for draw in draws if draw.value is not None]
    return sum(values) / len(values) if len(values) >= min(2, len(draws)) else None


class ReviewerGain(Reward):
    """How much the reviewer says the child adds to its parent, less what it says is lost: 0 to 1.

    The question is on a scale of 0 (nothing, or something was lost) to 5 (very much).

    Args:
        reviewer: who is asked.
        orders: ``both`` also asks what the parent has beyond the child, and takes it off, so that a rewrite that left
            its subject gains nothing by it; below 0 it is 0. ``forward`` asks for the gain alone.
        draws: how many judgements of an order are averaged. At least two of them must be readable (one, if one is
            drawn), or the score is missing.
        temperature: of the reviewer if several are drawn; a single one is drawn at the reviewer's own temperature.
        logprobs: the expectation over the score tokens; as written where the endpoint gives none.
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/forward`` is the gain, ``/backward`` the loss, ``/disagree`` is 1.0 where both are above 0.5,
    ``/unparsable`` counts replies that could not be read; with `logprobs`, ``/from_logprobs`` says whether all come
    from them.
    """

    name = "reviewer_gain"

    def __init__(
        self,
        reviewer: LLM,
        orders: Orders = "both",
        *,
        draws: int = 1,
        temperature: float = 0.7,
        logprobs: bool = False,
        parse_retries: int = PARSE_RETRIES,
    ) -> None:
        self._reviewer = reviewer
        self._orders = check_orders(self.name, orders)
        self._draws = check_whole(self.name, "draws", draws, 1)
        self._temperature = check_number(self.name, "temperature", temperature)
        self._logprobs = check_flag(self.name, "logprobs", logprobs)
        self._parse_retries = check_retries(self.name, parse_retries)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        asked = await ask_gain_orders(
            self._reviewer,
            transition.parent,
            transition.child,
            orders=self._orders,
            draws=self._draws,
            temperature=self._temperature if self._draws > 1 else None,
            parse_retries=self._parse_retries,
            logprobs=self._logprobs,
        )
        return asked.score(self.name, logprobs=self._logprobs)
