"""PPO under a limit on what an episode costs (PPO-Lagrangian; Ray, Achiam, Amodei 2019).

The policy climbs ``(A - multiplier * A_cost) / (1 + multiplier)``, where the advantages of the cost have a value
function of their own. The multiplier follows the mean cost of the episodes that a rollout finished: by projected
gradient ascent, or, with gains for the error itself and its rise, as a PID controller (Stooke, Achiam, Abbeel 2020,
algorithm 2), which damps the swing of policy and multiplier around each other.

Costs are counted in limits: an error of 1 is an episode that cost twice the limit. So the gains mean the same whether
an episode may cost 2.5 calls or 0.01 dollars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.draws import derive_seed
from instructgym.agents.policy_gradient.adam import Adam
from instructgym.agents.policy_gradient.collector import Successors
from instructgym.agents.policy_gradient.config import LearnerConfig, PPOConfig
from instructgym.agents.policy_gradient.costs import read_costs
from instructgym.agents.policy_gradient.networks import make_critic
from instructgym.agents.policy_gradient.ppo import PPO
from instructgym.agents.policy_gradient.regression import fit_values
from instructgym.agents.rollout import Rollout, gae
from instructgym.errors import UsageError

__all__ = ["CostRollout", "Multiplier", "PPOLagrangian", "PPOLagrangianConfig"]

_COST = 4
"""Tag that keeps the cost critic's weights and shuffles apart from the others."""


@dataclass(frozen=True)
class PPOLagrangianConfig(PPOConfig):
    """Hyperparameters beside those of `PPOConfig`; `cost` and `cost_limit` have to be given.

    `cost` names a number in the env's infos (``calls``), or several with a weight each
    (``{"usage/prompt_tokens": 3e-6, "usage/completion_tokens": 15e-6}``: dollars); ``a/b`` is the key b of the dict
    under a. `cost_limit` is the mean sum over an episode that is allowed, undiscounted. `cost_gamma` (None: `gamma`)
    and `cost_gae_lambda` (None: `gae_lambda`) are of the cost's advantages.

    The multiplier starts at `lambda_init`; an update adds `lambda_lr` times the error (mean cost an episode over the
    limit, minus 1). `lambda_kp` and `lambda_kd` are the gains on the error itself and on its rise since the last
    update; with both 0 it is projected gradient ascent.

    Raises `ConfigError` for values that make no sense.
    """

    agent: ClassVar[str] = "ppo_lagrangian"

    cost: str | Mapping[str, float] = ""
    cost_limit: float | None = None
    cost_gamma: float | None = None
    cost_gae_lambda: float | None = None
    lambda_init: float = 0.0
    lambda_lr: float = 0.2
    lambda_kp: float = 2.0
    lambda_kd: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("cost", "the name of a number in the infos, or weights by such names", _is_cost)
        self._require("cost_limit", "a finite number of at least 0", lambda v: math.isfinite(v) and v >= 0)
        self._require_not_negative("lambda_init", "lambda_lr", "lambda_kp", "lambda_kd")
        for name in ("cost_gamma", "cost_gae_lambda"):
            self._require(name, "a number from 0 to 1, or none", lambda v: v is None or 0 <= v <= 1)

    @property
    def weights(self) -> Mapping[str, float]:
        """`cost` as weights by name."""
        return {self.cost: 1.0} if isinstance(self.cost, str) else self.cost

    @property
    def limit(self) -> float:
        """`cost_limit`, which is checked to be there."""
        return float(self.cost_limit or 0.0)

    @property
    def cost_unit(self) -> float:
        """What the learner counts costs in: the limit, or 1 if that is 0."""
        return self.limit or 1.0


class Multiplier:
    """The price of cost, from the mean costs of episodes as they come. Errors are ``cost / unit - limit / unit``."""

    def __init__(
        self, *, limit: float, unit: float, start: float, integral_gain: float, gain: float, rise_gain: float
    ) -> None:
        self.limit, self.unit = limit, unit
        self.integral_gain, self.gain, self.rise_gain = integral_gain, gain, rise_gain
        self.integral = self.value = start
        self.previous = math.nan

    def update(self, cost: float) -> None:
        """Take in the mean cost of an episode."""
        error = (cost - self.limit) / self.unit
        rise = 0.0 if math.isnan(self.previous) else max(0.0, (cost - self.previous) / self.unit)
        self.integral = max(0.0, self.integral + self.integral_gain * error)
        self.value = max(0.0, self.integral + self.gain * error + self.rise_gain * rise)
        self.previous = cost

    def state_dict(self) -> dict[str, Any]:
        return {"state": np.array([self.integral, self.value, self.previous])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.integral, self.value, self.previous = (float(number) for number in state["state"])


@dataclass
class CostRollout(Rollout):
    """With costs, in the learner's unit, and their values, all (M,)."""

    costs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    cost_values: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    next_cost_values: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def empty(cls, size: int, num_envs: int, obs_dim: int, actions: int, memory: int = 0) -> CostRollout:
        rollout = _with_costs(super().empty(size, num_envs, obs_dim, actions, memory))
        for name in ("costs", "cost_values", "next_cost_values"):
            setattr(rollout, name, np.zeros(size, np.float32))
        return rollout

    def cost_advantages(self, gamma: float, gae_lambda: float) -> NDArray[np.float32]:  # (M,)
        """As `advantages`, of the costs."""
        columns = (
            self.costs,
            self.cost_values,
            self.next_cost_values,
            self.terminated,
            self.truncated,
            self.learned,
        )
        grids = [self.grid(column) for column in columns]
        return gae(*grids, gamma=gamma, gae_lambda=gae_lambda)[self.times, self.rows]


class PPOLagrangian(PPO):
    """Our PPO under a limit on the mean cost of an episode: calls, tokens, dollars."""

    name = "ppo_lagrangian"
    config_type: ClassVar[type[LearnerConfig]] = PPOLagrangianConfig
    config: PPOLagrangianConfig

    def __init__(
        self,
        obs_space: Any,
        action_space: Any,
        config: PPOLagrangianConfig | None = None,
        seed: int = 0,
        *,
        action_features: NDArray[np.float32] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(obs_space, action_space, config, seed, action_features=action_features, **options)
        own = self.config
        self.cost_critic = make_critic(own, self.flatten.dim + self.memory, derive_seed(seed, _COST))
        self.cost_optimiser = Adam(self.cost_critic.flat.numel(), own.adam_eps)
        self.multiplier = Multiplier(
            limit=own.limit,
            unit=own.cost_unit,
            start=own.lambda_init,
            integral_gain=own.lambda_lr,
            gain=own.lambda_kp,
            rise_gain=own.lambda_kd,
        )
        self._running: NDArray[np.float64] = np.zeros(0)  # cost of each env's episode so far
        self._finished: list[float] = []  # costs of the episodes that ended since the last update

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout of `empty_rollout`'s kind: the multiplier first, then policy and both values."""
        rollout = _with_costs(rollout)
        config, keep = self.config, rollout.learned
        mean_cost = float(np.mean(self._finished)) if self._finished else math.nan
        if self._finished:
            self.multiplier.update(mean_cost)
            self._finished = []
        targets = (self._cost_advantages(rollout) + rollout.cost_values)[keep]
        cost_value_loss = fit_values(
            self.cost_critic.forward,
            self.cost_critic,
            self.cost_optimiser,
            rollout.obs[keep],
            targets,
            epochs=config.n_epochs,
            batch_size=config.batch_size,
            learning_rate=self.learning_rate(),
            shuffled=lambda epoch: self.shuffled(len(targets), epoch, _COST),
        )
        metrics = super().update(rollout)
        told = {} if math.isnan(mean_cost) else {"rollout/ep_cost_mean": mean_cost}
        return (
            metrics
            | told
            | {
                "train/cost_value_loss": cost_value_loss,
                "train/lagrange_multiplier": self.multiplier.value / config.cost_unit,
            }
        )

    def policy_advantages(self, rollout: Rollout, advantages: NDArray[np.float32]) -> NDArray[np.float32]:
        price, costs = self.multiplier.value, self._cost_advantages(_with_costs(rollout))
        scale = 1.0 + price
        if self.config.normalize_advantage:
            keep = rollout.learned
            scale = math.sqrt(advantages[keep].var() + price**2 * costs[keep].var()) + 1e-8
        return np.asarray((advantages - price * costs) / scale, np.float32)

    def normalise_advantages(self, advantages: Any) -> Any:
        """Centred only: at the limit reward and cost cancel, and scaling what is left would make noise a full step."""
        return advantages - advantages.mean()

    def _cost_advantages(self, rollout: CostRollout) -> NDArray[np.float32]:  # (M,)
        config = self.config
        return rollout.cost_advantages(
            config.gamma if config.cost_gamma is None else config.cost_gamma,
            config.gae_lambda if config.cost_gae_lambda is None else config.cost_gae_lambda,
        )

    def restart(self, num_envs: int) -> None:
        super().restart(num_envs)
        self._running, self._finished = np.zeros(num_envs), []

    def empty_rollout(self, size: int, num_envs: int) -> CostRollout:
        return CostRollout.empty(size, num_envs, self.flatten.dim, self.actions, self.memory)

    def record(self, rollout: Rollout, part: slice, rows: NDArray[np.int64], infos: Mapping[str, Any]) -> None:
        rollout = _with_costs(rollout)
        done = rollout.terminated[part] | rollout.truncated[part]
        costs = read_costs(infos, done, self.config.weights)
        rollout.costs[part] = costs / self.config.cost_unit
        self._running[rows] += costs
        self._finished.extend(self._running[rows[done & rollout.valid[part]]].tolist())
        self._running[rows[done]] = 0.0

    def evaluate(self, rollout: Rollout, successors: Successors) -> None:
        rollout = _with_costs(rollout)
        super().evaluate(rollout, successors)
        rollout.cost_values[:], rollout.next_cost_values[:] = successors(self.cost_critic.values)

    def _parts(self) -> dict[str, Any]:
        return super()._parts() | {
            "cost": self.cost_critic,
            "cost_optimiser": self.cost_optimiser,
            "multiplier": self.multiplier,
        }


def _with_costs(rollout: Rollout) -> CostRollout:
    if not isinstance(rollout, CostRollout):
        raise UsageError(f"ppo_lagrangian got a {type(rollout).__name__}; expected a CostRollout, which has costs.")
    return rollout


def _is_cost(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    weights = [*value.values()] if isinstance(value, Mapping) else []
    return bool(weights) and all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights)
