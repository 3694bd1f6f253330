"""Does choosing pay, and does PPO learn to choose? Policies on the simulated expert, between random and the optimum.

Action set `evol_instruct`, 4 steps, the quickstart's reward, rules, encoder and agent. Every policy meets the same
seed instructions and the same draws of the (simulated) expert. The scale is uniform random = 0 and the exhaustive
optimum over all 6^4 sequences = 1; the optimum knows the draws beforehand, so it is an upper bound.

    python benchmarks/learning.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from _report import Report, parser
from numpy.typing import NDArray

from instructgym.agents import make_agent
from instructgym.envs.dynamics import Dynamics, State
from instructgym.envs.elimination import DEFAULT_RULES, EliminationRules
from instructgym.envs.loading import load_action_set
from instructgym.envs.observations import Observer
from instructgym.envs.spec import REVIEWER_SAMPLING, EnvConfig
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.simulated import SIMULATOR_VERSION, SimulatedBackend
from instructgym.rewards.building import make_reward
from instructgym.rewards.encoders import open_encoder
from instructgym.train.chains import ChainJob, run_chains
from instructgym.train.config_text import load_config
from instructgym.train.planning import Tree, grow_tree
from instructgym.train.seed_files import read_seeds, split_seeds
from instructgym.types import Seed

UNSEEN_TOPICS = ("law", "cooking", "finance")
DRAW = 7
"""The chain draw that every policy meets; the search plans with others."""


@cache
def parts() -> tuple[Dynamics, Observer]:
    """The quickstart's dynamics and observer on the bare simulator: no ledger, so that a step costs what it costs."""
    config = load_config("quickstart")
    action_set = load_action_set("evol_instruct")
    encoder = open_encoder(config.env.encoder)
    backend = SimulatedBackend()
    expert = LLM(backend, "expert", "simulated")
    reviewer = LLM(backend, "reviewer", "simulated", REVIEWER_SAMPLING)
    changes_topic = [operation.name for operation in action_set.operations if operation.changes_topic]
    reward = make_reward(config.reward.spec, reviewer=reviewer, encoder=encoder, changes_topic=changes_topic)
    rules = EliminationRules(DEFAULT_RULES, encoder=encoder, reviewer=reviewer, changes_topic=changes_topic)
    dynamics = Dynamics(
        expert=expert,
        action_set=action_set,
        reward=reward,
        elimination=rules,
        horizon=config.env.horizon,
        penalty=config.env.penalty,
    )
    return dynamics, Observer(config.env.observation, action_set, config.env.horizon, encoder=encoder)


async def grow(state: State, draw: int) -> Tree:
    """The tree below `state` where the expert's samples are those of `draw`."""
    return await grow_tree(parts()[0], state, draw)


def tree_of(seed: Seed) -> Tree:
    return asyncio.run(grow(parts()[0].start(seed, DRAW), DRAW))


def search_return(seed: Seed, samples: int) -> float:
    """Plan with resampled draws, take one step with the real one, plan again. It never sees a draw beforehand.

    The value of an operation is the mean over the samples of the best return below it (hindsight optimisation). The
    mean of whole sequences, maximised afterwards, was tried first: it picks lucky ones among 1,296 and reached 0.82.
    """

    async def run() -> float:
        dynamics, _ = parts()
        state, total = dynamics.start(seed, DRAW), 0.0
        while not state.over:
            trees = [await grow(state, 1_000 + 100 * state.step + sample) for sample in range(samples)]
            best = [tree.returns.reshape(len(dynamics.action_set), -1).max(axis=1) for tree in trees]
            action = int(np.argmax(np.mean(best, axis=0)))
            outcome = await dynamics.step(state, action)
            total += outcome.reward or 0.0
            state = outcome.state
        return total

    return asyncio.run(run())


def greedy(tree: Tree) -> float:
    path: tuple[int, ...] = ()
    total = 0.0
    for rewards in tree.rewards:
        action = int(np.argmax(rewards[path]))
        path = (*path, action)
        total += float(rewards[path])
    return total


def best_table(trees: list[Tree]) -> float:
    """The best table indexed by (step, last operation, last one eliminated), found by coordinate ascent on `trees`.

    Without the third index a deterministic table is a fixed sequence, since the operations it chose are known. Fitted
    on the very seeds that it is measured on, so it flatters the table.
    """
    horizon, actions = len(trees[0].rewards), trees[0].rewards[0].shape[0]
    rewards = [np.stack([tree.rewards[t] for tree in trees]) for t in range(horizon)]
    eliminated = [np.stack([tree.eliminated[t] for tree in trees]) for t in range(horizon)]
    rows = np.arange(len(trees))

    def value(table: NDArray[np.int64]) -> float:  # (horizon, A + 1, 2)
        path: tuple[Any, ...] = (rows,)
        last, gone, total = np.full(len(trees), actions), np.zeros(len(trees), dtype=int), np.zeros(len(trees))
        for t in range(horizon):
            last = table[t, last, gone]
            path = (*path, last)
            total += rewards[t][path]
            gone = eliminated[t][path].astype(int)
        return float(total.mean())

    rng = np.random.default_rng(0)
    best = -np.inf
    for _ in range(6):
        table = rng.integers(actions, size=(horizon, actions + 1, 2))
        reached, before = value(table), -np.inf
        while reached > before:
            before = reached
            for entry in itertools.product(*map(range, table.shape)):
                options = []
                for action in range(actions):
                    table[entry] = action
                    options.append(value(table))
                table[entry] = int(np.argmax(options))
                reached = max(options)
        best = max(best, reached)
    return best


def trained(train: tuple[Seed, ...], seed: int, steps: int) -> Any:
    """The quickstart's instructor, trained for `steps` environment steps."""
    config = load_config("quickstart")
    env = InstructionEvolutionVectorEnv(
        config.train.num_envs,
        EnvConfig(
            seeds=train,
            reward=config.reward.spec,
            encoder=config.env.encoder,
            observation=config.env.observation,
            run_seed=seed,
        ),
    )
    try:
        agent = make_agent(
            config.agent.name,
            env.single_observation_space,
            env.single_action_space,
            kwargs=config.agent.kwargs,
            seed=seed,
            action_names=load_action_set("evol_instruct").names,
        )
        agent.learn(env, steps)
    finally:
        env.close()
    return agent


def agent_returns(agent: Any, seeds: tuple[Seed, ...]) -> NDArray[np.float64]:  # -> (len(seeds),)
    dynamics, observer = parts()
    jobs = [ChainJob(index, seed, DRAW, agent) for index, seed in enumerate(seeds)]
    chains = asyncio.run(
        run_chains(jobs, dynamics=dynamics, observer=observer, run_seed=0, width=16, deterministic=True)
    )
    return np.array([chain.total_reward for chain in chains])


def _train_and_run(task: tuple[tuple[Seed, ...], int, int, dict[str, tuple[Seed, ...]]]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    train, seed, steps, groups = task
    agent = trained(train, seed, steps)
    return {name: agent_returns(agent, seeds) for name, seeds in groups.items()}


def _search(task: tuple[Seed, int]) -> float:
    return search_return(*task)


def bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% of a bootstrap over agents and seed instructions alike; `values` (agents, seeds) on the scale."""
    rng = np.random.default_rng(0)
    agents, seeds = values.shape
    means = [values[rng.integers(agents, size=agents)][:, rng.integers(seeds, size=seeds)].mean() for _ in range(2_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def interval(values: NDArray[np.float64]) -> str:
    low, high = bounds(values)
    return f"[{low:.2f}, {high:.2f}]"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=20_000, help="environment steps of training")
    options.add_argument("--agents", type=int, default=3, help="training seeds")
    options.add_argument("--skip-search", action="store_true", help="leave out the non-clairvoyant search (minutes)")
    arguments = options.parse_args()
    seeds = read_seeds("default").seeds
    known = tuple(seed for seed in seeds if seed.topic not in UNSEEN_TOPICS)
    train, held_out = split_seeds(known, 0.25, 0)
    unseen = tuple(seed for seed in seeds if seed.topic in UNSEEN_TOPICS)
    agents, steps, samples = arguments.agents, arguments.steps, 6
    if arguments.quick:
        held_out, unseen, agents, steps, samples = held_out[::6], unseen[::9], 1, min(steps, 2_048), 2
    report = Report(
        "learning",
        arguments.quick,
        {
            "simulator": SIMULATOR_VERSION,
            "training seeds": len(train),
            "known topics, held out": len(held_out),
            f"unseen topics ({', '.join(UNSEEN_TOPICS)})": len(unseen),
            "training steps": steps,
        },
    )
    groups = {"known topics": held_out, "unseen topics": unseen}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        trees = {name: pool.map(tree_of, members) for name, members in groups.items()}
        runs = pool.map(_train_and_run, [(train, seed, steps, groups) for seed in range(agents)])
        searched = [] if arguments.skip_search else pool.map(_search, [(seed, samples) for seed in held_out])
        grown = {name: list(found) for name, found in trees.items()}
        returns = list(runs)
        found = np.array(list(searched))
    names = load_action_set("evol_instruct").names
    for name, members in grown.items():
        table = np.stack([tree.returns for tree in members])  # (seeds, A, A, A, A)
        random, optimum = table.mean(), table.max(axis=(1, 2, 3, 4)).mean()

        def scaled(value: Any, random: float = random, optimum: float = optimum) -> Any:
            return (value - random) / (optimum - random)

        is_known = name == "known topics"
        report.row(f"{name}: uniform random, mean return", float(random), "reward")
        report.row(f"{name}: exhaustive optimum (clairvoyant), mean return", float(optimum), "reward")
        singles = {names[action]: scaled(table[:, action, action, action, action].mean()) for action in range(6)}
        best = max(singles, key=lambda operation: singles[operation])
        report.row(
            f"{name}: best single operation ({best})", singles[best], "of the scale", "< 0.4", singles[best] < 0.4
        )
        fixed = scaled(table.mean(axis=0).max())
        report.row(
            f"{name}: best fixed sequence = best (step, last operation) table",
            fixed,
            "of the scale",
            "< 0.65",
            fixed < 0.65,
        )
        rich = scaled(best_table(members))
        report.row(
            f"{name}: best (step, last operation, eliminated) table", rich, "of the scale", "< 0.65", rich < 0.65
        )
        report.row(
            f"{name}: greedy one-step (asks all rewards)",
            scaled(np.mean([greedy(tree) for tree in members])),
            "of the scale",
        )
        if is_known and len(found):
            reached = scaled(found.mean())
            report.row(f"{name}: search with resampled draws", reached, "of the scale", ">= 0.85", reached >= 0.85)
        ppo = scaled(np.stack([run[name] for run in returns]))  # (agents, seeds)
        case = f"{name}: PPO, {steps:,} steps, {agents} seeds, 95% {interval(ppo)}"
        if is_known:
            report.row(case, float(ppo.mean()), "of the scale", ">= 0.7", ppo.mean() >= 0.7)
        else:
            report.row(case, float(ppo.mean()), "of the scale")
        report.row(f"{name}: PPO, each seed", ", ".join(f"{value:.2f}" for value in ppo.mean(axis=1)), "of the scale")
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
