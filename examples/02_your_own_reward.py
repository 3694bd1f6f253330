"""A reward of your own: a plain function of a transition, and what changes when it joins the others.

On the command line: --set reward.terms='{"examples/02_your_own_reward.py:concise" = 1.0}'
"""

import argparse

import gymnasium
import numpy as np

import instructgym


def concise(transition: instructgym.Transition) -> float:
    """1 for a rewrite of up to 30 words, less for longer ones."""
    if transition.child is None:
        return 0.0
    return min(1.0, 30 / max(1, len(transition.child.text.split())))


def mean_return(reward, operation: int, episodes: int) -> float:
    """Of a policy that always picks the same operation."""
    # make_vec with this mode is the native vector env: the calls of all rows go out together
    envs = gymnasium.make_vec(
        "instructgym/InstructionEvolution-v0",
        num_envs=episodes,
        vectorization_mode="vector_entry_point",
        reward=reward,
        horizon=3,
    )
    envs.reset(seed=0)
    rewards = [envs.step(np.full(episodes, operation))[1] for _ in range(3)]
    envs.close()
    return float(np.sum(rewards, axis=0).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=32)
    episodes = parser.parse_args().episodes
    # A reward is a name with its weight, "file.py:NAME", a function, or a Reward object.
    rewards = {
        "novelty alone": {"novelty": 1.0},
        "concise alone": concise,
        "both": {"novelty": 1.0, f"{__file__}:concise": 0.5, "gate": True},
    }
    print(f"mean return of 3 steps over {episodes} simulated episodes")
    print(f"{'':>15} {'deepen':>8} {'breadth':>8}")
    for name, reward in rewards.items():
        # 1 and 5 are deepen and breadth of `evol_instruct`, the default action set
        deepen, breadth = (mean_return(reward, operation, episodes) for operation in (1, 5))
        print(f"{name:>15} {deepen:8.3f} {breadth:8.3f}")


if __name__ == "__main__":
    main()
