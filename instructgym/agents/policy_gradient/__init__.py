"""Policy gradients of our own: the learners, their networks and what collects their rollouts. Importing loads torch."""

from __future__ import annotations

from instructgym.agents.policy_gradient.config import PPOConfig
from instructgym.agents.policy_gradient.lagrangian import PPOLagrangian, PPOLagrangianConfig
from instructgym.agents.policy_gradient.learner import ActorCriticLearner
from instructgym.agents.policy_gradient.ppo import PPO
from instructgym.agents.policy_gradient.trpo import TRPO, TRPOConfig

__all__ = [
    "PPO",
    "TRPO",
    "ActorCriticLearner",
    "PPOConfig",
    "PPOLagrangian",
    "PPOLagrangianConfig",
    "TRPOConfig",
]
