"""Returns of an agent in a vector env."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.base import Agent, row_rng
from instructgym.agents.rollout import action_masks, require_same_step, valid_rows
from instructgym.agents.spaces import num_actions

__all__ = ["evaluate"]


def evaluate(
    agent: Agent, vector_env: Any, episodes: int, *, seed: int = 0, deterministic: bool = True
) -> NDArray[np.float64]:
    """Undiscounted returns of `episodes` whole episodes, float64 (episodes,), ordered by (env, episode).

    Each env plays its share (as in Stable-Baselines3), for taking whichever end first would favour short ones. An
    episode that a failed call cut (``info["valid"]`` False) is played again. The state of a row is set to 0 where an
    episode starts, if the agent's state is an array of N rows.
    """
    require_same_step(vector_env)
    size, actions = vector_env.num_envs, num_actions(vector_env.single_action_space)
    share = [(episodes + i) // size for i in reversed(range(size))]
    returns: list[list[float]] = [[] for _ in range(size)]
    obs, infos = vector_env.reset(seed=seed)
    episode, step, total = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
    state: Any = None
    while any(len(done) < quota for done, quota in zip(returns, share, strict=True)):
        masks = action_masks(infos, size, actions)
        decision = agent.act(
            obs,
            action_mask=np.ones((size, actions), bool) if masks is None else masks,
            rng=[row_rng(seed, i, int(episode[i]), int(step[i])) for i in range(size)],
            state=state,
            deterministic=deterministic,
        )
        obs, rewards, terminated, truncated, infos = vector_env.step(decision.actions)
        total += rewards
        step += 1
        done = terminated | truncated
        valid = valid_rows(infos, done)
        for i in np.flatnonzero(done):
            if valid[i] and len(returns[i]) < share[i]:
                returns[i].append(float(total[i]))
        episode[done] += 1
        step[done], total[done] = 0, 0.0
        state = _restarted(decision.state, done)
    return np.array([value for row in returns for value in row])


def _restarted(state: Any, done: NDArray[np.bool_]) -> Any:
    if isinstance(state, np.ndarray) and done.any():
        state = state.copy()
        state[done] = 0
    return state
