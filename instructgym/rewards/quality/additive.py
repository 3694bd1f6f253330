"""Points for the answer to the rewrite: the additive judge of Self-Rewarding LMs (arXiv 2401.10020)."""

from __future__ import annotations

from dataclasses import replace

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import AnswerReward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.judging.additive import ADDITIVE_VERSION, additive_messages, read_additive
from instructgym.rewards.judging.asking import PARSE_RETRIES, Judgement, ask_until_read, check_retries
from instructgym.rewards.judging.rating import Rating, logprob_sampling
from instructgym.rewards.quality.scoring import check_flag, check_number, check_whole
from instructgym.types import Instruction, Score, Usage

__all__ = ["AdditiveJudge"]


class AdditiveJudge(AnswerReward):
    """How many of five points the reviewer gives the expert's answer, 0 to 5, averaged over several draws.

    Args:
        reviewer: who judges.
        expert: who answers; None if answers are given to `score_answer`.
        draws: how many judgements are averaged. At least two of them must be readable (one, if one is drawn), or the
            score is missing.
        temperature: of the reviewer if several are drawn; a single one is drawn at the reviewer's own temperature.
        logprobs: the expectation over the score tokens in place of the written score; with ``draws = 1`` only.
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/draws_valid`` counts the draws that could be read, ``/spread`` is the highest score minus the lowest of
    them, ``/unparsable`` counts replies that could not be read, ``/from_logprobs`` says where the score comes from if
    `logprobs` is set, ``/unanswered`` is 1.0 where the expert gave no whole answer.
    """

    name = "additive_judge"

    def __init__(
        self,
        reviewer: LLM,
        expert: LLM | None = None,
        *,
        draws: int = 3,
        temperature: float = 0.7,
        logprobs: bool = False,
        parse_retries: int = PARSE_RETRIES,
    ) -> None:
        super().__init__(expert)
        self._reviewer = reviewer
        self._draws = check_whole(self.name, "draws", draws, 1)
        self._temperature = check_number(self.name, "temperature", temperature)
        self._logprobs = check_flag(self.name, "logprobs", logprobs)
        self._retries = check_retries(self.name, parse_retries)
        if logprobs and draws != 1:
            raise ConfigError(
                f"{self.name} got logprobs = True with draws = {draws}; expected draws = 1, for the expectation takes "
                "the place of averaging."
            )

    async def score_answer(self, instruction: Instruction, answer: str) -> Score:
        judgements = await gather([self._ask(instruction, answer, draw) for draw in range(self._draws)])
        ratings = [judgement.value for judgement in judgements if judgement.value is not None]
        usage = sum((judgement.usage for judgement in judgements), Usage())
        calls = sum(judgement.calls for judgement in judgements)
        terms = {
            f"{self.name}/draws_valid": float(len(ratings)),
            f"{self.name}/unparsable": float(sum(judgement.unparsable for judgement in judgements)),
        }
        if len(ratings) < min(2, self._draws):
            return Score(None, terms, usage, calls)
        values = [rating.value for rating in ratings]
        terms[self.name] = sum(values) / len(values)
        terms[f"{self.name}/spread"] = max(values) - min(values)
        if self._logprobs:
            terms[f"{self.name}/from_logprobs"] = float(ratings[0].from_logprobs)
        return Score(terms[self.name], terms, usage, calls)

    async def _ask(self, instruction: Instruction, answer: str, draw: int) -> Judgement[Rating]:
        sampling = logprob_sampling(self._reviewer, self._logprobs)
        if self._draws > 1:
            sampling = replace(self._reviewer.sampling, temperature=self._temperature)
        return await ask_until_read(
            self._reviewer,
            additive_messages(instruction, answer),
            prompt_version=ADDITIVE_VERSION,
            read=lambda completion: read_additive(completion, logprobs=self._logprobs),
            retries=self._retries,
            draw=draw,
            sampling=sampling,
        )
