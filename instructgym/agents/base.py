"""Contract 5: who decides. Nothing here knows of instructions: our agents must solve CartPole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.draws import row_rng
from instructgym.errors import UsageError
from instructgym.types import Usage

__all__ = ["Agent", "Algorithm", "Decision", "OfflineAlgorithm", "Progress", "row_rng"]

Progress = Callable[[int, dict[str, float]], None]
"""Called with the number of environment steps so far and the metrics of the last rollout."""


@dataclass(frozen=True)
class Decision:
    """What an agent chose for N rows. `log_prob` and `value` are float32 (N,) where the agent has them.

    `usage` are the tokens that it cost to choose, of an agent that asks an LLM.
    """

    actions: NDArray[np.int64]
    log_prob: NDArray[np.float32] | None = None
    value: NDArray[np.float32] | None = None
    state: Any = None
    usage: Usage = field(default_factory=Usage)


class Agent:
    """Chooses operations. `act` never blocks; an agent that asks an LLM overrides `aact`, which every runner awaits.

    An agent whose choices hang on no observation says so (`observes`), and a runner may then pass (N, 0) arrays: making
    an observation costs an embedding. One that knows operations by their features or their words says so, too
    (`any_actions`): it can choose from others than it was trained on.

    `observation` is the kind of observation that it reads, and `observation_tokenizer` whose tokens, None: the run's.
    Who has to know it before the agent is made asks `reads`. `counts` end in a run's results.
    """

    name: str = "agent"
    observes: bool = True
    observation: str | None = None
    observation_tokenizer: str | None = None
    any_actions: bool = False

    @property
    def counts(self) -> Mapping[str, int]:
        """How often what happened when it chose, by name; empty where there is nothing to tell."""
        return {}

    @classmethod
    def reads(cls, kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """`observation` and `observation_tokenizer` of an agent that is made with these arguments."""
        return cls.observation, cls.observation_tokenizer

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
            rng: N generators, one a row (`row_rng`), so that no order of replies changes a choice.
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

    def probabilities(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        state: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float64], Any]:
        """With which probability `act` would choose each action, and the state that its Decision would carry.

        The arguments are those of `act`. Off-policy evaluation needs it; an agent may do without. A state that holds
        something for each row is an array with the rows in its first axis, or a tuple of such.

        Returns float64 (N, A), 0 where the mask is False, each row of sum 1, and the state of the next step.

        Raises `UsageError` for an agent that cannot say.
        """
        raise UsageError(
            f"agent '{self.name}' ({type(self).__name__}) does not say with which probability it chooses; expected a "
            "method probabilities(obs, *, action_mask, state, deterministic), without which logs cannot evaluate it."
        )

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that a later `load_state_dict` needs to act the same: numpy arrays and JSON values by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def save_files(self, folder: Path) -> None:
        """Write what has a file format of its own (a zip of SB3) into the folder of a saved agent."""

    def load_files(self, folder: Path) -> None:
        """Read what `save_files` wrote."""


class Algorithm(Agent):
    """An agent that learns from a vector env. `num_steps` counts the environment steps it has learned from."""

    num_steps: int = 0

    def learn(self, vector_env: Any, total_steps: int, *, progress: Progress | None = None) -> list[dict[str, float]]:
        """Take at least `total_steps` more environment steps and learn from them.

        Args:
            vector_env: a `gymnasium.vector.VectorEnv` in SAME_STEP autoreset mode.
            total_steps: steps summed over the envs; rounded up to whole rollouts.
            progress: called after each rollout with `num_steps` and the metrics.

        Returns the metrics, one dict a rollout, under Stable-Baselines3's keys (``train/approx_kl``, ...).
        """
        raise TypeError(f"{type(self).__name__} does not define learn()")

    def update(self, rollout: Any) -> dict[str, float]:
        """Learn from one rollout; return the metrics."""
        raise TypeError(f"{type(self).__name__} does not define update()")


class OfflineAlgorithm(Agent):
    """An agent that learns from logged episodes, and from nothing else."""

    def learn_from(self, batch: Any) -> dict[str, float]:
        """Learn from `LoggedEpisodes`; return the metrics."""
        raise TypeError(f"{type(self).__name__} does not define learn_from()")
