"""Rewards made of rewards, and rewards made of functions."""

from instructgym.rewards.composition.clip import Clip
from instructgym.rewards.composition.function import FunctionReward, as_reward
from instructgym.rewards.composition.gate import Gate
from instructgym.rewards.composition.lagrangian import Cost, Lagrangian
from instructgym.rewards.composition.normalize import Normalize
from instructgym.rewards.composition.product import Product
from instructgym.rewards.composition.schedule import Schedule
from instructgym.rewards.composition.weighted_sum import WeightedSum

__all__ = [
    "Clip",
    "Cost",
    "FunctionReward",
    "Gate",
    "Lagrangian",
    "Normalize",
    "Product",
    "Schedule",
    "WeightedSum",
    "as_reward",
]
