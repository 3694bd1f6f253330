"""The Gymnasium ids, as strings: registering imports no environment."""

from __future__ import annotations

from typing import Any

import gymnasium

from instructgym.types import Sampling

__all__ = ["TEAMS_RL", "register_envs"]

TEAMS_RL: dict[str, Any] = {
    "action_set": "teams_rl",
    "observation": "last_operation",
    "horizon": 6,
    "reward": {"reviewer_equality": {"weight": 1.0, "orders": "forward"}},
    "elimination": ("empty",),
    "penalty": 0.0,
    "sampling": Sampling(temperature=0.7, top_p=0.95, max_tokens=2048),
}
"""TeaMs-RL (arXiv 2403.08694) as its paper describes it: an episode a seed, the policy's own choice of six operations,
reward 1 iff the reviewer, asked once with the text before and after, says "not equal". No elimination but of replies
that hold no instruction. docs/papers.md lists where its released code differs."""


def register_envs() -> None:
    """Register ``instructgym/InstructionEvolution-v0`` and ``instructgym/TeaMsRL-v0``; twice does nothing more."""
    presets: dict[str, dict[str, Any]] = {"InstructionEvolution-v0": {}, "TeaMsRL-v0": TEAMS_RL}
    for name, kwargs in presets.items():
        if f"instructgym/{name}" not in gymnasium.registry:
            gymnasium.register(
                f"instructgym/{name}",
                entry_point="instructgym.envs.env:InstructionEvolutionEnv",
                vector_entry_point="instructgym.envs.vector_env:InstructionEvolutionVectorEnv",
                kwargs=kwargs,
            )
