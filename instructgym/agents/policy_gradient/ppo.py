"""Proximal policy optimisation (Schulman et al. 2017) with masked discrete actions.

The loss is the clipped surrogate of equation 7 with entropy bonus and squared value error (equation 9); advantages
are GAE, normalised a minibatch. Names and defaults of the hyperparameters are Stable-Baselines3's where it has them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.config import LearnerConfig, PPOConfig
from instructgym.agents.policy_gradient.learner import ActorCriticLearner, explained_variance
from instructgym.agents.policy_gradient.minibatches import Minibatch, Minibatches, Rows, Sequences
from instructgym.agents.policy_gradient.networks import masked_log_softmax
from instructgym.agents.rollout import Rollout

if TYPE_CHECKING:
    from instructgym.agents.policy_gradient.networks import RecurrentNetwork

__all__ = ["PPO"]


class PPO(ActorCriticLearner):
    """Our proximal policy optimisation: masked, exact checkpoints."""

    name = "ppo"
    config_type: ClassVar[type[LearnerConfig]] = PPOConfig
    config: PPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from one rollout; the metrics are those of the last epoch, as in Stable-Baselines3."""
        config = self.config
        rollout = self.scale_rewards(rollout)
        advantages = rollout.advantages(config.gamma, config.gae_lambda)
        returns = advantages + rollout.values
        advantages = self.policy_advantages(rollout, advantages)
        # What `_loss` takes of each transition beside what the network says of it:
        columns = [rollout.log_probs, advantages, returns]
        if config.clip_range_vf is not None:
            columns.append(rollout.values)
        batches = self.minibatches(rollout, columns)
        rate = self.learning_rate()
        epoch: list[dict[str, Any]] = []
        for number in range(config.n_epochs):
            epoch = []
            stopped = False
            for batch in batches.epoch(partial(self.shuffled, epoch=number), config.batch_size):
                report = config.target_kl is not None or number == config.n_epochs - 1
                loss, facts = self._loss(batch, report)
                epoch.append(facts)
                if config.target_kl is not None and float(facts["approx_kl"]) > 1.5 * config.target_kl:
                    stopped = True
                    break
                self.network.grad.zero_()
                loss.backward()
                self.optimiser.step(self.network.flat, self.network.grad, rate, config.max_grad_norm)
            if stopped:
                break
        keep = rollout.learned
        self.updates += 1
        means = {f"train/{name}": float(torch.stack([facts[name] for facts in epoch]).mean()) for name in epoch[0]}
        scheduled = {"train/ent_coef": self.entropy_coefficient()} if config.ent_schedule != "constant" else {}
        return (
            means
            | scheduled
            | {
                "train/explained_variance": explained_variance(returns[keep], rollout.values[keep]),
                "train/learning_rate": rate,
                "train/n_updates": float(self.optimiser.steps),
            }
        )

    def minibatches(self, rollout: Rollout, columns: list[NDArray[np.float32]]) -> Minibatches:
        """What an update goes through; `columns` are of the rollout's transitions, each (M,)."""
        if self.memory:
            network = cast("RecurrentNetwork", self.network)
            return Sequences(network, rollout, columns, self.config.sequence_length)
        return Rows(self.network, rollout, columns)

    def policy_advantages(self, rollout: Rollout, advantages: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the policy climbs, (M,), from the advantages of the rewards, (M,): these."""
        return advantages

    def normalise_advantages(self, advantages: Any) -> Any:
        """Of a minibatch, torch (B,) -> (B,)."""
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def entropy_coefficient(self) -> float:
        """The entropy bonus by the schedule."""
        first, last = self.config.ent_coef, self.config.ent_coef_final or 0.0
        return first if self.config.ent_schedule == "constant" else last + (first - last) * self.remaining

    def _loss(self, batch: Minibatch, report: bool) -> tuple[Any, dict[str, Any]]:
        """The loss of a minibatch, and what is reported of it (a fifth of its time, so only where it is asked for)."""
        config = self.config
        old_log_probs, advantages, returns = batch.columns[:, 0], batch.columns[:, 1], batch.columns[:, 2]
        values = batch.values
        log_probs = masked_log_softmax(batch.logits, batch.mask)
        log_ratio = log_probs.gather(1, batch.actions.unsqueeze(1)).squeeze(1) - old_log_probs
        ratio = log_ratio.exp()
        if config.normalize_advantage and len(advantages) > 1:
            advantages = self.normalise_advantages(advantages)
        clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
        policy_loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
        if config.clip_range_vf is not None:
            old_values = batch.columns[:, 3]
            values = old_values + (values - old_values).clamp(-config.clip_range_vf, config.clip_range_vf)
        value_loss = torch.nn.functional.mse_loss(values, returns)
        loss = policy_loss + config.vf_coef * value_loss
        ent_coef = self.entropy_coefficient()
        if ent_coef > 0:
            loss = loss + ent_coef * _entropy_loss(log_probs)
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


def _entropy_loss(log_probs: Any) -> Any:  # (B, A) -> scalar
    return (log_probs.exp() * log_probs).sum(dim=1).mean()
