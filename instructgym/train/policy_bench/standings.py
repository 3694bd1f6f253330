"""From the results of cells to a leaderboard: scores on one scale, statistics over runs, costs, sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.comparison import (
    Scores,
    interquartile_mean,
    mean_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from instructgym.train.chains import DIGITS
from instructgym.train.policies import FIXED
from instructgym.train.policy_bench.diversity import MEASURES, calls_to_overtake, calls_to_reach
from instructgym.train.policy_bench.plan import BEST_FIXED, RANDOM, Plan, Policy, Task

__all__ = ["PROFILE_POINTS", "Result", "Scale", "diversity_rows", "leaderboard", "pairwise", "profiles", "scales"]

PROFILE_POINTS = np.round(np.linspace(-0.5, 1.25, 71), 3)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """A cell that is finished: what `cell.json` and `seconds.json` hold."""

    policy: str
    task: Task
    seed: int
    document: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def reward(self) -> float:
        """Mean episode reward on the held-out seeds."""
        return float(self.document["evaluation"]["mean_episode_reward"])


@dataclass(frozen=True)
class Scale:
    """How rewards of a task become scores: ``(reward - zero) / span``. `one` says what 1 is."""

    zero: float
    span: float
    one: str
    optimum: dict[str, Any] | None = None

    def score(self, reward: float) -> float:
        return (reward - self.zero) / self.span


def scales(
    plan: Plan, results: Sequence[Result], optima: Mapping[tuple[Task, int], Mapping[str, Any]]
) -> dict[Task, Scale]:
    """0 is the mean of uniform random over the runs. 1 is the exhaustive optimum where there is one for every seed.

    Its distance from random is taken on the trees' seeds, where uniform choice is known exactly. Without it 1 is the
    best policy's mean. Tasks whose random cells all failed have no scale.
    """
    found: dict[Task, Scale] = {}
    for task in plan.tasks:
        means = {
            name: float(np.mean([result.reward for result in results if (result.task, result.policy) == (task, name)]))
            for name in dict.fromkeys(result.policy for result in results if result.task == task)
        }
        if RANDOM not in means:
            continue
        trees = [optima[task, seed] for seed in plan.seeds if (task, seed) in optima]
        zero = means[RANDOM]
        if len(trees) == len(plan.seeds):
            uniform, optimum, sequence = (_mean(trees, key) for key in ("uniform", "optimum", "best_sequence"))
            errors = [tree["span_se"] for tree in trees if tree["span_se"] is not None]
            facts = {
                "uniform": _rounded(uniform),
                "optimum": _rounded(optimum),
                "best_sequence": _rounded(sequence),
                "best_sequence_score": _rounded((sequence - uniform) / (optimum - uniform))
                if optimum > uniform
                else None,
                "span_se": _rounded(float(np.sqrt(np.sum(np.square(errors)))) / len(trees)) if errors else None,
                "trees": sum(tree["trees"] for tree in trees),
                "of": sum(tree["of"] for tree in trees),
            }
            found[task] = Scale(zero, (optimum - uniform) or 1.0, "the exhaustive optimum", facts)
        else:
            found[task] = Scale(zero, (max(means.values()) - zero) or 1.0, "the best policy here")
    return found


def scores_of(
    name: str, plan: Plan, results: Sequence[Result], scale: Mapping[Task, Scale]
) -> list[NDArray[np.float64]]:
    """The scores of a policy, one array of runs a task, in the order of the plan; empty where it has none."""
    return [
        np.array(
            [scale[task].score(result.reward) for result in results if (result.policy, result.task) == (name, task)],
            np.float64,
        )
        if task in scale
        else np.zeros(0)
        for task in plan.tasks
    ]


def with_best_fixed(plan: Plan, results: Sequence[Result]) -> tuple[list[Result], dict[str, str]]:
    """`results` with rows of `BEST_FIXED`: of each task the fixed operation of the highest mean; and which it is."""
    chosen: dict[str, str] = {}
    added: list[Result] = []
    for task in plan.tasks if plan.best_fixed else ():
        of_task = [result for result in results if result.task == task and result.policy.startswith(FIXED)]
        means: dict[str, list[float]] = {}
        for result in of_task:
            means.setdefault(result.policy, []).append(result.reward)
        if means:
            best = max(means, key=lambda name: float(np.mean(means[name])))
            chosen[task.name] = best
            added += [
                Result(BEST_FIXED, task, each.seed, each.document, each.seconds)
                for each in of_task
                if each.policy == best
            ]
    return [*results, *added], chosen


def leaderboard(
    policies: Sequence[Policy], plan: Plan, results: Sequence[Result], scale: Mapping[Task, Scale]
) -> list[dict[str, Any]]:
    """A row a policy, the best interquartile mean first; policies without a finished cell come last."""
    rows = [_row(policy, plan, results, scale) for policy in policies]
    return sorted(rows, key=lambda row: (row["iqm"] is None, -(row["iqm"] or 0.0), row["policy"]))


def _row(policy: Policy, plan: Plan, results: Sequence[Result], scale: Mapping[Task, Scale]) -> dict[str, Any]:
    scores = scores_of(policy.name, plan, results, scale)
    own = [result for result in results if result.policy == policy.name]
    random = scores_of(RANDOM, plan, results, scale)
    has_optimum = all(task in scale and scale[task].optimum is not None for task in plan.tasks)
    evaluations = [result.document["evaluation"] for result in own]
    training = [result.document["train"] for result in own if result.document["train"] is not None]
    chains = sum(row["chains"] for row in evaluations)
    return {
        "policy": policy.name,
        "agent": policy.agent,
        "kwargs": dict(policy.kwargs),
        "learns": policy.learns,
        "cells": len(own),
        "lost_chains": sum(row["incomplete"] for row in evaluations),
        "iqm": _rounded(interquartile_mean(scores)),
        "iqm_interval_95": _interval(interquartile_mean, scores),
        "mean": _rounded(mean_score(scores)),
        "optimality_gap": _rounded(optimality_gap(scores)) if has_optimum else None,
        "optimality_gap_interval_95": _interval(optimality_gap, scores) if has_optimum else None,
        "beats_random": None if policy.name == RANDOM else _rounded(probability_of_improvement(scores, random)),
        "beats_random_interval_95": None
        if policy.name == RANDOM
        else _interval(probability_of_improvement, scores, random),
        "mean_episode_reward": {
            task.name: _rounded(float(np.mean([result.reward for result in own if result.task == task])))
            for task in plan.tasks
            if any(result.task == task for result in own)
        },
        "train_calls": _per_cell(training, "calls"),
        "train_reviewer_calls": _per_cell(training, "reviewer_calls"),
        "train_tokens": _rounded(_per_cell(training, "prompt_tokens") + _per_cell(training, "completion_tokens")),
        "calls_a_chain": _rounded(sum(row["expert_calls"] for row in evaluations) / chains) if chains else None,
        "reviewer_calls_a_chain": _rounded(sum(row["reviewer_calls"] for row in evaluations) / chains)
        if chains
        else None,
        "tokens_a_chain": _rounded(sum(row["prompt_tokens"] + row["completion_tokens"] for row in evaluations) / chains)
        if chains
        else None,
    }


def seconds_of(name: str, results: Sequence[Result]) -> dict[str, float]:
    """Mean wall seconds a cell, by stage, of one process among others."""
    own = [result.seconds for result in results if result.policy == name]
    stages = list(dict.fromkeys(stage for seconds in own for stage in seconds))
    return {stage: round(float(np.mean([seconds.get(stage, 0.0) for seconds in own])), 2) for stage in stages}


def pairwise(
    names: Sequence[str], plan: Plan, results: Sequence[Result], scale: Mapping[Task, Scale]
) -> dict[str, dict[str, float | None]]:
    """The probability that a run of the row's policy is above one of the column's."""
    scores = {name: scores_of(name, plan, results, scale) for name in names}
    return {
        row: {
            column: _rounded(probability_of_improvement(scores[row], scores[column]))
            for column in names
            if column != row
        }
        for row in names
    }


def profiles(
    names: Sequence[str], plan: Plan, results: Sequence[Result], scale: Mapping[Task, Scale]
) -> dict[str, list[float]]:
    """The share of runs above each of `PROFILE_POINTS`, of policies with a finished cell."""
    scored = {name: scores_of(name, plan, results, scale) for name in names}
    return {
        name: [float(_rounded(value)) for value in performance_profile(scores, PROFILE_POINTS)]  # type: ignore[arg-type]
        for name, scores in scored.items()
        if any(len(runs) for runs in scores)
    }


def diversity_rows(names: Sequence[str], plan: Plan, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The set that a policy makes with equal numbers of expert calls, the mean over cells.

    `calls_to_match` is how many calls reach the value that random reaches with all of them, of the same task and seed:
    the mean over the cells that get there, of which there are `matched`. `calls_to_overtake` counts the calls of
    training too: from how many in all on the set is ahead of random's after as many, where it is so to the end.
    """
    random = {(result.task, result.seed): result.document["sets"] for result in results if result.policy == RANDOM}
    rows = []
    for name in names:
        own = [result for result in results if result.policy == name]
        if not own:
            continue
        last = [result.document["sets"][-1] for result in own]
        row: dict[str, Any] = {"policy": name, "calls": _per_cell(last, "calls")}
        for measure in MEASURES:
            values = [point[measure] for point in last if point[measure] is not None]
            row[measure] = _rounded(float(np.mean(values))) if values else None
        row["vendi_interval_95"] = _interval(mean_score, _last_by_task(own, plan, "vendi"))
        pairs = [(result, random[result.task, result.seed]) for result in own if (result.task, result.seed) in random]
        for measure in ("distinct", "vendi"):
            known = [(result, theirs) for result, theirs in pairs if theirs[-1][measure] is not None]
            reached = [
                calls_to_reach(result.document["sets"], measure, theirs[-1][measure]) for result, theirs in known
            ]
            overtook = [
                calls_to_overtake(result.document["sets"], theirs, measure, _training_calls(result))
                for result, theirs in known
                if name != RANDOM
            ]
            row |= _mean_of_those(f"calls_to_match_{measure}", f"matched_{measure}", reached)
            row |= _mean_of_those(f"calls_to_overtake_{measure}", f"overtook_{measure}", overtook)
        row["train_calls"] = _per_cell([{"calls": _training_calls(result)} for result in own], "calls")
        rows.append(row)
    return rows


def _training_calls(result: Result) -> float:
    training = result.document["train"]
    return 0.0 if training is None else float(training["calls"])


def _last_by_task(results: Sequence[Result], plan: Plan, measure: str) -> list[NDArray[np.float64]]:
    """What `measure` is after all calls, one array of cells a task."""
    values = [(result.task, result.document["sets"][-1][measure]) for result in results]
    return [np.array([value for at, value in values if at == task and value is not None]) for task in plan.tasks]


def _mean_of_those(name: str, count: str, values: Sequence[float | None]) -> dict[str, Any]:
    there = [value for value in values if value is not None]
    return {name: _rounded(float(np.mean(there))) if there else None, count: f"{len(there)} of {len(values)}"}


def _interval(statistic: Any, *groups: Scores) -> list[float] | None:
    found = stratified_interval(statistic, *groups, rng=np.random.default_rng(0), resamples=_RESAMPLES)
    return None if found is None else [round(found[0], DIGITS), round(found[1], DIGITS)]


def _per_cell(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return round(float(np.mean([row[key] for row in rows])), 1) if rows else 0.0


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
