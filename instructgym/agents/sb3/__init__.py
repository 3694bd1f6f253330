"""Stable-Baselines3 and sb3-contrib by adapter. Importing it loads them."""

from __future__ import annotations

from instructgym.agents.sb3.agent import SB3Agent
from instructgym.agents.sb3.vec_env import FlatNormalisedVecEnv, SB3VecEnv

__all__ = ["FlatNormalisedVecEnv", "SB3Agent", "SB3VecEnv"]
