"""The policy in the vector env: what fills the rollouts of our policy-gradient learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.draws import uniforms
from instructgym.agents.rollout import action_masks, valid_rows
from instructgym.agents.spaces import stack_rows

if TYPE_CHECKING:
    from instructgym.agents.policy_gradient.learner import ActorCriticLearner
    from instructgym.agents.rollout import Rollout

__all__ = ["Collector", "Successors", "Values"]

Values = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A value function of flat observations, (N, D) -> (N,)."""

Successors = Callable[[Values], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Gives the values of a rollout's observations and of what truly followed them, each (M,), by a value function."""

_Batch = tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class Collector:
    """Steps all envs together. Resets them once, when it is made.

    What the policy saw and chose is kept by env until its transition is there, so that it is recorded as it was when
    it was chosen: the observation as normalised then, and the log-probability of the policy that acted.
    """

    def __init__(self, learner: ActorCriticLearner, vector_env: Any) -> None:
        self.learner = learner
        self.env = vector_env
        self.size: int = vector_env.num_envs
        self._rows = np.arange(self.size)
        self._steps = np.zeros(self.size, np.int64)  # of the episode
        self._returns = np.zeros(self.size, np.float64)
        learner.restart(self.size)
        obs, infos = vector_env.reset(seed=learner.reset_seed)
        self._flat = np.array(learner.flatten(obs))  # (N, D): where each env stands, not normalised
        self._memory = np.zeros((self.size, learner.memory), np.float32)  # (N, H): of the policy, before it chooses
        self._masks = np.ones((self.size, learner.actions), bool)
        self._see_masks(self._rows, infos)
        # The choice that each env is acting on:
        self._seen = learner.see(self._flat, self._memory)
        self._carried = self._memory.copy()  # its memory after the choice
        self._actions = np.zeros(self.size, np.int64)
        self._log_probs = np.zeros(self.size, np.float32)
        self._chosen_at = np.zeros(self.size, np.int64)  # number of updates before it

    def collect(self, wanted: int, *, keep_infos: bool = False) -> Rollout:
        """A rollout of at least `wanted` transitions (M), less than one of each env more."""
        learner = self.learner
        rollout = learner.empty_rollout(wanted + self.size - 1, self.size)
        taken = np.zeros(self.size, np.int64)  # transitions of each env so far
        finals: list[tuple[int, NDArray[np.float32]]] = []
        filled = 0
        while filled < wanted:
            rows, batch = self._exchange(wanted - filled)
            finals += self._record(rollout, slice(filled, filled + len(rows)), rows, taken[rows], batch)
            taken[rows] += 1
            filled += len(rows)
            if keep_infos:
                rollout.infos.append(batch[-1])
        rollout = rollout.first(filled)
        learner.evaluate(rollout, lambda values: self._values(values, rollout, finals))
        return rollout

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """What is to be told of the way in which `rollout` was collected."""
        return {}

    def close(self) -> None:
        """Leave nothing running. The env stays open."""

    def _exchange(self, missing: int) -> tuple[NDArray[np.int64], _Batch]:
        """Actions out, transitions in: of which envs, and what `step` returns, for these."""
        return self._rows, self.env.step(self._choose(self._rows))

    def _choose(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions for these envs; what led to them is kept for `_record`."""
        learner = self.learner
        seen, masks = learner.see(self._flat[rows], self._memory[rows]), self._masks[rows]
        draws = uniforms(learner.seed, rows, learner.episodes[rows], self._steps[rows])
        actions, log_probs = learner.choose(seen, None if masks.all() else masks, draws)
        self._seen[rows], self._actions[rows], self._log_probs[rows] = seen, actions, log_probs
        self._chosen_at[rows] = learner.updates
        if learner.memory:
            self._carried[rows] = learner.next_memory(seen)
        return actions

    def _record(
        self, rollout: Rollout, part: slice, rows: NDArray[np.int64], times: NDArray[np.int64], batch: _Batch
    ) -> list[tuple[int, NDArray[np.float32]]]:
        """Put a batch into the rollout and move its envs on. Returns (place, final observation) of truncated rows."""
        learner = self.learner
        obs, rewards, terminated, truncated, infos = batch
        done = terminated | truncated
        valid = valid_rows(infos, done)
        staleness = learner.updates - self._chosen_at[rows]
        rollout.rows[part], rollout.times[part] = rows, times
        rollout.raw_obs[part], rollout.obs[part] = self._flat[rows], self._seen[rows]
        rollout.masks[part] = self._masks[rows]
        rollout.actions[part], rollout.log_probs[part] = self._actions[rows], self._log_probs[rows]
        rollout.rewards[part], rollout.terminated[part], rollout.truncated[part] = rewards, terminated, truncated
        rollout.valid[part], rollout.staleness[part] = valid, staleness
        rollout.learned[part] = valid & (staleness <= learner.config.max_staleness)
        learner.record(rollout, part, rows, infos)
        cut = np.flatnonzero(truncated & ~terminated & valid).tolist()
        finals = [(part.start + place, self._final(infos, place, rows[place])) for place in cut]
        self._count(rows, rewards, done, valid)
        self._flat[rows] = learner.flatten(obs)
        self._memory[rows] = np.where(done[:, None], 0.0, self._carried[rows])
        self._see_masks(rows, infos)
        return finals

    def _see_masks(self, rows: NDArray[np.int64], infos: dict[str, Any]) -> None:
        masks = action_masks(infos, len(rows), self.learner.actions)
        self._masks[rows] = True if masks is None else masks

    def _values(
        self, values: Values, rollout: Rollout, finals: list[tuple[int, NDArray[np.float32]]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Values of the rollout's observations (one pass), and of what truly followed them; each (M,)."""
        learner = self.learner
        own = values(rollout.obs)
        # One line longer than the longest env: after an env's last transition comes the value of where it stands.
        standing = values(learner.see(self._flat, self._memory))
        lines = np.tile(standing, (int(rollout.times.max()) + 2, 1))
        lines[rollout.times, rollout.rows] = own
        following = lines[rollout.times + 1, rollout.rows]
        if finals:
            places, seen = zip(*finals, strict=True)
            following[list(places)] = values(np.concatenate(seen))
        return own, following

    def _final(self, infos: dict[str, Any], place: int, row: int) -> NDArray[np.float32]:
        """What the network would have seen after a row of the batch that was truncated, (1, D + H)."""
        final = infos["final_obs"]
        single = {name: value[place] for name, value in final.items()} if isinstance(final, dict) else final[place]
        flat = self.learner.flatten(stack_rows(self.learner.obs_space, [single]))
        return self.learner.see(flat, self._carried[[row]])

    def _count(
        self, rows: NDArray[np.int64], rewards: NDArray[Any], done: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> None:
        """Advance step, episode and return of each env; an episode that a failed call cut is not reported."""
        self._returns[rows] += rewards
        self._steps[rows] += 1
        if done.any():
            for row in rows[done & valid]:
                self.learner.recent_episodes.append((float(self._returns[row]), int(self._steps[row])))
            over = rows[done]
            self.learner.episodes[over] += 1
            self._steps[over] = 0
            self._returns[over] = 0.0
