"""Contract 3: what is good. A reward scores one transition; batching happens below, in encoder and backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgym.types import Score, Transition

__all__ = ["Reward"]


class Reward:
    """Scores transitions. Subclass it, or pass a plain function ``(transition) -> float`` (sync or async).

    `score` is pure: it reads what `commit` last stored and changes nothing. A value that cannot be had is None, never
    0. A reward with memory (an archive, a normaliser) also overrides `commit` and the state methods; `commit` is
    called once at the end of a rollout (in evolve: of the stage), with all transitions in (chain, step) order.
    """

    name: str = "reward"

    async def score(self, transition: Transition) -> Score:
        """The reward of one transition. Raises `BackendError` if an LLM or encoder call fails."""
        raise TypeError(f"{type(self).__name__} does not define score()")

    def commit(self, transitions: Sequence[Transition]) -> None:
        """Take the transitions of a finished rollout into memory. Rewards without memory ignore it."""

    def state_dict(self) -> Mapping[str, Any]:
        """The memory, as plain values and arrays; empty for rewards without one."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if state:
            raise ValueError(f"reward '{self.name}' has no memory, but got state for {sorted(state)}")
