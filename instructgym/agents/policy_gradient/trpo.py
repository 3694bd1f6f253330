"""Trust region policy optimisation (Schulman et al. 2015) with masked discrete actions.

The natural gradient of the surrogate by conjugate gradient (appendix C), scaled to the KL limit, then a backtracking
line search on the surrogate and the KL themselves. The value is fitted apart, by least squares. Names of the
hyperparameters are sb3-contrib's where it has them; defaults are those of the original with GAE (gamma 0.995, lambda
0.97, ten conjugate-gradient steps, damping 0.1, halving), which TeaMs-RL's code uses too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.config import LearnerConfig
from instructgym.agents.policy_gradient.learner import ActorCriticLearner, explained_variance
from instructgym.agents.policy_gradient.networks import masked_log_softmax, masked_probs
from instructgym.agents.policy_gradient.regression import fit_values
from instructgym.agents.policy_gradient.trust_region import (
    FisherProduct,
    conjugate_gradient,
    flat_gradient,
    mean_kl,
)
from instructgym.agents.rollout import Rollout
from instructgym.errors import ConfigError

__all__ = ["TRPO", "TRPOConfig"]


@dataclass(frozen=True)
class TRPOConfig(LearnerConfig):
    """Hyperparameters of our TRPO, beside those of `LearnerConfig`.

    `target_kl` is the limit on the mean KL of a step, nats. `cg_max_steps` and `cg_damping` are of the conjugate
    gradient. The line search tries `line_search_max_iter` lengths, each `line_search_shrinking_factor` times the one
    before. `learning_rate`, `batch_size`, `n_critic_updates` (epochs) and `value_l2` (times the sum of the squared
    parameters) are of the value alone.

    Raises `ConfigError` for values that make no sense.
    """

    agent: ClassVar[str] = "trpo"

    learning_rate: float = 1e-3
    n_steps: int = 256
    batch_size: int = 128
    gamma: float = 0.995
    gae_lambda: float = 0.97
    target_kl: float = 0.01
    cg_max_steps: int = 10
    cg_damping: float = 0.1
    line_search_shrinking_factor: float = 0.5
    line_search_max_iter: int = 10
    n_critic_updates: int = 10
    value_l2: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("network", "'mlp' or 'cross_attention': its step does not go through time", lambda v: v != "gru")
        self._require_counts("cg_max_steps", "line_search_max_iter", "n_critic_updates")
        self._require_positive("target_kl", "cg_damping")
        self._require_not_negative("value_l2")
        self._require("line_search_shrinking_factor", "a number between 0 and 1", lambda v: 0 < v < 1)


class TRPO(ActorCriticLearner):
    """Our trust region policy optimisation: masked, exact checkpoints."""

    name = "trpo"
    config_type: ClassVar[type[LearnerConfig]] = TRPOConfig
    config: TRPOConfig
    _apart: list[list[Any]] | None = None  # parameters of the policy, and of the value

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout: one step of the policy, then the regression of the value."""
        config = self.config
        rollout = self.scale_rewards(rollout)
        advantages = rollout.advantages(config.gamma, config.gae_lambda)
        keep = rollout.learned
        returns = (advantages + rollout.values)[keep]
        step = self._step(rollout, advantages[keep])
        rate = self.learning_rate()
        value_loss = fit_values(
            lambda obs: self.network.forward(obs)[1],
            self.network,
            self.optimiser,
            rollout.obs[keep],
            returns,
            epochs=config.n_critic_updates,
            batch_size=config.batch_size,
            learning_rate=rate,
            shuffled=lambda epoch: self.shuffled(len(returns), epoch),
            l2=self._value_penalty(),
        )
        self.updates += 1
        return step | {
            "train/explained_variance": explained_variance(returns, rollout.values[keep]),
            "train/learning_rate": rate,
            "train/n_updates": float(self.updates),
            "train/value_loss": value_loss,
        }

    def _step(self, rollout: Rollout, advantages: NDArray[np.float32]) -> dict[str, float]:
        """Move the policy, if a step within the KL limit improves the surrogate; else it stays. Returns what was so."""
        config, keep = self.config, rollout.learned
        if config.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + np.float32(1e-8))
        batch = _Batch(
            rollout.obs[keep],
            None if rollout.masks[keep].all() else rollout.masks[keep],
            rollout.actions[keep],
            rollout.log_probs[keep],
            advantages,
        )
        parameters = self._parameters_of(0)
        logits, _ = self.network.forward(torch.from_numpy(batch.obs))
        log_probs = masked_log_softmax(logits, None if batch.mask is None else torch.from_numpy(batch.mask))
        chosen = log_probs.gather(1, torch.from_numpy(batch.actions).unsqueeze(1)).squeeze(1)
        ratio = (chosen - torch.from_numpy(batch.log_probs)).exp()
        gradient = flat_gradient((ratio * torch.from_numpy(batch.advantages)).mean(), parameters)
        product = FisherProduct(logits, log_probs.detach().exp(), parameters, config.cg_damping)
        direction = conjugate_gradient(product, gradient, config.cg_max_steps)
        curvature = float(direction.dot(product(direction)))
        old = masked_probs(self.network.logits(batch.obs), batch.mask)
        before = batch.surrogate(old)
        if not (math.isfinite(curvature) and curvature > 0):  # the gradient vanished: nowhere to go
            return _told(before, 0.0, False)
        full = direction * math.sqrt(2.0 * config.target_kl / curvature)
        start = [parameter.detach().clone() for parameter in parameters]
        for attempt in range(config.line_search_max_iter):
            self._move(parameters, start, full, config.line_search_shrinking_factor**attempt)
            new = masked_probs(self.network.logits(batch.obs), batch.mask)
            kl, objective = mean_kl(old, new), batch.surrogate(new)
            if kl <= config.target_kl and objective > before:
                return _told(objective, kl, True)
        self._move(parameters, start, full, 0.0)
        return _told(before, 0.0, False)

    def _move(self, parameters: list[Any], start: list[Any], step: Any, share: float) -> None:
        """Set the parameters to `start` plus a share of the step; exactly `start` for 0."""
        parts = torch.split(step, [parameter.numel() for parameter in parameters])
        for parameter, origin, part in zip(parameters, start, parts, strict=True):
            parameter.detach().copy_(origin if share == 0 else origin + share * part.view_as(origin))

    def _value_penalty(self) -> Any | None:
        """The L2 coefficient of each parameter, (P,): 0 for the policy's."""
        if self.config.value_l2 == 0:
            return None
        own = {id(parameter) for parameter in self._parameters_of(1)}
        everything = self.network.parameters.values()
        return torch.cat([torch.full((p.numel(),), self.config.value_l2 if id(p) in own else 0.0) for p in everything])

    def _parameters_of(self, output: int) -> list[Any]:
        """The parameters behind the logits (0) or the values (1).

        Raises `ConfigError` if they have some in common: the regression of the value would move the policy, and the KL
        limit would mean nothing.
        """
        if self._apart is None:
            everything = list(self.network.parameters.values())
            outputs = self.network.forward(torch.zeros(1, self.flatten.dim))
            grads = [
                torch.autograd.grad(part.sum(), everything, allow_unused=True, retain_graph=True) for part in outputs
            ]
            if any(one is not None and other is not None for one, other in zip(*grads, strict=True)):
                raise ConfigError(
                    "trpo: policy and value of the network share parameters; expected them apart, for the value is "
                    "fitted outside of the trust region. Use ppo with this network."
                )
            self._apart = [
                [parameter for parameter, grad in zip(everything, part, strict=True) if grad is not None]
                for part in grads
            ]
        return self._apart[output]


@dataclass(frozen=True)
class _Batch:
    """What is learned from, B rows."""

    obs: NDArray[np.float32]  # (B, D)
    mask: NDArray[np.bool_] | None  # (B, A)
    actions: NDArray[np.int64]  # (B,), like those that follow
    log_probs: NDArray[np.float32]
    advantages: NDArray[np.float32]

    def surrogate(self, probs: NDArray[np.float32]) -> float:  # (B, A)
        """Mean of ratio times advantage, the ratio to the policy that acted."""
        chosen = probs[np.arange(len(probs)), self.actions].astype(np.float64)
        return float((chosen / np.exp(self.log_probs.astype(np.float64)) * self.advantages).mean())


def _told(objective: float, kl: float, success: bool) -> dict[str, float]:
    return {
        "train/is_line_search_success": float(success),
        "train/kl_divergence_loss": kl,
        "train/policy_objective": objective,
    }
