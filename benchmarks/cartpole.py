"""Our PPO on CartPole-v1: what it reaches within 150,000 steps, and its speed beside Stable-Baselines3's PPO.

    python benchmarks/cartpole.py [--quick] [--json FILE]

Returns are of 100 episodes with the mode of the policy, on seeds that training does not use. Speed is measured in
turns in this process, on one thread, with the same hyperparameters (8 envs, rollouts of 256 steps, minibatches of 64,
10 epochs), as steps a second of process time, so that other load on the machine tells less.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import gymnasium
import torch
from _report import Report, parser
from gymnasium.vector import AutoresetMode

from instructgym.agents import PPO, PPOConfig, evaluate

STEPS = 150_000
SOLVED = 475.0
SOLVER = PPOConfig(
    learning_rate=1e-3,
    lr_schedule="linear",
    n_steps=32,
    batch_size=256,
    n_epochs=20,
    gamma=0.98,
    gae_lambda=0.8,
)
SPEED = {"n_steps": 256, "batch_size": 64, "n_epochs": 10}


def cartpole(envs: int) -> Any:
    return gymnasium.make_vec(
        "CartPole-v1",
        envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


def solve(seed: int, steps: int) -> float:
    env = cartpole(8)
    ppo = PPO(env.single_observation_space, env.single_action_space, SOLVER, seed)
    ppo.learn(env, steps - steps % (8 * SOLVER.n_steps))
    return float(evaluate(ppo, cartpole(50), 100, seed=10_000 + seed).mean())


def our_speed(steps: int) -> float:
    env = cartpole(8)
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**SPEED), 0)
    return _speed(lambda: ppo.learn(env, steps), steps)


def sb3_speed(steps: int) -> float:
    from stable_baselines3 import PPO as TheirPPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    model = TheirPPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), device="cpu", seed=0, **SPEED)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return _speed(lambda: model.learn(steps), steps)


def _speed(learn: Any, steps: int) -> float:
    started = time.process_time()
    learn()
    return steps / (time.process_time() - started)


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    report = Report("cartpole", options.quick)
    seeds, steps = (1, 30_000) if options.quick else (3, STEPS)
    returns = []
    for seed in range(seeds):
        returns.append(solve(seed, steps))
        held = returns[-1] >= SOLVED
        report.row(f"mean return after {steps:,} steps, seed {seed}", returns[-1], "points", f">= {SOLVED:g}", held)
    solved = sum(value >= SOLVED for value in returns)
    report.row("seeds solved", solved, f"of {seeds}", f"{seeds} of {seeds}", solved == seeds)
    turns, speed_steps = (2, 4_096) if options.quick else (5, 16_384)
    our_speed(2_048), sb3_speed(2_048)
    pairs = [(our_speed(speed_steps), sb3_speed(speed_steps)) for _ in range(turns)]
    report.row("our PPO, 8 envs", median(ours for ours, _ in pairs), "steps/s")
    report.row("Stable-Baselines3 PPO, 8 envs", median(theirs for _, theirs in pairs), "steps/s")
    ratio = median(ours / theirs for ours, theirs in pairs)
    report.row("ours / Stable-Baselines3", ratio, "times", ">= 1.8", ratio >= 1.8)
    report.finish(options.json)


if __name__ == "__main__":
    main()
