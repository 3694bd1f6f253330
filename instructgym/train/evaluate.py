"""Stage `evaluate`: policies side by side on held-out seeds, with the same draws and equal numbers of expert calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.base import row_rng
from instructgym.train.chain_statistics import chain_statistics
from instructgym.train.chains import DIGITS, Chain, ChainJob, run_chains, step_row
from instructgym.train.policies import how_chosen, policy_named, policy_names, reward_of
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput

__all__ = ["EVALUATION", "EVALUATION_LINEAGE", "bootstrap_interval", "evaluate_policies", "run_evaluate"]

EVALUATION = "stages/evaluation.json"
EVALUATION_LINEAGE = "stages/evaluation_lineage.jsonl"
_MAX_ROUNDS = 4
"""A policy that stops early gets further chains up to so many times the first ones, to use the same calls."""


def run_evaluate(context: StageContext) -> StageOutput:
    """Writes `stages/evaluation.json`: a row a policy, in the order of the config, `fixed` as one row an operation.

    With `evaluate.lineage` also every transition, as rows of `lineage.jsonl` with the name of the policy.
    """
    config = context.config
    names = policy_names(config.evaluate.policies, context.runtime.action_set)
    table, lost = evaluate_policies(names, context)
    document = {
        "seeds": len(context.seeds.for_evaluation[: config.evaluate.seeds]),
        "held_out": bool(context.seeds.held_out),
        "draws": config.evaluate.draws,
        "policies": table,
        "best_fixed": _best_fixed(table),
    }
    context.folder.write_json(EVALUATION, document)
    result = {**document, "accounting": context.runtime.accounting("evaluate")}
    files = (EVALUATION, EVALUATION_LINEAGE) if config.evaluate.lineage else (EVALUATION,)
    return StageOutput(files, result, lost=lost)


def evaluate_policies(names: Sequence[str], context: StageContext) -> tuple[dict[str, dict[str, Any]], int]:
    """``(row by policy, chains that failed)``.

    All policies run the same seeds with the same draws of the expert (common random numbers), all at once. Without
    `stop` every chain asks the expert as often as the horizon is long, unless a call fails. A policy that stopped
    early gets further chains until it has used as many calls; the last chain may go over by less than a horizon.
    """
    config, seeds = context.config, context.seeds.for_evaluation[: context.config.evaluate.seeds]
    first = len(seeds) * config.evaluate.draws
    budget = first * config.env.horizon
    chains: dict[str, list[Chain]] = {name: [] for name in names}
    policies = {name: policy_named(name, context, "evaluate") for name in names}
    context.progress.started("evaluate", first * len(names))
    done = 0
    for round_number in range(_MAX_ROUNDS):
        jobs = [
            ChainJob(chain, seeds[chain % len(seeds)], draw=chain, policy=policies[name], policy_name=name)
            for name in names
            if round_number == 0 or 0 < sum(chain.calls for chain in chains[name]) < budget - config.env.horizon
            for chain in range(round_number * first, (round_number + 1) * first)
            if not any(chain.incomplete for chain in chains[name])
        ]

        def on_chain(_: Chain) -> None:
            nonlocal done
            done += 1
            context.progress.advance("evaluate", min(done, first * len(names)))

        run = _run(jobs, context, on_chain)
        for chain in run:
            kept = chains[chain.job.policy_name]
            if round_number == 0 or sum(each.calls for each in kept) < budget:
                kept.append(chain)
        if not run:
            break
    if config.evaluate.lineage:
        lines = [
            canonical_json({"policy": name, **step_row(chain.job, step)})
            for name in names
            for chain in chains[name]
            for step in chain.steps
        ]
        context.folder.write_lines(EVALUATION_LINEAGE, lines)
    rng_seed = config.run.seed
    table = {name: _row(chains[name], context, config.evaluate.bootstrap, rng_seed) for name in names}
    for name in names:
        table[name] |= how_chosen(policies[name])
    _compare(table, chains, "random", config.evaluate.bootstrap, rng_seed)
    return table, sum(chain.incomplete for each in chains.values() for chain in each)


def _run(jobs: Sequence[ChainJob], context: StageContext, on_chain: Any) -> list[Chain]:
    runtime = context.runtime
    return runtime.call(
        lambda: run_chains(
            jobs,
            dynamics=runtime.dynamics("evaluate", reward_of(context, "evaluate")),
            observer=runtime.observer_for,
            run_seed=context.config.run.seed,
            width=context.config.limits.width,
            on_chain=on_chain,
        )
    )


def _row(chains: Sequence[Chain], context: StageContext, resamples: int, rng_seed: int) -> dict[str, Any]:
    by_seed = _rewards_by_seed(chains)
    means = np.array([np.mean(rewards) for rewards in by_seed.values()], dtype=np.float64)
    statistics = chain_statistics(chains, context.runtime.encoder)
    return {
        "mean_episode_reward": round(float(means.mean()), DIGITS) if len(means) else None,
        "interval_95": bootstrap_interval(means, resamples, rng_seed),
        **statistics,
    }


def _rewards_by_seed(chains: Sequence[Chain]) -> dict[str, list[float]]:
    """Episode rewards of the chains that came to their end, by seed, in the order of the chains."""
    table: dict[str, list[float]] = {}
    for chain in chains:
        if not chain.incomplete:
            table.setdefault(chain.job.seed.id, []).append(chain.total_reward)
    return table


def bootstrap_interval(
    values: NDArray[np.float64], resamples: int, rng_seed: int
) -> list[float] | None:  # (n,) -> [low, high]
    """Percentile bootstrap of the mean, 95%; None for fewer than two values.

    The values are one a seed: chains of one seed are no independent draws, so seeds are what is resampled.
    """
    if len(values) < 2:
        return None
    rng = row_rng(rng_seed, len(values), resamples)
    means = values[rng.integers(0, len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(low), DIGITS), round(float(high), DIGITS)]


def _compare(
    table: dict[str, dict[str, Any]], chains: dict[str, list[Chain]], baseline: str, resamples: int, rng_seed: int
) -> None:
    """Adds each policy's mean difference to `baseline`, seed by seed, with its interval."""
    if baseline not in chains:
        return
    base = {seed: float(np.mean(rewards)) for seed, rewards in _rewards_by_seed(chains[baseline]).items()}
    for name, row in table.items():
        own = {seed: float(np.mean(rewards)) for seed, rewards in _rewards_by_seed(chains[name]).items()}
        differences = np.array([own[seed] - base[seed] for seed in own if seed in base], dtype=np.float64)
        row[f"over_{baseline}"] = round(float(differences.mean()), DIGITS) if len(differences) else None
        row[f"over_{baseline}_interval_95"] = bootstrap_interval(differences, resamples, rng_seed)


def _best_fixed(table: dict[str, dict[str, Any]]) -> str | None:
    fixed = {
        name: row["mean_episode_reward"]
        for name, row in table.items()
        if name.startswith("fixed:") and row["mean_episode_reward"] is not None
    }
    return max(fixed, key=lambda name: fixed[name]) if fixed else None
