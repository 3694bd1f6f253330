"""The LLM runtime against a bare aiohttp loop that sends the same requests: wall time, CPU a call, limits, memory.

    python benchmarks/llm_throughput.py [--quick] [--only CASE,...] [--distilabel PYTHON] [--json FILE]

Server and client share the machine, so what counts is the ratio of two clients in the same run. The server is the
simulated endpoint in a process of its own; its latency is a function of (seed, prompt), so both clients meet the same.
The requests are those of stage `evolve` with a random policy and the reviewer off, recorded in a first run. The bare
loop posts their bodies, each chain one after the other, and reads the answers: no ledger, no budget, no retries. The
runtime asks the same through its whole stack, with ledger (SQLite file) and budget on. "evolve" is the stage itself: it
also parses each answer, applies the elimination rules, and scores it with the hashing encoder.

`--distilabel` names a Python that has distilabel 1.5.3 (``pip install "distilabel[openai]" requests`` in an environment
of its own: it does not live beside the versions that are used here); its EvolInstruct then does as many calls.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from _endpoint import Endpoint, endpoint
from _report import Report, parser

from instructgym.agents.baselines import RandomAgent
from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.envs.dynamics import Dynamics
from instructgym.envs.elimination import DEFAULT_RULES, EliminationRules
from instructgym.envs.observations import Observer
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.budget import Budget
from instructgym.llm_backends.endpoint_pool import EndpointPool
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.openai_wire import request_body
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.server_behaviour import ServerBehaviour, prompt_digest
from instructgym.llm_backends.stack import BackendStack, open_stack
from instructgym.rewards.building import make_reward
from instructgym.rewards.encoders import open_encoder
from instructgym.train.bounded import map_bounded
from instructgym.train.chains import ChainJob, run_chains
from instructgym.train.seed_files import read_seeds
from instructgym.types import Completion, Message, Request, Sampling

EVOL_INSTRUCT = BUILTIN_ACTION_SETS["evol_instruct"]
KEY = "INSTRUCTGYM_BENCHMARK_KEY"
SAMPLING = Sampling(max_tokens=1024)
BUDGET = Budget(max_calls=10_000_000, max_tokens=100_000_000_000)
Chains = list[list[Request]]
"""What each chain asks, in order."""


class Recording:
    """Passes requests on and keeps them by chain, to be asked again."""

    def __init__(self, inner: OpenAICompatibleBackend) -> None:
        self.name = inner.name
        self._inner = inner
        self._requests: dict[tuple[int, ...], Request] = {}

    async def complete(self, request: Request) -> Completion:
        self._requests[request.sample] = request
        return await self._inner.complete(request)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def chains(self) -> Chains:
        chains: dict[int, list[Request]] = {}
        for (chain, _), request in sorted(self._requests.items()):
            chains.setdefault(chain, []).append(request)
        return list(chains.values())


@asynccontextmanager
async def runtime(url: str, limits: Limits, *, record: bool = False) -> AsyncIterator[tuple[BackendStack, Any]]:
    """The stack as a run has it, on a ledger file of its own; and its transport."""
    backend: Any = OpenAICompatibleBackend(url, api_key_env=KEY, max_connections=limits.concurrency or 1000)
    transport = Recording(backend) if record else backend
    with tempfile.TemporaryDirectory() as folder:
        pool = EndpointPool([transport], limits)
        stack = open_stack(pool, ledger_path=Path(folder) / "ledger.sqlite", budget=BUDGET, limits=limits)
        await backend.check()  # opens the client: importing openai is no part of a call
        try:
            yield stack, transport
        finally:
            await stack.aclose()


async def evolve(stack: BackendStack, chains: int, steps: int, width: int) -> float:
    """Seconds of wall time for so many chains."""
    encoder = open_encoder("hashing")
    expert = LLM(stack.backend, "expert", "simulated", SAMPLING, "evolve")
    dynamics = Dynamics(
        expert=expert,
        action_set=EVOL_INSTRUCT,
        reward=make_reward({"novelty": 1.0, "gate": True}, encoder=encoder),
        elimination=EliminationRules(
            [rule for rule in DEFAULT_RULES if rule != "no_gain"], encoder=encoder, changes_topic=EVOL_INSTRUCT
        ),
        horizon=steps,
        penalty=0.1,
    )
    observer = Observer("flat", EVOL_INSTRUCT, steps, encoder=encoder)
    seeds = read_seeds("default").seeds
    policy = RandomAgent()
    jobs = [ChainJob(chain, seeds[chain % len(seeds)], draw=chain, policy=policy) for chain in range(chains)]
    started = time.perf_counter()
    await run_chains(jobs, dynamics=dynamics, observer=observer, run_seed=0, width=width)
    return time.perf_counter() - started


async def ask(stack: BackendStack, chains: Chains, width: int) -> float:
    """Seconds of wall time of the runtime: `width` chains at a time, each one call after the other."""

    async def one(requests: list[Request]) -> None:
        for request in requests:
            await stack.backend.complete(request)

    started = time.perf_counter()
    await map_bounded(one, chains, width=width)
    return time.perf_counter() - started


async def bare(url: str, bodies: list[list[bytes]], width: int) -> float:
    """Seconds of wall time of the bare loop, which does the same."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    connector = aiohttp.TCPConnector(limit=width)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def chain(posts: list[bytes]) -> None:
            for body in posts:
                async with session.post(f"{url}/chat/completions", data=body) as reply:
                    json.loads(await reply.read())["choices"][0]["message"]["content"]

        started = time.perf_counter()
        await map_bounded(chain, bodies, width=width)
        return time.perf_counter() - started


def body_of(request: Request) -> bytes:
    return json.dumps(request_body(request, request_seed(0, request.sample))).encode()


@dataclass(frozen=True)
class Sides:
    """Wall times of alternating repeats, and what was asked."""

    bare: list[float]
    ours: list[float]
    evolve: list[float]
    chains: Chains


async def side_by_side(where: Endpoint, chains: int, steps: int, width: int, repeats: int) -> Sides:
    limits = Limits(concurrency=width)
    async with runtime(where.base_url, limits, record=True) as (stack, transport):
        await evolve(stack, chains, steps, width)
        asked = transport.chains()
    bodies = [[body_of(request) for request in requests] for requests in asked]
    sides = Sides([], [], [], asked)
    for _ in range(repeats):
        sides.bare.append(await bare(where.base_url, bodies, width))
        async with runtime(where.base_url, limits) as (stack, _):
            sides.ours.append(await ask(stack, asked, width))
        async with runtime(where.base_url, limits) as (stack, _):
            sides.evolve.append(await evolve(stack, chains, steps, width))
    return sides


def burst(report: Report, quick: bool) -> None:
    """400 chains at once, each call 0.5 s."""
    chains, repeats = (100, 1) if quick else (400, 5)
    with endpoint(latency_s=0.5) as where:
        sides = asyncio.run(side_by_side(where, chains, 2, chains, repeats))
    name = f"{chains} chains x 2 calls of 0.5 s, {chains} in flight"
    report.row(f"{name}: bare aiohttp loop", median(sides.bare), "s")
    report.row(f"{name}: runtime", median(sides.ours), "s")
    ratio = median(ours / plain for ours, plain in zip(sides.ours, sides.bare, strict=True))
    report.row(f"{name}: runtime / bare", ratio, "x", "<= 1.25", ratio <= 1.25)
    ratio = median(ours / plain for ours, plain in zip(sides.evolve, sides.bare, strict=True))
    report.row(f"{name}: evolve / bare", ratio, "x")


def tail(report: Report, quick: bool) -> None:
    """A lognormal tail: a client that waits for the slowest of a round takes several times as long."""
    chains, steps, width, repeats = (60, 2, 20, 1) if quick else (400, 4, 50, 3)
    behaviour = ServerBehaviour(latency_s=0.1 if quick else 0.5, sigma=1.0)
    with endpoint(latency_s=behaviour.latency_s, sigma=1.0) as where:
        sides = asyncio.run(side_by_side(where, chains, steps, width, repeats))
    service = sum(behaviour.latency_of(prompt_digest(request.messages)) for asked in sides.chains for request in asked)
    name = f"{chains} chains x {steps} calls, lognormal (mean {behaviour.latency_s} s, sigma 1), {width} in flight"
    shares = {}
    for side, walls in (("bare", sides.bare), ("runtime", sides.ours), ("evolve", sides.evolve)):
        shares[side] = median(service / width / wall for wall in walls)
        report.row(f"{name}: share of the work-conserving limit, {side}", shares[side], "")
    for side in ("runtime", "evolve"):
        ratio = shares[side] / shares["bare"]
        report.row(f"{name}: {side} / bare", ratio, "x", ">= 0.95", ratio >= 0.95)


def vector_env(report: Report, quick: bool) -> None:
    """The same tail through the vector env: a step waits for the slowest row, `recv` for a quarter of them."""
    import numpy as np

    envs, ready, rounds = (32, 8, 2) if quick else (256, 64, 4)
    latency = 0.1 if quick else 0.5
    with endpoint(latency_s=latency, sigma=1.0) as where:
        rates = {}
        for way in ("step", "recv"):
            env = InstructionEvolutionVectorEnv(
                envs,
                expert="openai",
                base_url=where.base_url,
                model="simulated",
                api_key_env=KEY,
                concurrency=envs,
                reward={"novelty": 1.0},
                elimination=[rule for rule in DEFAULT_RULES if rule != "no_gain"],
                encoder="hashing",
                run_seed=0 if way == "step" else 1,
            )
            rng = np.random.default_rng(0)
            env.reset(seed=0)
            env.step(rng.integers(0, 6, envs))  # opens the client
            started, done = time.perf_counter(), 0
            if way == "step":
                for _ in range(rounds):
                    env.step(rng.integers(0, 6, envs))
                    done += envs
            else:
                env.send(rng.integers(0, 6, envs))
                while done < 2 * rounds * envs:
                    rows = env.recv(ready)[4]["env_id"]
                    done += len(rows)
                    env.send(rng.integers(0, 6, len(rows)), rows)
            rates[way] = done / (time.perf_counter() - started)
            env.close()
    name = f"vector env, {envs} envs, lognormal latency (mean {latency} s, sigma 1)"
    report.row(f"{name}: step", rates["step"], "transitions/s")
    report.row(f"{name}: recv(min_ready={ready})", rates["recv"], "transitions/s")
    ratio = rates["recv"] / rates["step"]
    report.row(f"{name}: recv / step", ratio, "x", ">= 3", ratio >= 3.0)


def cost(report: Report, quick: bool) -> None:
    """CPU time of this process a call (all threads), and its memory, as the ledger grows."""
    sizes = (1_000, 3_000) if quick else (1_000, 10_000, 25_000, 50_000)
    with endpoint(canned=True) as where:
        marks, plain = asyncio.run(_cost(where, sizes))
    for (calls, milliseconds, megabytes), last in zip(marks, [False] * (len(marks) - 1) + [True], strict=True):
        name = f"CPU a call, ledger and budget on, 64 in flight, calls {calls:,}"
        report.row(f"memory after {calls:,} calls", megabytes, "MB")
        report.row(name, milliseconds, "ms", "<= 0.8", milliseconds <= 0.8)
        if last:
            growth = milliseconds / marks[0][1]
            report.row(f"CPU a call at {calls:,} / at {marks[0][0]:,}", growth, "x", "<= 1.2", growth <= 1.2)
            megabytes_more = megabytes - marks[1][2]
            report.row(
                f"memory at {calls:,} calls less at {marks[1][0]:,}",
                megabytes_more,
                "MB",
                "<= 20",
                megabytes_more <= 20,
            )
    report.row("CPU a call, bare aiohttp and json, 64 in flight", plain, "ms")


async def _cost(where: Endpoint, sizes: Sequence[int]) -> tuple[list[tuple[int, float, float]], float]:
    """(calls so far, ms of CPU a call since the mark before, resident MB) at each mark; and the bare loop's ms."""
    text = "Rewrite the instruction between the marks so that it asks for more. " * 8
    marks, done = [], 0
    async with runtime(where.base_url, Limits(concurrency=64)) as (stack, _):
        llm = LLM(stack.backend, "expert", "simulated", SAMPLING, "evolve")

        async def one(number: int) -> None:
            await llm.ask([Message("user", f"{text}{number}")], prompt_version="cost/1", sample=(number, 0))

        await map_bounded(one, range(10**9, 10**9 + 200), width=64)
        for size in sizes:
            before = time.process_time()
            await _in_turn(one, range(done, size), 64)
            spent = time.process_time() - before
            gc.collect()
            marks.append((size, 1e3 * spent / (size - done), _resident_mb()))
            done = size
    message = Message("user", text)
    asked = [
        Request("expert", "simulated", (message,), SAMPLING, "cost/1", (i, 0)) for i in range(min(5_000, sizes[-1]))
    ]
    bodies = [[body_of(request)] for request in asked]
    before = time.process_time()
    await bare(where.base_url, bodies, 64)
    return marks, 1e3 * (time.process_time() - before) / len(bodies)


async def _in_turn(work: Callable[[int], Any], numbers: range, width: int) -> None:
    """`work` for each number, `width` at a time, keeping no result."""
    queue = iter(numbers)

    async def worker() -> None:
        for number in queue:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(width)))


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def capacity(report: Report, quick: bool) -> None:
    """A server that takes 64 calls at once and answers 429 beyond, and a client of which nothing is configured."""
    seconds, slots, latency = (12.0, 16, 0.2) if quick else (60.0, 64, 0.5)
    with endpoint(canned=True, latency_s=latency, capacity=slots) as where:
        late_200, late_429, window = asyncio.run(_capacity(where, seconds, 10.0 if not quick else 4.0))
    share = late_200 / window / (slots / latency)
    refused = late_429 / max(1, late_200 + late_429)
    name = f"server of {slots} slots, 429 beyond, {latency} s, no limit configured, after the first 10 s"
    report.row(f"{name}: share of its capacity", share, "", ">= 0.9", share >= 0.9)
    report.row(f"{name}: share answered 429", refused, "", "< 0.02", refused < 0.02)


async def _capacity(where: Endpoint, seconds: float, warm_up_s: float) -> tuple[int, int, float]:
    """Answers 200 and 429 after `warm_up_s`, and the seconds in which they came."""
    async with runtime(where.base_url, Limits()) as (stack, _):
        llm = LLM(stack.backend, "expert", "simulated", SAMPLING, "evolve")
        end = time.perf_counter() + seconds

        async def worker(number: int) -> None:
            turn = 0
            while time.perf_counter() < end:
                await llm.ask([Message("user", "Rewrite this.")], prompt_version="c/1", sample=(number, turn))
                turn += 1

        workers = [asyncio.create_task(worker(number)) for number in range(400)]
        await asyncio.sleep(warm_up_s)
        began = time.perf_counter()
        before = await asyncio.to_thread(where.stats)
        await asyncio.sleep(seconds - warm_up_s - 0.5)
        after = await asyncio.to_thread(where.stats)
        window = time.perf_counter() - began
        await asyncio.gather(*workers)
    counts = [after["by_status"].get(code, 0) - before["by_status"].get(code, 0) for code in ("200", "429")]
    return counts[0], counts[1], window


def distilabel(report: Report, quick: bool, python: str) -> None:
    """The same work by distilabel's EvolInstruct at its best settings, in its own environment."""
    chains = 50 if quick else 400
    with endpoint(latency_s=0.5) as where:
        for way in ("pipeline", "process"):
            name = f"{chains} chains x 2 steps of 0.5 s: distilabel EvolInstruct, {way}"
            script = Path(__file__).with_name("_distilabel_client.py")
            done = subprocess.run(
                [python, str(script), way, where.base_url, str(chains)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                report.skip(name, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed")
            else:
                report.row(name, float(done.stdout.strip().splitlines()[-1]), "s")


CASES: dict[str, Callable[[Report, bool], None]] = {
    "burst": burst,
    "tail": tail,
    "vector_env": vector_env,
    "cost": cost,
    "capacity": capacity,
}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--only", metavar="CASE,...", help=f"some of {', '.join(CASES)}")
    options.add_argument("--distilabel", metavar="PYTHON", help="a Python that has distilabel")
    arguments = options.parse_args()
    os.environ[KEY] = "none"
    gc.freeze()  # what was imported is no rubbish, and looking through it is no part of a call
    report = Report("llm_throughput", arguments.quick)
    for name in arguments.only.split(",") if arguments.only else CASES:
        print(f"{name} ...", file=sys.stderr)
        CASES[name](report, arguments.quick)
    if arguments.distilabel:
        distilabel(report, arguments.quick, arguments.distilabel)
    else:
        report.skip("distilabel's EvolInstruct", "--distilabel PYTHON names an environment that has it")
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
