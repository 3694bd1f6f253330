"""Contract 3: what is good. A reward scores one transition; batching happens below, in encoder and backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from instructgym.errors import ConfigError
from instructgym.llm_backends.answering import ask_for_answer
from instructgym.llm_backends.base import LLM
from instructgym.types import Instruction, Score, Transition

__all__ = ["AnswerReward", "InstructionReward", "Reward"]


class Reward:
    """Scores transitions. Subclass it, or pass a plain function ``(transition) -> float`` (sync or async).

    `score` is pure: it reads what `commit` last stored and changes nothing that a score depends on. A value that cannot
    be had is None, never 0. A reward with memory (an archive, a normaliser) also overrides `commit` and the state
    methods; `commit` is called once at the end of a rollout (in evolve: of the stage), with all transitions in (chain,
    step) order.

    A reward that is built by name gets what its constructor's parameters are called: ``reviewer`` and ``expert`` (an
    `LLM`), ``encoder`` (an `Encoder`), ``changes_topic`` (the operations that are meant to leave the parent's subject).
    """

    name: str = "reward"
    reward_options: ClassVar[tuple[str, ...]] = ()
    """The constructor's parameters that are rewards themselves, or names with rewards."""

    async def score(self, transition: Transition) -> Score:
        """The reward of one transition. Raises `BackendError` if an LLM or encoder call fails."""
        raise TypeError(f"{type(self).__name__} does not define score()")

    def commit(self, transitions: Sequence[Transition]) -> None:
        """Take the transitions of a finished rollout into memory. Rewards without memory ignore it."""

    @property
    def instant(self) -> bool:
        """Whether `score` waits for nobody: then a composition asks it without a task of its own."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether `commit` does anything: then whoever rolls out keeps the transitions for it."""
        return type(self).commit is not Reward.commit

    def state_dict(self) -> Mapping[str, Any]:
        """The memory, as plain values, arrays and archives; empty for rewards without one."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if state:
            raise ValueError(f"reward '{self.name}' has no memory, but got state for {sorted(state)}")


class InstructionReward(Reward):
    """Says something of an instruction by itself, so it can be asked of any text and compared with labels.

    Of a transition it scores the child; with `gain` set, by how much the child exceeds the parent (terms ``/child`` and
    ``/parent``).
    """

    gain: bool = False

    async def score_instruction(self, instruction: Instruction) -> Score:
        """The score of one instruction."""
        raise TypeError(f"{type(self).__name__} does not define score_instruction()")

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        child = await self.score_instruction(transition.child)
        if not self.gain:
            return child
        parent = await self.score_instruction(transition.parent)
        usage, calls = child.usage + parent.usage, child.calls + parent.calls
        terms = dict(child.terms)
        terms.pop(self.name, None)
        for side, score in (("child", child), ("parent", parent)):
            if score.value is not None:
                terms[f"{self.name}/{side}"] = score.value
        if child.value is None or parent.value is None:
            return Score(None, terms, usage, calls)
        value = child.value - parent.value
        return Score(value, terms | {self.name: value}, usage, calls)


class AnswerReward(Reward):
    """Says something of an answer to an instruction. Of a transition it scores the expert's answer to the child.

    The answer is asked for once, as sample ``(0, 0)``; one that was cut or is empty is a missing score. With `expert`
    None the reward can only score answers that are given to it.
    """

    def __init__(self, expert: LLM | None = None) -> None:
        self._expert = expert

    async def score_answer(self, instruction: Instruction, answer: str) -> Score:
        """The score of one answer."""
        raise TypeError(f"{type(self).__name__} does not define score_answer()")

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        if self._expert is None:
            raise ConfigError(f"reward '{self.name}' scores answers, but has no expert that writes them; pass expert.")
        answer, usage = await ask_for_answer(self._expert, transition.child)
        if answer is None:
            return Score(None, {f"{self.name}/unanswered": 1.0}, usage, 1)
        score = await self.score_answer(transition.child, answer)
        return Score(score.value, score.terms, usage + score.usage, 1 + score.calls)
