"""Whether the rewrite can be answered as it stands."""

from __future__ import annotations

from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import InstructionReward
from instructgym.rewards.judging.answerability import (
    ANSWERABILITY_VERSION,
    ANSWERABLE,
    answerability_messages,
    read_answerability,
)
from instructgym.rewards.judging.asking import PARSE_RETRIES, ask_until_read, check_retries
from instructgym.rewards.judging.rating import Rating, logprob_sampling
from instructgym.rewards.quality.scoring import check_flag, score_of
from instructgym.types import Completion, Instruction, Score

__all__ = ["Answerability"]


class Answerability(InstructionReward):
    """1.0 if the reviewer finds that the rewrite can be answered as it stands, else 0.0; a gate for other rewards.

    It can if it is an instruction at all, lacks nothing that it refers to and does not contradict itself.

    Args:
        reviewer: who checks.
        logprobs: P(answerable) at the verdict's place where the endpoint gives log-probabilities, else 1.0 or 0.0. A
            reviewer that reasons first has mostly made up its mind by then.
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/unparsable`` counts replies that could not be read, ``/from_logprobs`` says where the score comes from if
    `logprobs` is set.
    """

    name = "answerability"

    def __init__(self, reviewer: LLM, *, logprobs: bool = False, parse_retries: int = PARSE_RETRIES) -> None:
        self._reviewer = reviewer
        self._logprobs = check_flag(self.name, "logprobs", logprobs)
        self._retries = check_retries(self.name, parse_retries)

    async def score_instruction(self, instruction: Instruction) -> Score:
        judgement = await ask_until_read(
            self._reviewer,
            answerability_messages(instruction),
            prompt_version=ANSWERABILITY_VERSION,
            read=self._read,
            retries=self._retries,
            sampling=logprob_sampling(self._reviewer, self._logprobs),
        )
        return score_of(self.name, judgement, logprobs=self._logprobs)

    def _read(self, completion: Completion) -> Rating | None:
        ruling = read_answerability(completion, logprobs=self._logprobs)
        return None if ruling is None else Rating(ruling.shares[ANSWERABLE], ruling.from_logprobs)
