"""TeaMs-RL as its paper describes it: six operations, the last operation as observation, the reviewer as reward.

The whole job with sb3-contrib's TRPO: instructgym run teams_rl. docs/papers.md lists where the authors' code differs.
"""

import argparse

import gymnasium

import instructgym  # noqa: F401  registers the ids

parser = argparse.ArgumentParser()
parser.add_argument("--episodes", type=int, default=20)
args = parser.parse_args()

env = gymnasium.make("instructgym/TeaMsRL-v0")
env.action_space.seed(0)
observation, info = env.reset(seed=0)
names = env.unwrapped.dynamics.action_set.names
print(f"{len(names)} operations, horizon {env.unwrapped.config.horizon}; first observation {observation}")

tries, not_equal = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
for _ in range(args.episodes):
    done = False
    while not done:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        tries[info["operation"]] += 1
        not_equal[info["operation"]] += reward  # 1 iff the reviewer finds the texts not equal
        done = terminated or truncated
    env.reset()
env.close()

print(f"how often the simulated reviewer found a rewrite not equal to its parent, {args.episodes} random episodes")
for name in names:
    print(f"{name:>26} {not_equal[name] / max(1, tries[name]):5.0%} of {tries[name]}")
