"""The native vector env: steps a second on one core, where a step's time goes, what it saves where replies take time.

Simulated expert and reviewer (both orders), hashing encoder, the quickstart's reward and rules, random operations but
breadth, whose new subjects repeat. Each seed instruction bears a number of its own, so that no rewrite comes twice; the
table says how many did. Speed is of
process time, the best tenth of the batches, since other programs on the machine only ever make a batch slower; the
middle one stands beside it. The split comes from a run of its own, with clocks around each part. Where replies take
time, the alternative is Gymnasium's `SyncVectorEnv` of the same envs.

    python benchmarks/vector_env.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from _report import Report, parser

from instructgym.envs.elimination import EliminationRules
from instructgym.envs.env import InstructionEvolutionEnv
from instructgym.envs.loading import load_action_set
from instructgym.envs.observations import Observer
from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv
from instructgym.llm_backends.ledger import Ledger
from instructgym.llm_backends.simulated import SIMULATOR_VERSION, SimulatedBackend
from instructgym.rewards.encoders import HashingEncoder
from instructgym.train.config_text import load_config
from instructgym.train.seed_files import read_seeds
from instructgym.types import Completion, Instruction, Request, Seed

ENVS = 256
ACTION_SET = load_action_set("evol_instruct")
OPERATIONS = [index for index, operation in enumerate(ACTION_SET.operations) if not operation.changes_topic]
LATENCY_S = 0.05


class Waiting(SimulatedBackend):
    """Answers as the simulated backend does, after `LATENCY_S`."""

    async def complete(self, request: Request) -> Completion:
        await asyncio.sleep(LATENCY_S)
        return await super().complete(request)


def numbered(count: int) -> tuple[Seed, ...]:
    """`count` seeds of different texts."""
    seeds = read_seeds("default").seeds
    return tuple(
        Seed(f"{number}", Instruction(f"{seed.instruction.text} (Case {number}.)", seed.instruction.input))
        for number in range(count)
        for seed in [seeds[number % len(seeds)]]
    )


def env_config(**changes: Any) -> EnvConfig:
    options = {"reward": load_config("quickstart").reward.spec, "encoder": HashingEncoder(), "seeds": numbered(20_000)}
    return EnvConfig(**{**options, **changes})


def batches(env: Any, count: int, envs: int = ENVS) -> list[float]:
    """Process time of each of `count` steps of all envs, in seconds; the first ones are not counted."""
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    seconds = []
    for number in range(count + 4):
        actions = rng.choice(OPERATIONS, envs)
        started = time.process_time()
        env.step(actions)
        if number >= 4:
            seconds.append(time.process_time() - started)
    return seconds


def rewrites(count: int) -> tuple[int, int, int, int]:
    """(accepted rewrites, different ones, requests, those that the ledger knew) of so many batches."""
    env = InstructionEvolutionVectorEnv(ENVS, env_config())
    texts: list[str] = []
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    for _ in range(count):
        env.step(rng.choice(OPERATIONS, ENVS))
        texts += [
            step.child.render() for step in env.last_transitions if step is not None and step.child and step.accepted
        ]
    ledger = env.dynamics.expert.backend
    assert isinstance(ledger, Ledger)
    stats = ledger.stats().values()
    asked, known = sum(one.calls + one.hits for one in stats), sum(one.hits for one in stats)
    env.close()
    return len(texts), len(set(texts)), asked, known


class Clocks:
    """Exclusive time by part: a part that another one calls is not counted there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        self._enter(part)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, part: str) -> None:
        self._note()
        self._stack.append(part)

    def _leave(self) -> None:
        self._note()
        self._stack.pop()

    def _note(self) -> None:
        now = time.process_time()
        if self._stack:
            part = self._stack[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def around(self, owner: Any, name: str, part: str) -> Callable[[], None]:
        """Count `owner.name` as `part`; returns what undoes it. Nothing here waits, so a coroutine is one piece."""
        inner = getattr(owner, name)
        if asyncio.iscoroutinefunction(inner):

            async def timed(*args: Any, **options: Any) -> Any:
                with self.running(part):
                    return await inner(*args, **options)

        else:

            def timed(*args: Any, **options: Any) -> Any:
                with self.running(part):
                    return inner(*args, **options)

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, inner)


def split(count: int) -> dict[str, float]:
    """Seconds by part over `count` batches."""
    clocks = Clocks()
    env = InstructionEvolutionVectorEnv(ENVS, env_config())
    env.reset(seed=1)
    reward_class = type(env.dynamics.reward)
    undo = [
        clocks.around(SimulatedBackend, "answer", "simulated expert and reviewer"),
        clocks.around(Ledger, "complete", "ledger and the layers below"),
        clocks.around(HashingEncoder, "_encode", "hashing encoder"),
        clocks.around(EliminationRules, "inspect", "elimination rules"),
        clocks.around(reward_class, "score", "reward, without what it asks"),
        clocks.around(Observer, "observe", "observation"),
    ]
    rng = np.random.default_rng(0)
    with clocks.running("the rest: batching, infos, dynamics, portal"):
        for _ in range(count):
            env.step(rng.choice(OPERATIONS, ENVS))
    for each in undo:
        each()
    env.close()
    return clocks.seconds


def waiting(envs: int, count: int) -> tuple[float, float]:
    """Steps a second (native, `SyncVectorEnv`) where every reply takes `LATENCY_S`."""
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    seeds = numbered(4_000)
    native = InstructionEvolutionVectorEnv(envs, env_config(expert=Waiting(), seeds=seeds))
    one_by_one = SyncVectorEnv(
        [lambda: InstructionEvolutionEnv(env_config(expert=Waiting(), seeds=seeds)) for _ in range(envs)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    speeds = []
    for env, steps in ((native, count), (one_by_one, max(count // 4, 1))):
        rng = np.random.default_rng(0)
        env.reset(seed=1)
        env.step(rng.choice(OPERATIONS, envs))
        started = time.perf_counter()
        for _ in range(steps):
            env.step(rng.choice(OPERATIONS, envs))
        speeds.append(envs * steps / (time.perf_counter() - started))
        env.close()
    return speeds[0], speeds[1]


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0]).parse_args()
    report = Report("vector_env", options.quick, {"simulator": SIMULATOR_VERSION, "envs": ENVS})
    count = 8 if options.quick else 80
    texts, different, asked, known = rewrites(8 if options.quick else 16)
    repeated, hits = 1 - different / texts, known / asked
    report.row("accepted rewrites that came before", 100 * repeated, "%", "< 1", repeated < 0.01)
    # The rule "no_gain" of other configs would ask the reward's question again; here each is asked once.
    report.row("requests that the ledger knew", 100 * hits, "%", "< 1", hits < 0.01)
    env = InstructionEvolutionVectorEnv(ENVS, env_config())
    seconds = sorted(batches(env, count))
    env.close()
    best, middle = ENVS / seconds[len(seconds) // 10], ENVS / seconds[len(seconds) // 2]
    report.row(f"{ENVS} envs, one core, best tenth of the batches", best, "steps/s", ">= 4000", best >= 4_000)
    report.row(f"{ENVS} envs, one core, the middle batch", middle, "steps/s")
    parts = split(4 if options.quick else 24)
    total = sum(parts.values())
    for part, spent in sorted(parts.items(), key=lambda item: -item[1]):
        report.row(f"of a step: {part}", 100 * spent / total, "%")
    for envs in (8,) if options.quick else (8, 32, 64):
        native, one_by_one = waiting(envs, 4 if options.quick else 12)
        ratio = native / one_by_one
        case = f"{envs} envs, replies after {1e3 * LATENCY_S:g} ms"
        report.row(f"{case}: native", native, "steps/s")
        report.row(f"{case}: SyncVectorEnv", one_by_one, "steps/s")
        report.row(f"{case}: ratio", ratio, "times", f">= {envs / 2:g}", ratio >= envs / 2)
    report.finish(options.json)


if __name__ == "__main__":
    main()
