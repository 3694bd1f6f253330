"""Neither gibberish nor boilerplate: an instruction whose perplexity lies within a band."""

from __future__ import annotations

import math

from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers import LocalScorer, Unscored, open_scorer
from instructgym.rewards.base import InstructionReward
from instructgym.types import Instruction, Score

__all__ = ["PerplexityBand"]


class PerplexityBand(InstructionReward):
    """1.0 where the instruction's perplexity under a local model is within [low, high], falling to 0.0 on both sides.

    Outside it falls linearly in log-perplexity and is 0 from `margin` nats on. Gibberish lies above the band, a text
    that repeats itself below it. The loss is that of the text by itself, input included; see `LocalScorer` for the
    first token. Term ``perplexity_band/nats``: the log-perplexity. Missing, with the term ``perplexity_band/overflow``
    or ``perplexity_band/no_token``, where the text exceeds the model's context or has no token to predict.

    Args:
        model: name or folder of a causal language model, or a scorer.
        low, high: perplexities a token, 1 or more. They are the model's own: take them from texts that are as they
            should be, such as the 2nd and 98th percentile of the seeds.
        margin: nats from the band's edge to 0.
        gain: score by how much the child exceeds the parent.
        device, dtype: as for `LocalScorer`; not read where `model` is a scorer.
    """

    name = "perplexity_band"

    def __init__(
        self,
        *,
        model: str | LocalScorer,
        low: float,
        high: float,
        margin: float = 1.0,
        gain: bool = False,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if not (1.0 <= low <= high < math.inf):
            raise ConfigError(f"perplexity_band got low = {low}, high = {high}; expected 1 <= low <= high.")
        if not (math.isfinite(margin) and margin > 0):
            raise ConfigError(f"perplexity_band got margin = {margin}; expected a number of nats above 0.")
        self._scorer = open_scorer(model, device, dtype) if isinstance(model, str) else model
        self._low, self._high = math.log(low), math.log(high)
        self._margin = margin
        self.gain = gain

    async def score_instruction(self, instruction: Instruction) -> Score:
        (loss,) = await self._scorer.losses([("", instruction.render())])
        if isinstance(loss, Unscored):
            return Score(None, {f"{self.name}/{loss.value}": 1.0})
        outside = max(self._low - loss.mean_nats, loss.mean_nats - self._high, 0.0)
        value = max(1.0 - outside / self._margin, 0.0)
        return Score(value, {self.name: value, f"{self.name}/nats": loss.mean_nats})
