"""Proximal policy optimisation (Schulman et al. 2017) with masked discrete actions.

The loss is the clipped surrogate of equation 7 with entropy bonus and squared value error (equation 9); advantages
are GAE, normalised a minibatch. Names and defaults of the hyperparameters are Stable-Baselines3's where it has them.
What differs from the usual: rows whose step failed outside of the agent's doing are left out of learning; every draw
is a function of (seed, env, episode, step) or of (seed, update, epoch), so that a checkpoint needs no generator; and
`learn` resets the envs at its start with a seed of its own, so that going on from a checkpoint made at a segment's end
(`segment_steps`) gives the same bytes as never having stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.checking import check_kwargs
from instructgym.agents.draws import derive_seed, first_uniforms, sample_categorical, uniforms
from instructgym.agents.networks import ActorCritic, Adam, masked_log_softmax, masked_probs
from instructgym.agents.normaliser import ObservationNormaliser, RewardScaler
from instructgym.agents.rollout import Rollout, action_masks, require_same_step, valid_rows
from instructgym.agents.spaces import Flattener, num_actions, stack_rows
from instructgym.errors import BackendError, ConfigError

__all__ = ["PPO", "PPOConfig"]

_RESET, _SHUFFLE, _WEIGHTS = 1, 2, 3
"""Tags that keep the seeds of one run apart."""


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters. `n_steps` is the rollout's length an env; `normalize_obs` is the clip, or True for `clip_obs`.

    `lr_schedule` "linear" falls to 0 over the steps of the `learn` call that starts it. `target_kl` ends an update
    when the approximate KL of a minibatch exceeds 1.5 times it. Raises `ConfigError` for values that make no sense.
    """

    learning_rate: float = 3e-4
    lr_schedule: str = "constant"
    n_steps: int = 128
    batch_size: int = 64
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    normalize_advantage: bool = True
    normalize_obs: bool | float = False
    clip_obs: float = 10.0
    normalize_reward: bool = False
    net_arch: tuple[int, ...] = (64, 64)
    adam_eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "net_arch", tuple(self.net_arch))
        for name in ("n_steps", "batch_size", "n_epochs"):
            _require(self, name, "a whole number of at least 1", lambda v: isinstance(v, int) and v >= 1)
        for name in ("learning_rate", "clip_range", "max_grad_norm", "clip_obs", "adam_eps"):
            _require(self, name, "a number above 0", lambda v: v > 0)
        for name in ("ent_coef", "vf_coef"):
            _require(self, name, "a number of at least 0", lambda v: v >= 0)
        for name in ("gamma", "gae_lambda"):
            _require(self, name, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _require(self, "target_kl", "a number above 0, or none", lambda v: v is None or v > 0)
        _require(self, "lr_schedule", "'constant' or 'linear'", lambda v: v in ("constant", "linear"))
        _require(self, "normalize_obs", "false, true or a clip above 0", lambda v: isinstance(v, bool) or v > 0)
        _require(
            self, "net_arch", "sizes of at least 1", lambda v: all(isinstance(size, int) and size >= 1 for size in v)
        )

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> PPOConfig:
        """From plain values. Raises `ConfigError` for an unknown name, with the nearest one."""
        check_kwargs("agent 'ppo'", kwargs, cls.__dataclass_fields__)
        return cls(**kwargs)

    @property
    def obs_clip(self) -> float | None:
        """The clip of the observation normaliser, None without one."""
        if isinstance(self.normalize_obs, bool):
            return self.clip_obs if self.normalize_obs else None
        return float(self.normalize_obs)


def _require(config: PPOConfig, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(config, name)
    try:
        fine = holds(value)
    except TypeError:
        fine = False
    if not fine:
        raise ConfigError(f"ppo: {name} = {value!r}; expected {expected}.")


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
        self._recent: deque[tuple[float, int]] = deque(maxlen=100)

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
        flat = self._seen(self.flatten(obs))
        draws = None if deterministic else first_uniforms(rng)
        actions, log_probs = self._choose(flat, np.asarray(action_mask, bool), draws)
        return Decision(actions, log_probs, self.network.values(flat), state)

    def _seen(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        return flat if self.normaliser is None else self.normaliser(flat)

    def _choose(
        self, flat: NDArray[np.float32], mask: NDArray[np.bool_] | None, draws: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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

        Raises:
            UsageError: the env does not reset in the same step, or allows no action.
            BackendError: not one transition of a rollout is valid.
        """
        require_same_step(vector_env)
        goal = self.num_steps + total_steps
        if self.num_steps >= self.schedule_end:
            self.schedule_end = goal
        history: list[dict[str, float]] = []
        while self.num_steps < goal:
            stop = goal if segment_steps is None else min(goal, self.num_steps + segment_steps)
            collector = _Collector(self, vector_env)
            while self.num_steps < stop:
                # The last rollout is as short as it takes: a step is a paid call, and nobody asked for more of them.
                length = min(self.config.n_steps, -(-(goal - self.num_steps) // collector.size))
                rollout, raw = collector.collect(length, keep_infos=on_rollout_end is not None)
                if on_rollout_end is not None:
                    on_rollout_end(rollout)
                if not rollout.valid.any():
                    raise BackendError(
                        f"none of the {len(rollout)} transitions of a rollout is valid: every call failed. "
                        "The agent's weights are as they were before it."
                    )
                metrics = self.update(rollout)
                if self.normaliser is not None:
                    self.normaliser.update(raw[rollout.valid])
                self.num_steps += len(rollout)
                metrics |= self._episode_metrics(rollout)
                history.append(metrics)
                if progress is not None:
                    progress(self.num_steps, metrics)
            if on_segment_end is not None and self.num_steps < goal:
                on_segment_end()
        return history

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout; the metrics are those of the last epoch, as in Stable-Baselines3."""
        config = self.config
        if self.reward_scaler is not None:
            done = rollout.terminated | rollout.truncated
            rollout = replace(rollout, rewards=self.reward_scaler(rollout.rewards, done, rollout.valid))
        advantages = rollout.advantages(config.gamma, config.gae_lambda)
        returns = advantages + rollout.values
        keep = rollout.valid
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
        if self._recent:
            returns, lengths = zip(*self._recent, strict=True)
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
        recent = np.array(self._recent, np.float64).reshape(-1, 2)
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
        self._recent.clear()
        self._recent.extend((float(total), int(length)) for total, length in state["recent_episodes"])


def _entropy_loss(log_probs: Any) -> Any:  # (B, A) -> scalar
    return (log_probs.exp() * log_probs).sum(dim=1).mean()


class _Collector:
    """Steps the vector env with the policy and fills rollouts. Resets it once, when it is made."""

    def __init__(self, ppo: PPO, vector_env: Any) -> None:
        self.ppo = ppo
        self.env = vector_env
        self.size: int = vector_env.num_envs
        self.rows = np.arange(self.size)
        self.steps = np.zeros(self.size, np.int64)
        self.returns = np.zeros(self.size, np.float64)
        if len(ppo.episodes) != self.size:
            ppo.episodes = np.resize(ppo.episodes, self.size) if len(ppo.episodes) else np.zeros(self.size, np.int64)
        ppo.episodes = ppo.episodes + 1
        if ppo.reward_scaler is not None:
            ppo.reward_scaler.restart()
        obs, infos = vector_env.reset(seed=derive_seed(ppo.seed, _RESET, ppo.num_steps))
        self.flat = ppo.flatten(obs)
        self.mask = action_masks(infos, self.size, ppo.actions)

    def collect(self, length: int, keep_infos: bool) -> tuple[Rollout, NDArray[np.float32]]:
        """A rollout of `length` steps, and its flat observations (T, N, D) before normalisation."""
        ppo = self.ppo
        rollout = Rollout.empty(length, self.size, ppo.flatten.dim, ppo.actions)
        raw = np.empty_like(rollout.obs)
        finals: list[tuple[int, int, NDArray[np.float32]]] = []
        for t in range(length):
            raw[t] = self.flat
            rollout.obs[t] = seen = ppo._seen(self.flat)
            if self.mask is not None:
                rollout.masks[t] = self.mask
            draws = uniforms(ppo.seed, self.rows, ppo.episodes, self.steps)
            actions, rollout.log_probs[t] = ppo._choose(seen, self.mask, draws)
            rollout.actions[t] = actions
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
            done = terminated | truncated
            valid = valid_rows(infos, done)
            rollout.rewards[t] = rewards
            rollout.terminated[t], rollout.truncated[t], rollout.valid[t] = terminated, truncated, valid
            cut = np.flatnonzero(truncated & ~terminated & valid).tolist()
            finals += [(t, row, self._final(infos, row)) for row in cut]
            if keep_infos:
                rollout.infos.append(infos)
            self._count(rewards, done, valid)
            self.flat = ppo.flatten(obs)
            self.mask = action_masks(infos, self.size, ppo.actions)
        self._value(rollout, finals)
        return rollout, raw

    def _value(self, rollout: Rollout, finals: list[tuple[int, int, NDArray[np.float32]]]) -> None:
        """Values of the observations (one pass), and of what truly followed them."""
        network = self.ppo.network
        length = len(rollout.rewards)
        rollout.values[:] = network.values(rollout.obs.reshape(length * self.size, -1)).reshape(length, self.size)
        rollout.next_values[:-1] = rollout.values[1:]
        rollout.next_values[-1] = network.values(self.ppo._seen(self.flat))
        if finals:
            times, rows, obs = zip(*finals, strict=True)
            rollout.next_values[list(times), list(rows)] = network.values(self.ppo._seen(np.concatenate(obs)))

    def _final(self, infos: dict[str, Any], row: int) -> NDArray[np.float32]:
        """The flat final observation of a row that was truncated, (1, D)."""
        final = infos["final_obs"]
        single = {name: value[row] for name, value in final.items()} if isinstance(final, dict) else final[row]
        return self.ppo.flatten(stack_rows(self.ppo.obs_space, [single]))

    def _count(self, rewards: NDArray[Any], done: NDArray[np.bool_], valid: NDArray[np.bool_]) -> None:
        """Advance step, episode and return of each row; an episode that a failed call cut is not reported."""
        self.returns += rewards
        self.steps += 1
        if done.any():
            for row in np.flatnonzero(done & valid):
                self.ppo._recent.append((float(self.returns[row]), int(self.steps[row])))
            self.ppo.episodes += done
            self.steps[done] = 0
            self.returns[done] = 0.0
