"""Training that ends by expert calls: what makes policies comparable.

An environment step asks the expert once, but for `stop` and illegal choices, which ask nobody; and most algorithms
take whole rollouts. So an agent learns in segments, each as long as it can be without exceeding what is left.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING

from instructgym.agents.base import Algorithm, Progress
from instructgym.errors import ConfigError
from instructgym.train.watched_env import CallsSpent, WatchedVectorEnv

if TYPE_CHECKING:
    from instructgym.agents.sb3 import SB3Agent

__all__ = ["learn_within", "steps_within"]

_SB3_ROLLOUT = 2048
"""The transitions of a rollout that `SB3Agent` aims at, at most, where nobody says `n_steps`."""


def learn_within(
    agent: Algorithm, env: WatchedVectorEnv, steps: int, calls: int | None, progress: Progress | None = None
) -> None:
    """Let `agent` learn for `steps` environment steps, or until `calls` expert calls are used.

    With `calls` an agent goes on in segments: where a segment asked less than it had steps, the rest goes into another.
    An algorithm that would need more than what is left for its next rollout stops before it, so up to a rollout may
    stay unused. One that asks for more than it was told is cut off, and does not learn from what it had begun.

    Raises `ConfigError` if not even a first rollout fits: an agent that learned nothing must not pass for one that did.
    """
    if calls is None:
        agent.learn(env, steps, progress=progress)
        return
    left = steps
    while True:
        wanted = steps_within(agent, min(left, calls - env.calls), env.num_envs)
        before = env.steps
        if wanted <= 0:
            if before == 0:
                raise ConfigError(
                    f"agent '{agent.name}' takes more than train.calls = {calls} steps at a time; expected at least "
                    f"one rollout of {env.num_envs} envs. Raise the calls, or lower its n_steps or train.num_envs."
                )
            return
        try:
            agent.learn(env, wanted, progress=progress)
        except CallsSpent:
            return
        left -= env.steps - before
        if env.steps == before:
            return


def steps_within(agent: Algorithm, bound: int, num_envs: int) -> int:
    """The largest number of environment steps up to `bound` that ``agent.learn`` takes without taking more."""
    if not agent.name.startswith("sb3:"):
        return bound // num_envs * num_envs
    from instructgym.agents.sb3 import SB3Agent

    if not isinstance(agent, SB3Agent):
        return bound // num_envs * num_envs
    return _sb3_steps(agent, bound, num_envs)


def _sb3_steps(agent: SB3Agent, bound: int, num_envs: int) -> int:
    """Whole rollouts. A first `learn` without `n_steps` chooses it by its length, in whole minibatches."""
    parameters = inspect.signature(agent.algorithm).parameters

    def argument(name: str) -> int:
        value = agent.kwargs.get(name, parameters[name].default)
        return value if isinstance(value, int) and value > 0 else 1

    if "train_freq" in parameters:
        unit = argument("train_freq") * num_envs
    elif "n_steps" in parameters and agent.num_steps > 0:
        unit = int(agent.model.n_steps) * num_envs
    elif "n_steps" in parameters and ("n_steps" in agent.kwargs or "batch_size" not in parameters):
        unit = argument("n_steps") * num_envs
    elif "n_steps" in parameters:
        batch = argument("batch_size")
        unit = math.lcm(batch, num_envs)
        steps = bound // unit * unit
        while steps > 0 and steps % (unit * -(-steps // _SB3_ROLLOUT)):  # unequal rollouts would be rounded up
            steps -= unit
        return steps
    else:
        unit = num_envs
    return bound // unit * unit
