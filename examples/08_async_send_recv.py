"""Do not wait for the slowest: send / recv, against an endpoint whose answers take very different times.

Rows come back as they are ready, so the order depends on time and a run does not repeat itself.
"""

import argparse
import os
import time

import gymnasium
import numpy as np

import instructgym  # noqa: F401  registers the ids
from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=256, help="transitions to collect, each way")
args = parser.parse_args()
ROWS = 16
os.environ.setdefault("OPENAI_API_KEY", "none")


def make_envs(base_url: str):
    return gymnasium.make_vec(
        "instructgym/InstructionEvolution-v0",
        num_envs=ROWS,
        vectorization_mode="vector_entry_point",
        expert="openai",
        base_url=base_url,
        model="simulated",
        reward="novelty",  # no reviewer: one call a step
    )


rng = np.random.default_rng(0)
# latency: lognormal, mean 50 ms; a few answers take many times that
with SimulatedServer(SimulatedBackend(seed=0), ServerBehaviour(latency_s=0.05, sigma=1.0)).in_thread() as server:
    envs = make_envs(server.base_url)
    envs.reset(seed=0)
    started = time.perf_counter()
    for _ in range(args.steps // ROWS):
        envs.step(rng.integers(envs.single_action_space.n, size=ROWS))
    print(f"step():       {args.steps / (time.perf_counter() - started):6.0f} transitions/s")
    envs.close()

    envs = make_envs(server.base_url)
    envs.reset(seed=0)
    started = time.perf_counter()
    envs.send(rng.integers(envs.single_action_space.n, size=ROWS))
    collected, batches = 0, 0
    while collected < args.steps:
        observations, rewards, terminated, truncated, infos = envs.recv(min_ready=1)
        rows = infos["env_id"]
        collected, batches = collected + len(rows), batches + 1
        envs.send(rng.integers(envs.single_action_space.n, size=len(rows)), rows)
    print(f"send()/recv(): {collected / (time.perf_counter() - started):5.0f} transitions/s, in {batches} batches")
    envs.close()  # drops what is still in flight
