"""A policy of your own: a class with `act`. This one never repeats an operation within an episode.

On the command line: --set agent.name=examples/04_your_own_agent.py:NoRepeats
"""

import argparse

import gymnasium
import numpy as np

import instructgym  # noqa: F401  registers the ids
from instructgym.agents import Agent, Decision, RandomAgent, RoundRobinAgent, evaluate


class NoRepeats(Agent):
    """Uniform over the legal operations that this episode has not seen yet; over all legal ones when none is left."""

    name = "no_repeats"

    def act(self, obs, *, action_mask, rng, state=None, deterministic=False) -> Decision:
        # N rows at once. `state` is what we returned last time, (N, A): whoever runs us sets a row to 0 at its start.
        used = np.zeros(action_mask.shape, np.int64) if state is None else state.copy()
        fresh = action_mask & (used == 0)
        allowed = np.where(fresh.any(axis=1, keepdims=True), fresh, action_mask)
        # `rng` holds one generator a row, so that a row's choice depends on that row alone
        choices = [generator.choice(np.flatnonzero(row)) for generator, row in zip(rng, allowed, strict=True)]
        actions = np.array(choices, np.int64)
        used[np.arange(len(actions)), actions] += 1
        return Decision(actions, state=used)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=64)
    episodes = parser.parse_args().episodes
    envs = gymnasium.make_vec(
        "instructgym/InstructionEvolution-v0", num_envs=16, vectorization_mode="vector_entry_point"
    )
    print(f"mean return over {episodes} simulated episodes, +- standard error")
    for agent in (RandomAgent(), RoundRobinAgent(), NoRepeats()):
        returns = evaluate(agent, envs, episodes, seed=1, deterministic=False)
        print(f"{agent.name:>18} {returns.mean():.3f} +- {returns.std() / len(returns) ** 0.5:.3f}")
    envs.close()


if __name__ == "__main__":
    main()
