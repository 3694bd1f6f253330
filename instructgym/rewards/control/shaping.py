"""Potential-based shaping: a step is worth by how much it raises a potential."""

from __future__ import annotations

from instructgym.errors import ConfigError
from instructgym.rewards.base import InstructionReward, Reward
from instructgym.rewards.checking import single_float
from instructgym.rewards.composition.composite import Composite, terms_under
from instructgym.types import Instruction, Score, Transition

__all__ = ["Shaping"]


class Shaping(Composite):
    """``gamma * potential(after) - potential(before)`` (Ng, Harada and Russell 1999).

    `before` is the parent; `after` is the child, or the parent still where the rewrite was eliminated. Over an episode
    of T steps the discounted sum telescopes to ``gamma^T * potential(last) - potential(seed)``: what counts is where
    the chain ends, and no detour or loop pays.

    `terminal_zero` sets the potential after the last step of the horizon to 0, as the theorem asks for a shaping that
    leaves the best policy as it is. The sum is then minus the seed's potential, whatever was done. It is off by
    default: the last instruction is what a chain is for, so its potential is wanted as a reward, not only as a hint
    on the way; and an episode that ends by stopping is not seen here, so with stopping the theorem would not hold.

    In the environment an eliminated rewrite gets its penalty without shaping. With ``gamma = 1`` the sum is the same
    (the shaping of such a step is 0); with ``gamma < 1`` it lacks ``(gamma - 1) * potential(parent)`` for each.
    Behind a gate, too, steps are left out: add shaping to a gated reward instead.

    Terms: ``shaping/before`` and ``shaping/after``, the potentials, and those of the potential of `after` under its own
    name. Missing if a potential is. A potential that asks an LLM is asked for every text twice, as child and as parent;
    the second time the ledger answers.

    Args:
        potential: any reward of single instructions, its `gain` off.
        gamma: the agent's discount; another one breaks the telescoping.
    """

    name = "shaping"
    reward_options = ("potential",)

    def __init__(self, potential: Reward, *, gamma: float = 0.99, terminal_zero: bool = False) -> None:
        if not isinstance(potential, InstructionReward):
            named = getattr(potential, "name", repr(potential))
            raise ConfigError(
                f"shaping got '{named}' as its potential, a {type(potential).__name__}; expected a reward of single "
                "instructions (an InstructionReward)."
            )
        if potential.gain:
            raise ConfigError(
                f"shaping got the potential '{potential.name}' with gain = true; expected it off: shaping is the gain."
            )
        if not 0.0 < gamma <= 1.0:
            raise ConfigError(f"shaping got gamma = {gamma}; expected above 0 and at most 1, the agent's discount.")
        super().__init__({"potential": potential})
        self._potential = potential
        self._gamma = gamma
        self._terminal_zero = terminal_zero

    async def score(self, transition: Transition) -> Score:
        child = transition.child if transition.accepted else None
        before = await self._of(transition.parent, transition)
        terms: dict[str, float] = {}
        if before.value is not None:
            terms[f"{self.name}/before"] = before.value
        if self._terminal_zero and transition.step >= transition.horizon - 1:
            later: float | None = 0.0
            usage, calls = before.usage, before.calls
        else:
            reached = Score(before.value, before.terms) if child is None else await self._of(child, transition)
            later = reached.value
            terms |= terms_under(self._potential.name, self._potential.name, reached)
            usage, calls = before.usage + reached.usage, before.calls + reached.calls
        if later is not None:
            terms[f"{self.name}/after"] = later
        if before.value is None or later is None:
            return Score(None, terms, usage, calls)
        value = self._gamma * later - before.value
        return Score(value, terms | {self.name: value}, usage, calls)

    async def _of(self, instruction: Instruction, transition: Transition) -> Score:
        score = await self._potential.score_instruction(instruction)
        if score.value is None:
            return score
        return Score(single_float(self._potential.name, score.value, transition), score.terms, score.usage, score.calls)
