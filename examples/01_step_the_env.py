"""Step the environment by hand: one chain, from its seed to the horizon.

The expert and the reviewer are the simulated backend, so this needs no key, model or network.
"""

import argparse

import gymnasium

import instructgym  # noqa: F401  importing it registers the ids

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=3)
parser.add_argument("--instruction", help="evolve this text instead of one of the shipped seeds")
args = parser.parse_args()

env = gymnasium.make("instructgym/InstructionEvolution-v0", horizon=4, render_mode="ansi")
env.action_space.seed(args.seed)
options = {"instruction": args.instruction} if args.instruction else None
observation, info = env.reset(seed=args.seed, options=options)
print(f"observation {observation.shape} {observation.dtype}, {env.action_space.n} operations")

done = False
while not done:
    action = env.action_space.sample(info["action_mask"])
    observation, reward, terminated, truncated, info = env.step(action)
    verdict = f"eliminated: {info['elimination']}" if info["elimination"] else "accepted"
    print(f"{info['operation']:>20}  reward {reward:+.3f}  {verdict}")
    done = terminated or truncated

print()
print(env.render())
env.close()
