"""Train Stable-Baselines3's PPO on the environment; nothing here is special to InstructGym but the id."""

import argparse

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import instructgym  # noqa: F401  registers the ids

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2048)
parser.add_argument("--episodes", type=int, default=50)
args = parser.parse_args()

ID = "instructgym/InstructionEvolution-v0"
env = make_vec_env(lambda: gymnasium.make(ID), n_envs=4, seed=0)
test_env = make_vec_env(lambda: gymnasium.make(ID, run_seed=1), n_envs=4, seed=100)  # other draws of the expert

# Small updates on 4-step episodes. Should calls to a real endpoint fail, info["valid"] is False: then train through
# `instructgym run ... --set agent.name=sb3:ppo`, whose adapter repeats such steps instead of learning from them.
model = PPO("MlpPolicy", env, n_steps=128, batch_size=128, seed=0, device="cpu")
before, _ = evaluate_policy(model, test_env, args.episodes, deterministic=False)
model.learn(args.steps)
after, spread = evaluate_policy(model, test_env, args.episodes, deterministic=False)

print(f"mean return over {args.episodes} simulated episodes: {before:.3f} before, {after:.3f} after")
print(f"{model.num_timesteps} steps of PPO; standard deviation between episodes {spread:.3f}")
