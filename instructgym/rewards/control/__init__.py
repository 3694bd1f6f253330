"""Rewards that hold another one in check: validity, length, relevance, perplexity, cost, shaping."""

from instructgym.rewards.control.length import LengthCap, LengthResidual
from instructgym.rewards.control.operation_cost import OperationCost
from instructgym.rewards.control.perplexity_band import PerplexityBand
from instructgym.rewards.control.relevance import Relevance
from instructgym.rewards.control.shaping import Shaping
from instructgym.rewards.control.validity import Validity

__all__ = ["LengthCap", "LengthResidual", "OperationCost", "PerplexityBand", "Relevance", "Shaping", "Validity"]
