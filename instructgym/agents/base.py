"""Contract 5: who decides. Nothing here knows of instructions: our agents must solve CartPole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agent", "Decision", "row_rng"]


@dataclass(frozen=True)
class Decision:
    """What an agent chose for N rows. `log_prob` and `value` are float32 (N,) where the agent has them."""

    actions: NDArray[np.int64]
    log_prob: NDArray[np.float32] | None = None
    value: NDArray[np.float32] | None = None
    state: Any = None


class Agent:
    """Chooses operations. `act` never blocks; an agent that asks an LLM overrides `aact`, which every runner awaits."""

    name: str = "agent"

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        """Choose for N rows.

        Args:
            obs: observations, (N, ...) arrays, or a dict of such.
            action_mask: (N, A) bool; at least one True a row. Never choose where it is False.
            rng: N generators, one a row, so that no order of replies changes a choice.
            state: what the previous Decision of these rows carried (None at the start of an episode).
            deterministic: take the mode where the agent has one.
        """
        raise TypeError(f"{type(self).__name__} does not define act()")

    async def aact(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        """`act` for runners inside an event loop."""
        return self.act(obs, action_mask=action_mask, rng=rng, state=state, deterministic=deterministic)

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that a later `load_state_dict` needs to act the same."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def row_rng(run_seed: int, *index: int) -> np.random.Generator:
    """The generator of one row: a function of (run seed, chain or env, episode, step) and of nothing else."""
    text = ",".join(str(i) for i in (run_seed, *index)).encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")))
