"""What logs of random chains are good for: the value of policies that never ran, and a policy without a new call.

Two questions, on the simulated expert with the quickstart's action set, reward, rules and encoder, 4 steps a chain:

1. Does the 95% interval of an off-policy estimate hold the truth? Each repeat logs new random chains of the training
   seeds and judges three policies from them; the truth is the mean return of so many chains of each policy itself.
2. How good is fitted Q iteration, learned from 1,000 random chains, on the scale of `learning.py` (uniform random = 0,
   exhaustive optimum = 1, held-out seeds of known topics)? Behaviour cloning of the same chains stands beside it.

    python benchmarks/off_policy.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from _report import Report, parser
from gymnasium import spaces
from learning import DRAW, UNSEEN_TOPICS, parts, tree_of
from numpy.typing import NDArray

from instructgym.agents.base import Agent, Decision
from instructgym.agents.baselines import RandomAgent
from instructgym.agents.draws import first_uniforms, sample_categorical
from instructgym.agents.offline import (
    DEFAULT_ESTIMATOR,
    ESTIMATORS,
    BehaviourCloning,
    FittedQ,
    LoggedEpisodes,
    off_policy_values,
)
from instructgym.llm_backends.simulated import SIMULATOR_VERSION
from instructgym.train.chains import ChainJob, run_chains, step_row
from instructgym.train.logged_chains import episodes_of_rows
from instructgym.train.seed_files import read_seeds, split_seeds
from instructgym.types import Seed

SEQUENCE = (0, 2, 0, 3)
"""The best fixed sequence of `learning.py`'s trees."""


class MostlySequence(Agent):
    """`SEQUENCE` with probability 1 - `epsilon` at each step, uniform over all operations otherwise."""

    name = "epsilon_soft_sequence"
    observes = False

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        step = np.zeros(len(action_mask), np.int64) if state is None else state
        actions = action_mask.shape[1]
        planned = np.eye(actions)[np.array(SEQUENCE)[step % len(SEQUENCE)]]
        return (1 - self.epsilon) * planned + self.epsilon / actions, step + 1

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        probs, state = self.probabilities(obs, action_mask=action_mask, state=state)
        return Decision(sample_categorical(probs, first_uniforms(rng)), state=state)


TARGETS = (
    "fixed sequence, half of the steps uniform",
    "fitted Q of other logs, softmax at temperature 0.3",
    "clone of the best fifth of other logs",
)


def target(number: int, state: dict[str, Any]) -> Agent:
    """One of `TARGETS`, its learned state given (worker processes share no agent)."""
    dynamics, observer = parts()
    space, actions = observer.space, spaces.Discrete(len(dynamics.action_set))
    if number == 0:
        return MostlySequence(0.5)
    agent = FittedQ(space, actions, temperature=0.3) if number == 1 else BehaviourCloning(space, actions, best=0.2)
    agent.load_state_dict(state)
    return agent


def chains_of(agent: Agent, seeds: Sequence[Seed], first_draw: int, run_seed: int, deterministic: bool = False) -> Any:
    dynamics, observer = parts()
    jobs = [ChainJob(index, seed, first_draw + index, agent) for index, seed in enumerate(seeds)]
    return run_chains(
        jobs, dynamics=dynamics, observer=observer, run_seed=run_seed, width=16, deterministic=deterministic
    )


def logs_of(train: Sequence[Seed], chains: int, number: int) -> LoggedEpisodes:
    """Uniform random chains that start at random training seeds; each `number` has draws of its own."""
    drawn = np.random.default_rng([1, number]).integers(len(train), size=chains)
    dynamics, observer = parts()

    async def run() -> LoggedEpisodes:
        found = await chains_of(RandomAgent(), [train[i] for i in drawn], 1_000_000 + 10_000 * number, 100 + number)
        rows = [step_row(chain.job, step) for chain in found for step in chain.steps]
        return await episodes_of_rows(rows, action_set=dynamics.action_set, observer=observer, horizon=dynamics.horizon)

    return asyncio.run(run())


def _truth(task: tuple[int, dict[str, Any], tuple[Seed, ...], int, int]) -> NDArray[np.float64]:
    number, state, train, chains, part = task
    seeds = [train[(part * chains + i) % len(train)] for i in range(chains)]
    found = asyncio.run(chains_of(target(number, state), seeds, 10_000_000 + 10_000 * part, 7 + part))
    return np.array([chain.total_reward for chain in found])


def _repeat(task: tuple[int, tuple[Seed, ...], int, list[dict[str, Any]]]) -> list[dict[str, tuple[float, ...]]]:
    logging.disable(logging.WARNING)  # of small effective sample sizes, which are reported
    number, train, chains, states = task
    logs = logs_of(train, chains, number)
    found = []
    for index, state in enumerate(states):
        values = off_policy_values(target(index, state), logs)
        found.append({name: (one.value, *one.interval, one.effective_sample_size) for name, one in values.items()})
    return found


def _learned(task: tuple[int, tuple[Seed, ...], tuple[Seed, ...], int]) -> tuple[float, float, float]:
    """Mean held-out returns of fitted Q, of a clone of random, and of a clone of the best fifth."""
    number, train, held_out, chains = task
    logs = logs_of(train, chains, 1_000 + number)
    dynamics, observer = parts()
    space, actions = observer.space, spaces.Discrete(len(dynamics.action_set))
    means = []
    for agent, mode in (
        (FittedQ(space, actions), True),
        (BehaviourCloning(space, actions, number), False),
        (BehaviourCloning(space, actions, number, best=0.2), False),
    ):
        agent.learn_from(logs)
        draws = [DRAW] * len(held_out)
        jobs = [ChainJob(i, seed, draw, agent) for i, (seed, draw) in enumerate(zip(held_out, draws, strict=True))]
        found = asyncio.run(
            run_chains(jobs, dynamics=dynamics, observer=observer, run_seed=0, width=16, deterministic=mode)
        )
        means.append(float(np.mean([chain.total_reward for chain in found])))
    return means[0], means[1], means[2]


def _states(train: tuple[Seed, ...], chains: int) -> list[dict[str, Any]]:
    logs = logs_of(train, chains, 999)
    dynamics, observer = parts()
    space, actions = observer.space, spaces.Discrete(len(dynamics.action_set))
    learners = (FittedQ(space, actions), BehaviourCloning(space, actions, best=0.2))
    for agent in learners:
        agent.learn_from(logs)
    return [{}, *(agent.state_dict() for agent in learners)]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--repeats", type=int, default=50, help="logs that are drawn and judged from")
    options.add_argument("--chains", type=int, default=300, help="chains a log")
    arguments = options.parse_args()
    seeds = read_seeds("default").seeds
    known = tuple(seed for seed in seeds if seed.topic not in UNSEEN_TOPICS)
    train, held_out = split_seeds(known, 0.25, 0)
    repeats, chains, runs, part, parts_of_truth, learning = arguments.repeats, arguments.chains, 5, 500, 6, 1_000
    if arguments.quick:
        held_out, repeats, chains, runs, part, parts_of_truth, learning = held_out[::20], 2, 50, 1, 50, 1, 100
    report = Report(
        "off_policy",
        arguments.quick,
        {
            "simulator": SIMULATOR_VERSION,
            "logged policy": "random",
            "chains a log": chains,
            "repeats": repeats,
            "chains of the truth": part * parts_of_truth,
            "default estimator": DEFAULT_ESTIMATOR,
        },
    )
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        learned = pool.map(_learned, [(number, train, held_out, learning) for number in range(runs)])
        trees = pool.map(tree_of, held_out)
        states = _states(train, learning)
        truths = pool.map(
            _truth,
            [(n, states[n], train, part, piece) for n in range(len(TARGETS)) for piece in range(parts_of_truth)],
        )
        judged = pool.map(_repeat, [(number, train, chains, states) for number in range(repeats)])
        table = np.stack([tree.returns for tree in trees])
        of_learners = np.array(list(learned))
        true_returns = np.array(list(truths)).reshape(len(TARGETS), -1)
        found = list(judged)
    for index, name in enumerate(TARGETS):
        returns = true_returns[index]
        truth, error = float(returns.mean()), float(returns.std() / np.sqrt(len(returns)))
        report.row(f"{name}: true value (standard error {error:.3f})", truth, "reward")
        sizes = np.array([repeat[index][DEFAULT_ESTIMATOR][3] for repeat in found])
        report.row(f"{name}: effective sample size, mean", float(sizes.mean()), f"of {chains} chains")
        for estimator in ESTIMATORS:
            values = np.array([repeat[index][estimator] for repeat in found])  # (repeats, 4)
            held = float(((values[:, 1] <= truth) & (truth <= values[:, 2])).mean())
            bias, spread = float(values[:, 0].mean() - truth), float(values[:, 0].std())
            width = float((values[:, 2] - values[:, 1]).mean())
            case = f"{name}: {estimator}, 95% interval holds it (width {width:.2f}, bias {bias:+.2f}, sd {spread:.2f})"
            if estimator == DEFAULT_ESTIMATOR:
                report.row(case, held, "of repeats", ">= 0.9", held >= 0.9)
            else:
                report.row(case, held, "of repeats")
    random, optimum = table.mean(), table.max(axis=(1, 2, 3, 4)).mean()
    scaled = (of_learners - random) / (optimum - random)
    fixed = float((table.mean(axis=0).max() - random) / (optimum - random))
    report.row("best fixed sequence (knows the held-out seeds)", fixed, "of the scale")
    labels = ("fitted Q", "behaviour cloning of random", "behaviour cloning of the best fifth")
    for column, label in enumerate(labels):
        each = ", ".join(f"{value:.2f}" for value in scaled[:, column])
        report.row(
            f"{label}, {learning:,} random chains, {runs} logs ({each})",
            float(scaled[:, column].mean()),
            "of the scale",
        )
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
