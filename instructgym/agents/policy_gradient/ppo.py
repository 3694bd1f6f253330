"""Proximal policy optimisation (Schulman et al. 2017) with masked discrete actions.

The loss is the clipped surrogate of equation 7 with entropy bonus and squared value error (equation 9); advantages
are GAE, normalised a minibatch. Names and defaults of the hyperparameters are Stable-Baselines3's where it has them.
What differs from the usual: rows whose step failed outside of the agent's doing are left out of learning; every draw
is a function of (seed, env, episode, step) or of (seed, update, epoch), so that a checkpoint needs no generator; and
`learn` resets the envs at its start with a seed of its own, so that going on from a checkpoint made at a segment's end
(`segment_steps`) gives the same bytes as never having stopped.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.draws import derive_seed, first_uniforms, sample_categorical
from instructgym.agents.normaliser import ObservationNormaliser, RewardScaler
from instructgym.agents.policy_gradient.async_collector import AsyncCollector
from instructgym.agents.policy_gradient.collector import Collector
from instructgym.agents.policy_gradient.config import PPOConfig
from instructgym.agents.policy_gradient.networks import ActorCritic, Adam, masked_log_softmax, masked_probs
from instructgym.agents.rollout import Rollout, require_same_step
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import BackendError

__all__ = ["PPO", "PPOConfig"]

_RESET, _SHUFFLE, _WEIGHTS = 1, 2, 3
"""Tags that keep the seeds of one run apart."""


class PPO(Algorithm):
    """The learner and the policy. `seed` decides the weights and every draw."""

    name = "ppo"

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: PPOConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.obs_space = obs_space
        self.action_space = action_space
        self.config = config = config or PPOConfig()
        self.seed = seed
        self.flatten = Flattener(obs_space)
        self.actions = num_actions(action_space)
        self.network = ActorCritic(self.flatten.dim, self.actions, config.net_arch, derive_seed(seed, _WEIGHTS))
        self.optimiser = Adam(self.network.flat.numel(), config.adam_eps)
        clip = config.obs_clip
        self.normaliser = None if clip is None else ObservationNormaliser(self.flatten.dim, clip)
        self.reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None
        self.num_steps = 0
        self.updates = 0
        self.schedule_end = 0
        self.episodes: NDArray[np.int64] = np.zeros(0, np.int64)
        self.recent_episodes: deque[tuple[float, int]] = deque(maxlen=100)

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
        flat = self.normalise(self.flatten(obs))
        draws = None if deterministic else first_uniforms(rng)
        actions, log_probs = self.choose(flat, np.asarray(action_mask, bool), draws)
        return Decision(actions, log_probs, self.network.values(flat), state)

    @property
    def reset_seed(self) -> int:
        """What the envs are reset with by a collector that starts now."""
        return derive_seed(self.seed, _RESET, self.num_steps)

    def normalise(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Flat observations (N, D) as the network sees them."""
        return flat if self.normaliser is None else self.normaliser(flat)

    def choose(
        self, flat: NDArray[np.float32], mask: NDArray[np.bool_] | None, draws: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Actions and their log-probabilities, each (N,). `draws` (N,) are uniform; None takes the mode."""
        probs = masked_probs(self.network.logits(flat), mask)
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

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout; the metrics are those of the last epoch, as in Stable-Baselines3."""
        config = self.config
        if self.reward_scaler is not None:
            self.reward_scaler.update(
                rollout.grid(rollout.rewards),
                rollout.grid(rollout.terminated | rollout.truncated),
                rollout.grid(rollout.valid),
                rollout.grid(np.ones(len(rollout), bool)),
            )
            rollout = replace(rollout, rewards=self.reward_scaler(rollout.rewards))
        advantages = rollout.advantages(config.gamma, config.gae_lambda)
        returns = advantages + rollout.values
        keep = rollout.learned
        masks = None if rollout.masks[keep].all() else torch.from_numpy(rollout.masks[keep])
        actions = torch.from_numpy(rollout.actions[keep])
        # One row a transition, so that shuffling is one gather: observation, log-probability, advantage, return.
        columns = (rollout.log_probs[keep], advantages[keep], returns[keep])
        batch = torch.from_numpy(np.concatenate([rollout.obs[keep], np.stack(columns, axis=1)], axis=1))

        rate = self._learning_rate()
        epoch: list[dict[str, Any]] = []
        for number in range(config.n_epochs):
            epoch = []
            shuffle = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.updates, number))
            order = torch.randperm(len(batch), generator=shuffle)
            rows, chosen = batch[order], actions[order]
            legal = None if masks is None else masks[order]
            stopped = False
            for start in range(0, len(batch), config.batch_size):
                part = slice(start, start + config.batch_size)
                report = config.target_kl is not None or number == config.n_epochs - 1
                loss, facts = self._loss(rows[part], chosen[part], None if legal is None else legal[part], report)
                epoch.append(facts)
                if config.target_kl is not None and float(facts["approx_kl"]) > 1.5 * config.target_kl:
                    stopped = True
                    break
                self.network.grad.zero_()
                loss.backward()
                self.optimiser.step(self.network.flat, self.network.grad, rate, config.max_grad_norm)
            if stopped:
                break
        self.updates += 1
        means = {f"train/{name}": float(torch.stack([facts[name] for facts in epoch]).mean()) for name in epoch[0]}
        variance = float(returns[keep].var())
        unexplained = float((returns[keep] - rollout.values[keep]).var())
        return means | {
            "train/explained_variance": 1.0 - unexplained / variance if variance > 0 else float("nan"),
            "train/learning_rate": rate,
            "train/n_updates": float(self.optimiser.steps),
        }

    def _loss(self, rows: Any, actions: Any, mask: Any | None, report: bool) -> tuple[Any, dict[str, Any]]:
        """The loss of a minibatch, and what is reported of it (a fifth of its time, so only where it is asked for)."""
        config = self.config
        width = self.flatten.dim
        old_log_probs, advantages, returns = rows[:, width], rows[:, width + 1], rows[:, width + 2]
        logits, values = self.network.forward(rows[:, :width])
        log_probs = masked_log_softmax(logits, mask)
        log_ratio = log_probs.gather(1, actions.unsqueeze(1)).squeeze(1) - old_log_probs
        ratio = log_ratio.exp()
        if config.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
        policy_loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
        value_loss = torch.nn.functional.mse_loss(values, returns)
        loss = policy_loss + config.vf_coef * value_loss
        if config.ent_coef > 0:
            loss = loss + config.ent_coef * _entropy_loss(log_probs)
        if not report:
            return loss, {}
        with torch.no_grad():
            return loss, {
                "approx_kl": (ratio - 1.0 - log_ratio).mean(),
                "clip_fraction": (ratio != clipped).float().mean(),
                "entropy_loss": _entropy_loss(log_probs),
                "loss": loss.detach(),
                "policy_gradient_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
            }

    def _learning_rate(self) -> float:
        """The rate of the rollout that is learned from; the schedule is at its first step."""
        if self.config.lr_schedule == "constant" or self.schedule_end <= 0:
            return self.config.learning_rate
        return self.config.learning_rate * max(0.0, 1.0 - self.num_steps / self.schedule_end)

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


def _entropy_loss(log_probs: Any) -> Any:  # (B, A) -> scalar
    return (log_probs.exp() * log_probs).sum(dim=1).mean()
