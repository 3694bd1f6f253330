"""What policy-gradient learners share: spaces, network, normalisation, acting, the loop of `learn`, checkpoints.

Rows whose step failed outside of the agent's doing are left out of learning; every draw is a function of (seed, env,
episode, step) or of (seed, update, epoch), so that a checkpoint needs no generator; and `learn` resets the envs at its
start with a seed of its own, so that going on from a checkpoint made at a segment's end (`segment_steps`) gives the
same bytes as never having stopped.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.draws import derive_seed, first_uniforms, sample_categorical
from instructgym.agents.normaliser import ObservationNormaliser, RewardScaler
from instructgym.agents.policy_gradient.adam import Adam
from instructgym.agents.policy_gradient.async_collector import AsyncCollector
from instructgym.agents.policy_gradient.collector import Collector, Successors
from instructgym.agents.policy_gradient.config import LearnerConfig
from instructgym.agents.policy_gradient.networks import make_network, masked_probs
from instructgym.agents.rollout import Rollout, require_same_step
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import BackendError, ConfigError, UsageError

if TYPE_CHECKING:
    from instructgym.agents.policy_gradient.networks import Network, RecurrentNetwork

__all__ = ["ActorCriticLearner", "explained_variance"]

_RESET, _SHUFFLE, _WEIGHTS = 1, 2, 3
"""Tags that keep the seeds of one run apart."""


class ActorCriticLearner(Algorithm):
    """A policy over discrete actions and a value, learned from rollouts of its own. `seed` decides every draw.

    A learner defines `update`, and `config_type` with its hyperparameters. One that records more than rewards also
    overrides `restart`, `empty_rollout`, `record` and `evaluate`, which the collectors call; one that has more parts
    with a state, `_parts`.

    Args:
        obs_space: of a single env.
        action_space: of a single env; Discrete.
        config: the hyperparameters; or give them by name.
        seed: of weights and draws.
        action_features: float32 (A, E), what is known of each action; for `network = "cross_attention"`.
        options: the fields of the config.

    Raises:
        ConfigError: an unknown option, or a value that makes no sense.
        UsageError: a config and options.
    """

    config_type: ClassVar[type[LearnerConfig]] = LearnerConfig
    config: LearnerConfig

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: LearnerConfig | None = None,
        seed: int = 0,
        *,
        action_features: NDArray[np.float32] | None = None,
        **options: Any,
    ) -> None:
        self.obs_space = obs_space
        self.action_space = action_space
        config = self._checked(config, options)
        self.config = config
        self.seed = seed
        self.flatten = Flattener(obs_space)
        self.actions = num_actions(action_space)
        self.action_features = action_features
        self.any_actions = config.network == "cross_attention"
        self.network = self.make_network(derive_seed(seed, _WEIGHTS))
        self.memory: int = getattr(self.network, "memory", 0)
        self.optimiser = Adam(self.network.flat.numel(), config.adam_eps)
        clip = config.obs_clip
        self.normaliser = None if clip is None else ObservationNormaliser(self.flatten.dim, clip)
        self.reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None
        self.num_steps = 0
        self.updates = 0
        self.schedule_end = 0
        self.episodes: NDArray[np.int64] = np.zeros(0, np.int64)
        self.recent_episodes: deque[tuple[float, int]] = deque(maxlen=100)

    @classmethod
    def _checked(cls, config: LearnerConfig | None, options: Mapping[str, Any]) -> LearnerConfig:
        if config is None:
            return cls.config_type.from_kwargs(options)
        if options:
            raise UsageError(f"{cls.name} got a config and the options {sorted(options)}; pass one or the other.")
        if not isinstance(config, cls.config_type):
            raise ConfigError(f"{cls.name}: config = {config!r}; expected a {cls.config_type.__name__}.")
        return config

    def make_network(self, seed: int) -> Network:
        """The policy and value to learn, its weights drawn by `seed`. A learner with another network overrides it."""
        return make_network(self.config, self.obs_space, self.flatten.dim, self.actions, seed, self.action_features)

    # ------------------------------------------------------------------ acting

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        seen = self._see(obs, state)
        draws = None if deterministic else first_uniforms(rng)
        actions, log_probs = self.choose(seen, np.asarray(action_mask, bool), draws)
        return Decision(actions, log_probs, self.network.values(seen), self.next_memory(seen) if self.memory else state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        seen = self._see(obs, state)
        probs = masked_probs(self.network.logits(seen), np.asarray(action_mask, bool)).astype(np.float64)
        following = self.next_memory(seen) if self.memory else state
        if deterministic:
            return np.eye(self.actions)[probs.argmax(axis=1)], following
        return probs / probs.sum(axis=1, keepdims=True), following

    @property
    def reset_seed(self) -> int:
        """What the envs are reset with by a collector that starts now."""
        return derive_seed(self.seed, _RESET, self.num_steps)

    def _see(self, obs: Any, state: Any) -> NDArray[np.float32]:
        flat = self.flatten(obs)
        return self.see(flat, np.zeros((len(flat), self.memory), np.float32) if state is None else state)

    def see(self, flat: NDArray[np.float32], memory: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network takes: flat observations (N, D) normalised, and beside them its memory (N, H) if it has one.

        -> (N, D + H).
        """
        seen = self.normalise(flat)
        return np.concatenate([seen, memory], axis=1) if self.memory else seen

    def next_memory(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D + H) -> (N, H)
        """What the network carries on from what it saw; nothing if it has no memory."""
        if not self.memory:
            return np.zeros((len(seen), 0), np.float32)
        return cast("RecurrentNetwork", self.network).next_memory(seen)

    def normalise(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Flat observations (N, D) as z-scores, if the config wants them."""
        return flat if self.normaliser is None else self.normaliser(flat)

    def choose(
        self, seen: NDArray[np.float32], mask: NDArray[np.bool_] | None, draws: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Actions and their log-probabilities, each (N,). `draws` (N,) are uniform; None takes the mode."""
        probs = masked_probs(self.network.logits(seen), mask)
        actions = probs.argmax(axis=1) if draws is None else sample_categorical(probs, draws)
        return actions, np.log(probs[np.arange(len(probs)), actions])

    # ---------------------------------------------------------------- learning

    def learn(
        self,
        vector_env: Any,
        total_steps: int,
        *,
        progress: Progress | None = None,
        on_rollout_end: Callable[[Rollout], None] | None = None,
        segment_steps: int | None = None,
        on_segment_end: Callable[[], None] | None = None,
    ) -> list[dict[str, float]]:
        """See `Algorithm.learn`.

        Args:
            on_rollout_end: called before each update with the rollout, its `infos` filled (for rewards with memory).
            segment_steps: after at least so many steps the envs are reset with a new seed.
            on_segment_end: called at the end of each segment but the last; a checkpoint made there is exact.

        With ``collect = "async"`` it takes exactly `total_steps` (a segment: exactly `segment_steps`) and waits for
        what is in flight before it ends; if it raises, that is cancelled. A checkpoint at a segment's end lacks
        nothing, but going on from it does not repeat itself. Where all of a rollout is too stale, the weights stay
        and the metrics have no ``train/``.

        Raises:
            UsageError: the env does not reset in the same step, allows no action, or has no send and recv.
            ConfigError: `min_ready` is more than the envs.
            BackendError: not one transition of a rollout is valid.
        """
        require_same_step(vector_env)
        goal = self.num_steps + total_steps
        if self.num_steps >= self.schedule_end:
            self.schedule_end = goal
        history: list[dict[str, float]] = []
        while self.num_steps < goal:
            stop = goal if segment_steps is None else min(goal, self.num_steps + segment_steps)
            with contextlib.closing(self._collector(vector_env, stop - self.num_steps)) as collector:
                while self.num_steps < stop:
                    # The last rollout is as short as it takes: a step is a paid call, and nobody asked for more.
                    wanted = min(self.config.n_steps * collector.size, goal - self.num_steps)
                    rollout = collector.collect(wanted, keep_infos=on_rollout_end is not None)
                    if on_rollout_end is not None:
                        on_rollout_end(rollout)
                    metrics = self._learn_from(rollout) | collector.metrics(rollout)
                    history.append(metrics)
                    if progress is not None:
                        progress(self.num_steps, metrics)
            if on_segment_end is not None and self.num_steps < goal:
                on_segment_end()
        return history

    def _collector(self, vector_env: Any, limit: int) -> Collector:
        if self.config.collect == "async":
            return AsyncCollector(self, vector_env, limit)
        return Collector(self, vector_env)

    def _learn_from(self, rollout: Rollout) -> dict[str, float]:
        if not rollout.valid.any():
            raise BackendError(
                f"none of the {len(rollout)} transitions of a rollout is valid: every call failed. "
                "The agent's weights are as they were before it."
            )
        metrics = self.update(rollout) if rollout.learned.any() else {}  # all of it may be too stale
        if self.normaliser is not None:
            self.normaliser.update(rollout.raw_obs[rollout.valid])
        self.num_steps += len(rollout)
        return metrics | self._episode_metrics(rollout)

    # ------------------------------------------------- for `update`

    @property
    def remaining(self) -> float:
        """Of the schedule, from 1 to 0; that of the rollout that is learned from is that of its first step."""
        return max(0.0, 1.0 - self.num_steps / self.schedule_end) if self.schedule_end > 0 else 1.0

    def learning_rate(self) -> float:
        """The rate by the schedule."""
        if self.config.lr_schedule == "constant":
            return self.config.learning_rate
        return self.config.learning_rate * self.remaining

    def scale_rewards(self, rollout: Rollout) -> Rollout:
        """The rollout with rewards as the learner sees them; the reward scaler takes it in."""
        if self.reward_scaler is None:
            return rollout
        self.reward_scaler.update(
            rollout.grid(rollout.rewards),
            rollout.grid(rollout.terminated | rollout.truncated),
            rollout.grid(rollout.valid),
            rollout.grid(np.ones(len(rollout), bool)),
        )
        return replace(rollout, rewards=self.reward_scaler(rollout.rewards))

    def shuffled(self, size: int, epoch: int, *purpose: int) -> Any:
        """An order of `size` rows, (size,), for an epoch of this update. `purpose` keeps shuffles apart."""
        shuffle = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.updates, epoch, *purpose))
        return torch.randperm(size, generator=shuffle)

    # ---------------------------------------------------- for the collectors

    def restart(self, num_envs: int) -> None:
        """The envs are about to be reset: each is in a new episode, and what was running is forgotten."""
        if len(self.episodes) != num_envs:
            self.episodes = np.resize(self.episodes, num_envs) if len(self.episodes) else np.zeros(num_envs, np.int64)
        self.episodes = self.episodes + 1
        if self.reward_scaler is not None:
            self.reward_scaler.restart()

    def empty_rollout(self, size: int, num_envs: int) -> Rollout:
        """Room for `size` transitions."""
        return Rollout.empty(size, num_envs, self.flatten.dim, self.actions, self.memory)

    def record(self, rollout: Rollout, part: slice, rows: NDArray[np.int64], infos: Mapping[str, Any]) -> None:
        """The transitions of `rows` are in `rollout[part]`; `infos` are the env's, for these rows."""

    def evaluate(self, rollout: Rollout, successors: Successors) -> None:
        """Fill in the values of a whole rollout, by the network of now; `successors` gives both for a function."""
        rollout.values[:], rollout.next_values[:] = successors(self.network.values)

    def _episode_metrics(self, rollout: Rollout) -> dict[str, float]:
        metrics = {"rollout/valid": float(rollout.valid.mean()), "time/total_timesteps": float(self.num_steps)}
        if self.recent_episodes:
            returns, lengths = zip(*self.recent_episodes, strict=True)
            metrics |= {"rollout/ep_rew_mean": float(np.mean(returns)), "rollout/ep_len_mean": float(np.mean(lengths))}
        return metrics

    # -------------------------------------------------------------- checkpoint

    def make_origin(self) -> tuple[str, dict[str, Any], int, Any, Any]:
        """Name, arguments, seed and spaces: what `save_agent` keeps to make this agent again."""
        return self.name, asdict(self.config), self.seed, self.obs_space, self.action_space

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"network": self.network, "optimiser": self.optimiser}
        parts |= {"obs": self.normaliser} if self.normaliser is not None else {}
        return parts | ({"reward": self.reward_scaler} if self.reward_scaler is not None else {})

    def state_dict(self) -> dict[str, Any]:
        parts = self._parts()
        state = {f"{part}.{name}": value for part, owner in parts.items() for name, value in owner.state_dict().items()}
        recent = np.array(self.recent_episodes, np.float64).reshape(-1, 2)
        if self.any_actions and self.action_features is not None:
            state["action_features"] = np.array(self.action_features, np.float32)
        return state | {
            "num_steps": self.num_steps,
            "updates": self.updates,
            "schedule_end": self.schedule_end,
            "episodes": self.episodes.copy(),
            "recent_episodes": recent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part, owner in self._parts().items():
            owner.load_state_dict(
                {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
            )
        self.num_steps, self.updates = int(state["num_steps"]), int(state["updates"])
        self.schedule_end = int(state["schedule_end"])
        self.episodes = np.array(state["episodes"], np.int64)
        self.recent_episodes.clear()
        self.recent_episodes.extend((float(total), int(length)) for total, length in state["recent_episodes"])


def explained_variance(returns: NDArray[np.float32], values: NDArray[np.float32]) -> float:  # each (M,)
    """The share of the returns' variance that the values explain; NaN where the returns do not vary."""
    variance = float(returns.var())
    return 1.0 - float((returns - values).var()) / variance if variance > 0 else float("nan")
