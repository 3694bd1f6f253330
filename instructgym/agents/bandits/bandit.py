"""What all bandits share: they learn from each batch of steps as it comes, and look no further than the next reward."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.draws import derive_seed, sample_categorical, uniforms
from instructgym.agents.rollout import action_masks, require_same_step, valid_rows
from instructgym.agents.spaces import num_actions
from instructgym.errors import BackendError, ConfigError

__all__ = ["Bandit", "Matrix", "checked"]

_RESET = 1
_REPORT = 256
"""Transitions between two reports, which are also the rollouts of a reward with memory."""

Matrix = NDArray[np.float64]


class Bandit(Algorithm):
    """Chooses by what each action has brought so far. `seed` decides every draw.

    A subclass defines `means`, `explore` and `take`, and what it knows as `state_dict` and `load_state_dict`.
    `learn` explores; `act` plays what is best by now, for exploration belongs to learning. Rows whose step failed teach
    nothing. It resets the envs at the start of each `learn` with a seed of its own, so that going on from a checkpoint
    gives the same bytes as never having stopped there.
    """

    def __init__(self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int) -> None:
        self.obs_space = obs_space
        self.action_space = action_space
        self.actions = num_actions(action_space)
        self.seed = seed
        self.num_steps = 0
        self.recent_episodes: deque[tuple[float, int]] = deque(maxlen=100)

    def contexts(self, obs: Any, rows: int) -> Matrix:  # -> (N, D)
        """What `means` and `explore` see of the observations; nothing, unless a subclass says so."""
        return np.zeros((rows, 0))

    def means(self, contexts: Matrix) -> Matrix:  # (N, D) -> (N, A)
        """The reward that each action is held to bring."""
        raise TypeError(f"{type(self).__name__} does not define means()")

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:  # (N, D), (N, A), (N,) -> (N, A)
        """What each action is worth trying now; `draws` and `roll` are uniform numbers."""
        raise TypeError(f"{type(self).__name__} does not define explore()")

    def take(self, contexts: Matrix, actions: NDArray[np.int64], rewards: Matrix) -> None:  # (M, D), (M,), (M,)
        """Take what so many choices brought, row by row."""
        raise TypeError(f"{type(self).__name__} does not define take()")

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        """The legal action of the highest mean, the lowest of equal ones, whatever `deterministic` says."""
        return Decision(self._best(obs, np.asarray(action_mask, bool)), state=state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        return np.eye(self.actions)[self._best(obs, np.asarray(action_mask, bool))], state

    def _best(self, obs: Any, legal: NDArray[np.bool_]) -> NDArray[np.int64]:
        means = self.means(self.contexts(obs, len(legal)))
        best: NDArray[np.int64] = np.where(legal, means, -np.inf).argmax(axis=1)
        return best

    def learn(self, vector_env: Any, total_steps: int, *, progress: Progress | None = None) -> list[dict[str, float]]:
        """See `Algorithm.learn`; a report comes after 256 transitions or more.

        Raises:
            UsageError: the env does not reset in the same step, or allows no action.
            BackendError: not one transition between two reports is valid.
        """
        require_same_step(vector_env)
        size, goal = vector_env.num_envs, self.num_steps + total_steps
        rows, history = np.arange(size), []
        began = self.num_steps
        episodes, steps, returns = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
        obs, infos = vector_env.reset(seed=derive_seed(self.seed, _RESET, began))
        reported, valid_count, rewards_sum = self.num_steps, 0, 0.0
        while self.num_steps < goal:
            masks = action_masks(infos, size, self.actions)
            legal = np.ones((size, self.actions), bool) if masks is None else masks
            contexts = self.contexts(obs, size)
            draws = np.stack(
                [uniforms(self.seed, began, rows, episodes, steps, each) for each in range(self.actions + 2)], axis=1
            )
            worth = np.where(legal, self.explore(contexts, draws[:, 2:], draws[:, 1]), -np.inf)
            actions = sample_categorical(worth == worth.max(axis=1, keepdims=True), draws[:, 0])
            obs, rewards, terminated, truncated, infos = vector_env.step(actions)
            done = terminated | truncated
            valid = valid_rows(infos, done)
            self.take(contexts[valid], actions[valid], np.asarray(rewards, np.float64)[valid])
            self.num_steps += size
            valid_count += int(valid.sum())
            rewards_sum += float(rewards[valid].sum())
            returns += rewards
            steps += 1
            for row in np.flatnonzero(done & valid):
                self.recent_episodes.append((float(returns[row]), int(steps[row])))
            episodes[done] += 1
            steps[done], returns[done] = 0, 0.0
            if self.num_steps - reported >= _REPORT or self.num_steps >= goal:
                if not valid_count:
                    raise BackendError(
                        f"none of the last {self.num_steps - reported} transitions is valid: every call failed."
                    )
                history.append(self._metrics(valid_count / (self.num_steps - reported), rewards_sum / valid_count))
                reported, valid_count, rewards_sum = self.num_steps, 0, 0.0
                if progress is not None:
                    progress(self.num_steps, history[-1])
        return history

    def _metrics(self, valid: float, reward: float) -> dict[str, float]:
        metrics = {
            "rollout/valid": valid,
            "rollout/reward_mean": reward,
            "time/total_timesteps": float(self.num_steps),
        }
        if self.recent_episodes:
            returns, lengths = zip(*self.recent_episodes, strict=True)
            metrics |= {"rollout/ep_rew_mean": float(np.mean(returns)), "rollout/ep_len_mean": float(np.mean(lengths))}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        recent = np.array(self.recent_episodes, np.float64).reshape(-1, 2)
        return {"num_steps": self.num_steps, "recent_episodes": recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps = int(state["num_steps"])
        self.recent_episodes.clear()
        self.recent_episodes.extend((float(value), int(length)) for value, length in state["recent_episodes"])


def checked(agent: str, option: str, value: Any, least: float, most: float = np.inf) -> float:
    """`value` as a float within bounds. Raises `ConfigError` that names the agent and the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"of {least:g} or more" if most == np.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"agent '{agent}': {option} = {value!r}; expected a number {bounds}.")
    return float(value)
