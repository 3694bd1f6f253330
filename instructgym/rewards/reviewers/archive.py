"""A reviewer LLM compares a rewrite with the nearest instructions that were kept before it."""

from __future__ import annotations

import numpy as np

from instructgym.llm_backends.base import LLM
from instructgym.rewards.archive.remembering import ArchiveReward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.encoders.base import Encoder
from instructgym.rewards.judging.asking import PARSE_RETRIES, check_retries
from instructgym.rewards.quality.scoring import check_flag
from instructgym.rewards.reviewers.equality import ask_equality_orders
from instructgym.rewards.reviewers.orders import Orders, check_orders
from instructgym.types import Instruction, Score, Transition, Usage

__all__ = ["ReviewerArchive"]


class ReviewerArchive(ArchiveReward):
    """1.0 if the reviewer finds the child equal to none of the nearest rewrites kept so far, 0.0 if to one.

    The value is the smallest P(not equal) over those members. While nothing is kept the child is compared with its
    parent. The memory is as of the last commit, so that all steps of a rollout are scored alike; it makes the reward
    change while an instructor learns.

    Args:
        reviewer: who is asked.
        encoder: says which members are near.
        k: how many members are asked about; with fewer kept, those there are.
        orders: ``both`` asks each pair in both orders, at the same time, and takes the mean of the two; ``forward``
            asks with the kept member first.
        parse_retries: how often an unparsable reply is asked for again, as another sample.
        logprobs: P(not equal) from the token at the verdict's place; as written where the endpoint gives none.

    Terms: ``/nearest``, the cosine to the nearest member, ``/member_0``... are the single values, best match first,
    ``/disagree`` counts members of which the two orders disagree, ``/unparsable`` counts replies that could not be
    read, ``/version`` and ``/size`` of the memory. One member that could not be read makes the value missing.
    """

    name = "reviewer_archive"

    def __init__(
        self,
        reviewer: LLM,
        encoder: Encoder,
        *,
        k: int = 1,
        orders: Orders = "both",
        parse_retries: int = PARSE_RETRIES,
        logprobs: bool = False,
    ) -> None:
        super().__init__(encoder, k=k, keep_texts=True)
        self._reviewer = reviewer
        self._orders = check_orders(self.name, orders)
        self._parse_retries = check_retries(self.name, parse_retries)
        self._logprobs = check_flag(self.name, "logprobs", logprobs)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        vector = (await self._encoder.encode([transition.child.render()]))[:1]
        ids, cosines = self.archive.nearest(vector, self._k)
        members = [Instruction(self.archive.text(int(entry))) for entry in ids[0]]
        asked = await gather(
            [
                ask_equality_orders(
                    self._reviewer,
                    member,
                    transition.child,
                    orders=self._orders,
                    parse_retries=self._parse_retries,
                    logprobs=self._logprobs,
                )
                for member in members or [transition.parent]
            ]
        )
        terms = {**self.facts, f"{self.name}/unparsable": float(sum(each.unparsable for each in asked))}
        if members:
            terms[f"{self.name}/nearest"] = float(np.max(cosines))
        if self._orders == "both":
            terms[f"{self.name}/disagree"] = float(sum(bool(each.disagree) for each in asked))
        values: list[float] = []
        for number, each in enumerate(asked):
            if each.value is not None:
                values.append(each.value)
                terms[f"{self.name}/member_{number}"] = each.value
        usage = sum((each.usage for each in asked), Usage())
        calls = sum(each.calls for each in asked)
        if len(values) < len(asked):
            return Score(None, terms, usage, calls)
        value = min(values)
        if self._logprobs:
            terms[f"{self.name}/from_logprobs"] = float(all(each.from_logprobs for each in asked))
        return Score(value, {self.name: value, **terms}, usage, calls)
