"""Training that ends by expert calls: what makes policies comparable.

An environment step asks the expert once, but for `stop` and illegal choices, which ask nobody; and most algorithms
take whole rollouts. So an agent learns in segments, each as long as it can be without exceeding what is left.
"""

from __future__ import annotations

from collections.abc import Mapping

from instructgym.agents.base import Algorithm, Progress
from instructgym.errors import ConfigError
from instructgym.train.watched_env import CallsSpent, WatchedVectorEnv

__all__ = ["learn_within", "steps_within"]


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
    left, began, reports = steps, agent.num_steps, 0

    def told(steps: int, metrics: dict[str, float]) -> None:
        nonlocal reports
        reports += 1
        if progress is not None:
            progress(steps, metrics)

    while True:
        wanted = steps_within(agent, min(left, calls - env.calls), env.num_envs)
        before = env.steps
        cut_off = False
        if wanted > 0:
            try:
                agent.learn(env, wanted, progress=told)
            except CallsSpent:
                cut_off = True
        if wanted <= 0 or cut_off:
            if before == 0 and agent.num_steps == began and not reports:
                raise ConfigError(
                    f"agent '{agent.name}' takes more than train.calls = {calls} steps at a time; expected at least "
                    f"one rollout of {env.num_envs} envs. Raise the calls, or lower its n_steps or train.num_envs."
                )
            return
        left -= env.steps - before
        if env.steps == before or (_stops_early(agent) and env.steps - before < wanted):
            return


def _stops_early(agent: Algorithm) -> bool:
    """True if a user's callback may have ended learning; it is not begun again then."""
    kwargs = getattr(agent, "kwargs", None)
    return isinstance(kwargs, Mapping) and bool(kwargs.get("callbacks"))


def steps_within(agent: Algorithm, bound: int, num_envs: int) -> int:
    """The largest number of environment steps up to `bound` that ``agent.learn`` takes without taking more."""
    own = getattr(agent, "steps_within", None)
    return int(own(bound, num_envs)) if callable(own) else bound // num_envs * num_envs
