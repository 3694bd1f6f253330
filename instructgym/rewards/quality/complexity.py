"""How complex the rewrite is, from 1 to 6 (Deita's complexity scorer, arXiv 2312.15685, as a question)."""

from __future__ import annotations

from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import InstructionReward
from instructgym.rewards.judging.asking import PARSE_RETRIES, ask_until_read, check_retries
from instructgym.rewards.judging.complexity import COMPLEXITY_VERSION, complexity_messages, read_complexity
from instructgym.rewards.judging.rating import logprob_sampling
from instructgym.rewards.quality.scoring import check_flag, score_of
from instructgym.types import Instruction, Score

__all__ = ["Complexity"]


class Complexity(InstructionReward):
    """How complex the reviewer finds the rewrite, 1 to 6; with gain, how much more complex than its parent.

    Args:
        reviewer: who rates. Deita trained a scorer for it; any LLM, or that scorer behind an endpoint, does here.
        logprobs: the expectation over the score tokens, ``sum of k P(k)``, where the endpoint gives log-probabilities,
            else the written score.
        gain: score the child minus the parent (-5 to 5).
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/unparsable`` counts replies that could not be read, ``/from_logprobs`` says where the score comes from if
    `logprobs` is set, ``/child`` and ``/parent`` are the two ratings of a gain.
    """

    name = "complexity"

    def __init__(
        self, reviewer: LLM, *, logprobs: bool = False, gain: bool = False, parse_retries: int = PARSE_RETRIES
    ) -> None:
        self._reviewer = reviewer
        self._logprobs = check_flag(self.name, "logprobs", logprobs)
        self.gain = check_flag(self.name, "gain", gain)
        self._retries = check_retries(self.name, parse_retries)

    async def score_instruction(self, instruction: Instruction) -> Score:
        judgement = await ask_until_read(
            self._reviewer,
            complexity_messages(instruction),
            prompt_version=COMPLEXITY_VERSION,
            read=lambda completion: read_complexity(completion, logprobs=self._logprobs),
            retries=self._retries,
            sampling=logprob_sampling(self._reviewer, self._logprobs),
        )
        return score_of(self.name, judgement, logprobs=self._logprobs)
