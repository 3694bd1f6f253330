"""What an instructor does that was trained on one reward, as all the others see it.

An instructor that raises its own reward and nothing else has found a hole in it. Every cell of the matrix is measured
on the same held-out seeds with the same draws of the expert; the reference is uniform random choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.base import Agent, Algorithm
from instructgym.agents.baselines import RandomAgent
from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv
from instructgym.llm_backends.simulated.truth import gained
from instructgym.rewards.base import Reward
from instructgym.train.chains import Chain, ChainJob, run_chains
from instructgym.train.policies import build_agent
from instructgym.train.reward_bench.scoring import score_all
from instructgym.train.runtime import Runtime
from instructgym.types import Score, Seed, Transition

__all__ = ["ELIMINATED", "RANDOM", "TRUE_GAIN", "HackingMatrix", "hacking_matrix"]

RANDOM = "random"
TRUE_GAIN = "true_gain"
ELIMINATED = "eliminated"
NUM_ENVS = 16

BuildReward = Callable[[str], Reward]


@dataclass(frozen=True)
class HackingMatrix:
    """``totals[trained_on][measured_by]``: the mean over chains of the sum over a chain's accepted rewrites.

    Row `RANDOM` is the reference. Column `TRUE_GAIN` counts the rewrites that the simulated expert made as the
    operation asks (absent with a real expert, whose gains nobody knows), `ELIMINATED` those that a rule rejected.
    ``lifts`` are the differences to the reference in units of its standard deviation over chains (0 where it has none).
    Missing scores count as nothing and are counted in ``missing``.
    """

    totals: dict[str, dict[str, float]]
    lifts: dict[str, dict[str, float]]
    missing: dict[str, dict[str, int]]
    chains: int
    steps: int


def hacking_matrix(
    names: Sequence[str],
    build: BuildReward,
    runtime: Runtime,
    train_seeds: Sequence[Seed],
    test_seeds: Sequence[Seed],
    *,
    steps: int,
    progress: Callable[[str], None] = lambda note: None,
) -> HackingMatrix:
    """Train the config's instructor for `steps` on each reward of `names`, and measure each by all of them.

    `build` makes a fresh reward of a name. Penalty and elimination rules are the config's, whatever the reward.
    """
    policies: dict[str, Agent] = {RANDOM: RandomAgent()}
    for name in names:
        progress(f"training on {name}")
        policies[name] = _trained(build(name), runtime, train_seeds, steps)
    progress("measuring")
    chains = {name: _chains(name, policy, runtime, build, test_seeds) for name, policy in policies.items()}
    simulated = "expert" in runtime.simulated_roles
    sums: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in policies}
    missing: dict[str, dict[str, int]] = {name: {} for name in policies}
    for measure in names:
        progress(f"measuring by {measure}")
        reward = build(measure)
        for name, found in chains.items():
            values, absent = runtime.call(partial(_sums, measure, reward, found, runtime))
            sums[name][measure], missing[name][measure] = values, absent
    for name, found in chains.items():
        if simulated:
            sums[name][TRUE_GAIN] = np.array([sum(map(_gained, _accepted(chain))) for chain in found], np.float64)
        sums[name][ELIMINATED] = np.array(
            [sum(step.transition.elimination is not None for step in chain.steps) for chain in found], np.float64
        )
    return HackingMatrix(
        totals={name: {column: float(values.mean()) for column, values in row.items()} for name, row in sums.items()},
        lifts={name: _lifts(row, sums[RANDOM]) for name, row in sums.items() if name != RANDOM},
        missing=missing,
        chains=len(test_seeds),
        steps=steps,
    )


def _lifts(row: Mapping[str, NDArray[np.float64]], reference: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    lifts = {}
    for column, values in row.items():
        spread = float(reference[column].std(ddof=1)) if len(values) > 1 else 0.0
        difference = float(values.mean() - reference[column].mean())
        lifts[column] = difference / spread if spread > 0 else 0.0
    return lifts


def _trained(reward: Reward, runtime: Runtime, seeds: Sequence[Seed], steps: int) -> Agent:
    config = runtime.config
    env = InstructionEvolutionVectorEnv(
        NUM_ENVS,
        EnvConfig(
            action_set=runtime.action_set,
            **runtime.observation_options(config.agent.name, config.agent.kwargs),
            reward=reward,
            elimination=runtime.rules_for("hacking"),
            penalty=config.env.penalty,
            horizon=config.env.horizon,
            seeds=seeds,
            draws_per_seed=config.env.draws_per_seed,
            expert=runtime.llm("expert", "hacking"),
            reviewer=runtime.llm("reviewer", "hacking"),
            encoder=runtime.encoder,
            run_seed=config.run.seed,
        ),
    )
    with contextlib.closing(env):
        agent = build_agent(config.agent.name, runtime, config.agent.kwargs, config.run.seed, "hacking")
        if isinstance(agent, Algorithm):
            agent.learn(env, steps, progress=lambda done, metrics: env.end_rollout())
    return agent


def _chains(name: str, policy: Agent, runtime: Runtime, build: BuildReward, seeds: Sequence[Seed]) -> list[Chain]:
    # The reward of these chains is not looked at; each is measured by all of them afterwards.
    dynamics = runtime.dynamics("hacking", _Nothing())
    jobs = [ChainJob(index, seed, draw=index, policy=policy, policy_name=name) for index, seed in enumerate(seeds)]
    return runtime.call(
        lambda: run_chains(
            jobs,
            dynamics=dynamics,
            observer=runtime.observer_for,
            run_seed=runtime.config.run.seed,
            width=runtime.config.limits.width,
        )
    )


async def _sums(
    measure: str, reward: Reward, chains: Sequence[Chain], runtime: Runtime
) -> tuple[NDArray[np.float64], int]:
    """(the sum of a chain's scores, each chain; how many scores were missing)."""
    accepted = [_accepted(chain) for chain in chains]
    flat = [transition for each in accepted for transition in each]
    scored = await score_all(measure, reward, flat, width=runtime.config.limits.width)
    values = iter(scored.values)
    sums = [sum(value or 0.0 for value in (next(values) for _ in each)) for each in accepted]
    return np.array(sums, np.float64), sum(value is None for value in scored.values)


def _accepted(chain: Chain) -> list[Transition]:
    return [step.transition for step in chain.accepted]


def _gained(transition: Transition) -> bool:
    return transition.child is not None and gained(transition.operation, transition.parent, transition.child)


class _Nothing(Reward):
    """Scores nothing of interest, at no cost."""

    name = "nothing"

    async def score(self, transition: Transition) -> Score:
        return Score(0.0)
