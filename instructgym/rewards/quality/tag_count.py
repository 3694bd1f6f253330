"""How many intents the rewrite has (InsTag's measure of complexity, arXiv 2308.07074)."""

from __future__ import annotations

from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import InstructionReward
from instructgym.rewards.judging.asking import PARSE_RETRIES, check_retries
from instructgym.rewards.judging.tags import ask_tags
from instructgym.rewards.quality.scoring import check_flag
from instructgym.types import Instruction, Score

__all__ = ["TagCount"]


class TagCount(InstructionReward):
    """How many distinct intent tags the reviewer gives the rewrite; with gain, how many more than its parent.

    The tags themselves come from `rewards.judging.tags.ask_tags`, which asks the same question. They are folded in
    case, spacing and punctuation; InsTag also merges synonyms over a whole data set, which no reward of one transition
    can.

    Args:
        reviewer: who names the tags.
        gain: score the child minus the parent.
        parse_retries: how often an unparsable reply is asked for again, as another sample.

    Terms: ``/unparsable`` counts replies that could not be read, ``/child`` and ``/parent`` are the counts of a gain.
    """

    name = "tag_count"

    def __init__(self, reviewer: LLM, *, gain: bool = False, parse_retries: int = PARSE_RETRIES) -> None:
        self._reviewer = reviewer
        self.gain = check_flag(self.name, "gain", gain)
        self._retries = check_retries(self.name, parse_retries)

    async def score_instruction(self, instruction: Instruction) -> Score:
        judgement = await ask_tags(self._reviewer, instruction, parse_retries=self._retries)
        terms = {f"{self.name}/unparsable": float(judgement.unparsable)}
        if judgement.value is None:
            return Score(None, terms, judgement.usage, judgement.calls)
        count = float(len(judgement.value))
        return Score(count, {self.name: count, **terms}, judgement.usage, judgement.calls)
