"""Several reviewers instead of one, whose single preferences weigh less together (arXiv 2404.18796)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.judging.asking import PARSE_RETRIES, check_retries
from instructgym.rewards.quality.scoring import check_flag, check_whole
from instructgym.rewards.reviewers.equality import ask_equality_orders
from instructgym.rewards.reviewers.gain import ask_gain_orders
from instructgym.rewards.reviewers.orders import BothOrders, Orders, check_orders
from instructgym.types import Instruction, Score, Transition, Usage

__all__ = ["ReviewerPanel"]

Question = Literal["equality", "gain"]
Rule = Literal["mean", "majority"]


class ReviewerPanel(Reward):
    """Several models of the reviewer's backend judge parent and child: their mean or majority, and how they agree.

    Args:
        reviewer: whose backend and sampling are used; its own model is asked only if `models` names it.
        models: who is on the panel.
        question: ``equality`` as `ReviewerEquality` asks, or ``gain`` as `ReviewerGain` does; both are 0 to 1.
        rule: ``mean`` of the members' values, or ``majority``: a value above 0.5 votes for 1, one below it for 0, and
            0.5 for neither; an even split is 0.5.
        quorum: how many members must be readable, or the score is missing; None takes more than half of the panel.
        orders: ``both`` or ``forward``, as in the two rewards.
        parse_retries: how often an unparsable reply is asked for again, as another sample.
        logprobs: probabilities at the verdict's or score's place; as written where the endpoint gives none.

    Terms: ``/member_0``... are the members' values in the order of `models`, ``/agreement`` is the share of pairs of
    readable members that vote alike (1.0 for one member), ``/missing`` counts members that could not be read,
    ``/disagree`` members whose own orders disagree, ``/unparsable`` replies that could not be read. A call that fails
    is an error, whichever member it was.
    """

    name = "reviewer_panel"

    def __init__(
        self,
        reviewer: LLM,
        models: Sequence[str] = (),
        *,
        question: Question = "equality",
        rule: Rule = "mean",
        quorum: int | None = None,
        orders: Orders = "both",
        parse_retries: int = PARSE_RETRIES,
        logprobs: bool = False,
    ) -> None:
        names = list(models) if isinstance(models, (list, tuple)) else []
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ConfigError(
                f"reviewer_panel got models = {models!r}; expected a list with one name of a model or more."
            )
        if len(set(names)) < len(names):
            raise ConfigError(f"reviewer_panel got models = {models!r}; expected each model once.")
        if question not in get_args(Question):
            raise ConfigError(f"reviewer_panel got question = {question!r}; expected 'equality' or 'gain'.")
        if rule not in get_args(Rule):
            raise ConfigError(f"reviewer_panel got rule = {rule!r}; expected 'mean' or 'majority'.")
        self._quorum = check_whole(self.name, "quorum", len(names) // 2 + 1 if quorum is None else quorum, 1)
        if self._quorum > len(names):
            raise ConfigError(
                f"reviewer_panel got quorum = {quorum} for {len(names)} models; expected no more than those."
            )
        self._members = [replace(reviewer, model=name) for name in names]
        self._question = question
        self._rule = rule
        self._orders = check_orders(self.name, orders)
        self._parse_retries = check_retries(self.name, parse_retries)
        self._logprobs = check_flag(self.name, "logprobs", logprobs)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        asked = await gather([self._ask(member, transition.parent, transition.child) for member in self._members])
        values = [each.value for each in asked if each.value is not None]
        terms = {
            f"{self.name}/member_{number}": each.value for number, each in enumerate(asked) if each.value is not None
        }
        terms[f"{self.name}/missing"] = float(len(asked) - len(values))
        terms[f"{self.name}/unparsable"] = float(sum(each.unparsable for each in asked))
        if self._orders == "both":
            terms[f"{self.name}/disagree"] = float(sum(bool(each.disagree) for each in asked))
        if self._logprobs and values:
            terms[f"{self.name}/from_logprobs"] = float(all(each.from_logprobs for each in asked))
        usage = sum((each.usage for each in asked), Usage())
        calls = sum(each.calls for each in asked)
        if values:
            terms[f"{self.name}/agreement"] = _agreement(values)
        if len(values) < self._quorum:
            return Score(None, terms, usage, calls)
        value = sum(values) / len(values) if self._rule == "mean" else _majority(values)
        return Score(value, {self.name: value, **terms}, usage, calls)

    async def _ask(self, member: LLM, parent: Instruction, child: Instruction) -> BothOrders:
        ask = ask_equality_orders if self._question == "equality" else ask_gain_orders
        return await ask(
            member,
            parent,
            child,
            orders=self._orders,
            parse_retries=self._parse_retries,
            logprobs=self._logprobs,
        )


def _vote(value: float) -> int:
    return (value > 0.5) - (value < 0.5)


def _majority(values: Sequence[float]) -> float:
    balance = sum(map(_vote, values))
    return 0.5 * (1 + (balance > 0) - (balance < 0))


def _agreement(values: Sequence[float]) -> float:
    pairs = list(combinations(map(_vote, values), 2))
    return sum(first == second for first, second in pairs) / len(pairs) if pairs else 1.0
