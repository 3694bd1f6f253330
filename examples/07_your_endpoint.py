"""Your own endpoint: the environment against an OpenAI-compatible server, here the simulated one.

To use a real one, set OPENAI_API_KEY and pass --base-url and --model.
"""

import argparse
import contextlib
import os

import gymnasium

import instructgym  # noqa: F401  registers the ids
from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend

parser = argparse.ArgumentParser()
parser.add_argument("--base-url", help="an endpoint that is there; default: start a simulated one")
parser.add_argument("--model", default="simulated")
parser.add_argument("--steps", type=int, default=4)
args = parser.parse_args()

with contextlib.ExitStack() as stack:
    server, base_url = None, args.base_url
    if base_url is None:
        # 50 ms an answer, and one request in twenty fails: retries hide that from the environment
        behaviour = ServerBehaviour(latency_s=0.05, fault_rate=0.05)
        server = stack.enter_context(SimulatedServer(SimulatedBackend(seed=0), behaviour).in_thread())
        base_url = server.base_url
        os.environ.setdefault("OPENAI_API_KEY", "none")  # read from the environment alone; this server takes any
    envs = gymnasium.make_vec(
        "instructgym/InstructionEvolution-v0",
        num_envs=8,
        vectorization_mode="vector_entry_point",
        expert="openai",
        base_url=base_url,
        model=args.model,
    )
    stack.callback(envs.close)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for step in range(args.steps):
        _, rewards, _, _, _ = envs.step(envs.action_space.sample())
        # infos of a row that ended are those of its new episode, so what the step led to is read here
        outcomes = envs.unwrapped.last_outcomes
        eliminated = sum(outcome.transition.elimination is not None for outcome in outcomes)
        valid = sum(outcome.valid for outcome in outcomes)
        print(f"step {step}: mean reward {rewards.mean():+.3f}, {eliminated} of 8 eliminated, {valid} of 8 valid")
    if server is not None:
        stats = server.stats()
        print(f"the server saw {stats['requests']} requests {stats['by_status']}, {stats['max_in_flight']} at once")
