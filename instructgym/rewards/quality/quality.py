"""How good the answer to the rewrite is, from 1 to 6 (Deita's quality scorer, arXiv 2312.15685, as a question)."""

from __future__ import annotations

from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import AnswerReward
from instructgym.rewards.judging.asking import PARSE_RETRIES, ask_until_read, check_retries
from instructgym.rewards.judging.quality import QUALITY_VERSION, quality_messages, read_quality
from instructgym.rewards.judging.rating import logprob_sampling
from instructgym.rewards.quality.scoring import check_flag, score_of
from instructgym.types import Instruction, Score

__all__ = ["Quality"]


class Quality(AnswerReward):
    """How good the reviewer finds the expert's answer to the rewrite, 1 to 6.

    Args:
        reviewer: who rates.
        expert: who answers; None if answers are given to `score_answer`.
        logprobs: the expectation over the score tokens, ``sum of k P(k)``, where the endpoint gives log-probabilities,
            else the written score.
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/unparsable`` counts replies that could not be read, ``/from_logprobs`` says where the score comes from if
    `logprobs` is set, ``/unanswered`` is 1.0 where the expert gave no whole answer.
    """

    name = "quality"

    def __init__(
        self, reviewer: LLM, expert: LLM | None = None, *, logprobs: bool = False, parse_retries: int = PARSE_RETRIES
    ) -> None:
        super().__init__(expert)
        self._reviewer = reviewer
        self._logprobs = check_flag(self.name, "logprobs", logprobs)
        self._retries = check_retries(self.name, parse_retries)

    async def score_answer(self, instruction: Instruction, answer: str) -> Score:
        judgement = await ask_until_read(
            self._reviewer,
            quality_messages(instruction, answer),
            prompt_version=QUALITY_VERSION,
            read=lambda completion: read_quality(completion, logprobs=self._logprobs),
            retries=self._retries,
            sampling=logprob_sampling(self._reviewer, self._logprobs),
        )
        return score_of(self.name, judgement, logprobs=self._logprobs)
