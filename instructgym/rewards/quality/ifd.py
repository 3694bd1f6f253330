"""Instruction-following difficulty: how little an instruction helps a local model to its answer."""

from __future__ import annotations

import math
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.local_transformers import LocalScorer, Unscored, open_scorer
from instructgym.rewards.base import AnswerReward
from instructgym.types import Instruction, Score

__all__ = ["IFD"]

RatioOf = Literal["loss", "perplexity"]


class IFD(AnswerReward):
    """The loss of the answer given the instruction / the loss of the answer alone, under a local model.

    Near 0 the instruction gives the answer away; near 1 it hardly helps, and the pair is difficult. Above `drop_above`
    it misleads: instruction and answer do not belong together, and such pairs are dropped from a selection (Li et al.,
    2308.12032). The ratio is known there, so the score is not missing: it is 0.0, the least, with the term
    ``ifd/dropped`` of 1.0. (A missing reward would end the episode as an outside failure, which a mismatched pair is
    not.)

    Both losses are means over the same tokens; see `LocalScorer`. Missing, with the term ``ifd/overflow`` or
    ``ifd/no_token``, where instruction and answer exceed the model's context or the answer has no token to predict.
    Terms: ``ifd/conditional`` and ``ifd/unconditional`` (nats a token), ``ifd/ratio``, ``ifd/dropped``.

    Args:
        expert: writes the answer to a rewrite.
        model: name or folder of a causal language model, or a scorer. A small one will do (Superfiltering, 2402.00530).
        drop_above: ratios above it are dropped; None drops none.
        ratio_of: ``loss``, or ``perplexity`` as Superfiltering writes it; 1 is the same point in both.
        device, dtype: as for `LocalScorer`; not read where `model` is a scorer.
    """

    name = "ifd"

    def __init__(
        self,
        expert: LLM | None = None,
        *,
        model: str | LocalScorer,
        drop_above: float | None = 1.0,
        ratio_of: RatioOf = "loss",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        super().__init__(expert)
        if drop_above is not None and not (math.isfinite(drop_above) and drop_above > 0):
            raise ConfigError(f"ifd got drop_above = {drop_above}; expected a number above 0, or none.")
        if ratio_of not in get_args(RatioOf):
            raise ConfigError(f"ifd got ratio_of = {ratio_of!r}; expected 'loss' or 'perplexity'.")
        self._scorer = open_scorer(model, device, dtype) if isinstance(model, str) else model
        self._drop_above = math.inf if drop_above is None else drop_above
        self._ratio_of = ratio_of

    async def score_answer(self, instruction: Instruction, answer: str) -> Score:
        given, alone = await self._scorer.losses([(instruction.render(), answer), ("", answer)])
        if isinstance(given, Unscored):
            return Score(None, {f"{self.name}/{given.value}": 1.0})
        if isinstance(alone, Unscored):
            return Score(None, {f"{self.name}/{alone.value}": 1.0})
        terms = {f"{self.name}/conditional": given.mean_nats, f"{self.name}/unconditional": alone.mean_nats}
        if alone.mean_nats <= 0.0:  # an answer that is certain by itself: no instruction can help to it
            return Score(None, terms)
        if self._ratio_of == "loss":
            ratio = given.mean_nats / alone.mean_nats
        else:
            ratio = math.exp(min(given.mean_nats - alone.mean_nats, 700.0))  # e^710 is no float
        dropped = ratio > self._drop_above
        value = 0.0 if dropped else ratio
        return Score(
            value,
            terms | {self.name: value, f"{self.name}/ratio": ratio, f"{self.name}/dropped": float(dropped)},
        )
