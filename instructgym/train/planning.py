"""Planners: policies that try operations before they choose, and pay for every try.

An agent sees observations; a planner sees the dynamics and asks them. What it asks is counted with its steps, so that
at equal numbers of calls it has far fewer of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from instructgym.envs.dynamics import Dynamics, Outcome, State
from instructgym.envs.operations import ActionSet
from instructgym.errors import BackendError, ConfigError
from instructgym.train.bounded import ENDS_THE_RUN
from instructgym.types import Usage

__all__ = [
    "MAX_NODES",
    "PLANNERS",
    "Greedy",
    "Planned",
    "Planner",
    "Search",
    "Tree",
    "grow_tree",
    "planner_named",
    "tree_nodes",
]

MAX_NODES = 20_000
"""Steps in a tree of all sequences, at most: beyond, it would be asked for hours."""
_PLANNING_DRAWS = 1 << 30
"""Where the draws begin that plans are made with: none of them is a chain's own."""


@dataclass(frozen=True)
class Planned:
    """A step that was taken, and what planning it cost beyond the step's own calls and tokens."""

    outcome: Outcome
    calls: int = 0
    reviewer_calls: int = 0
    usage: Usage = field(default_factory=Usage)


class Planner:
    """Takes a step of a chain by asking the dynamics what operations lead to."""

    name = "planner"

    async def step(self, dynamics: Dynamics, state: State) -> Planned:
        """The next step from `state`, which is not over."""
        raise TypeError(f"{type(self).__name__} does not define step()")


class Greedy(Planner):
    """Asks for the rewrite and the reward of every legal operation, and keeps the best.

    It sees the very replies that it chooses from, as whoever samples one rewrite an operation and keeps the best does.
    The first of equal ones; an operation whose call failed is passed over.
    """

    name = "greedy"

    async def step(self, dynamics: Dynamics, state: State) -> Planned:
        legal = np.flatnonzero(dynamics.action_mask(state))
        outcomes = list(await asyncio.gather(*(dynamics.step(state, int(action)) for action in legal)))
        for outcome in outcomes:
            if isinstance(outcome.error, ENDS_THE_RUN):
                raise outcome.error
        best = max(outcomes, key=lambda outcome: -np.inf if outcome.reward is None else outcome.reward)
        others = [outcome for outcome in outcomes if outcome is not best]
        return Planned(
            best,
            calls=sum(outcome.calls for outcome in others),
            reviewer_calls=sum(outcome.score.calls for outcome in others),
            usage=sum((outcome.usage for outcome in others), Usage()),
        )


class Search(Planner):
    """Grows the tree of all sequences under a few resampled draws, takes the best first operation, plans again.

    The value of an operation is the mean over the draws of the best return below it (hindsight optimisation). It never
    sees the draw of the step that it takes. A step with A operations and h steps left costs
    ``samples * (A + A^2 + ... + A^h)`` calls: for tasks whose optimum is wanted, not for use.
    """

    name = "search"

    def __init__(self, samples: int = 4) -> None:
        if samples < 1:
            raise ConfigError(f"policy 'search:{samples}': expected a number of draws of at least 1.")
        self.samples = samples

    async def step(self, dynamics: Dynamics, state: State) -> Planned:
        first = _PLANNING_DRAWS + (state.chain_draw * (state.horizon + 1) + state.step) * self.samples
        trees = [await grow_tree(dynamics, state, first + sample) for sample in range(self.samples)]
        values = np.mean([tree.first_values for tree in trees], axis=0)
        outcome = await dynamics.step(state, int(np.argmax(values)))
        return Planned(
            outcome,
            calls=sum(tree.calls for tree in trees),
            reviewer_calls=sum(tree.reviewer_calls for tree in trees),
            usage=sum((tree.usage for tree in trees), Usage()),
        )


@dataclass(frozen=True)
class Tree:
    """What every sequence of operations brings from one state: A operations, h steps.

    ``rewards[t]``, ``eliminated[t]`` and ``legal[t]`` have t + 1 axes of A: the operations chosen so far. After `stop`
    nothing more comes, and an illegal choice leads nowhere: both leave zeros below them.
    """

    rewards: list[NDArray[np.float64]]
    eliminated: list[NDArray[np.bool_]]
    legal: list[NDArray[np.bool_]]
    calls: int
    reviewer_calls: int
    usage: Usage

    @property
    def returns(self) -> NDArray[np.float64]:  # () -> (A, ..., A), one axis a step left
        """Of each whole sequence; minus infinity where one of its operations is illegal."""
        total = _barred(self.rewards[0], self.legal[0])
        for rewards, legal in zip(self.rewards[1:], self.legal[1:], strict=True):
            total = total[..., None] + _barred(rewards, legal)
        return total

    @property
    def first_values(self) -> NDArray[np.float64]:  # () -> (A,)
        """The best return below each first operation; minus infinity where it is illegal."""
        returns = self.returns
        return np.asarray(returns.reshape(returns.shape[0], -1).max(axis=1), np.float64)

    @property
    def optimum(self) -> float:
        """The best return of all."""
        return float(self.first_values.max())

    @property
    def uniform(self) -> float:
        """The expected return of uniform choice among the legal operations, exactly."""
        value: NDArray[np.float64] | float = 0.0
        for rewards, legal in zip(reversed(self.rewards), reversed(self.legal), strict=True):
            counts = legal.sum(axis=-1)
            value = np.where(legal, rewards + value, 0.0).sum(axis=-1) / np.maximum(counts, 1)
        return float(value)


def _barred(rewards: NDArray[np.float64], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(legal, rewards, -np.inf)


def tree_nodes(actions: int, horizon: int) -> int:
    """Steps in the tree of all sequences of `actions` operations over `horizon` steps."""
    return sum(actions**t for t in range(1, horizon + 1))


async def grow_tree(dynamics: Dynamics, state: State, draw: int) -> Tree:
    """The tree below `state` where the expert's samples are those of `draw`.

    Raises `ConfigError` if it has more than `MAX_NODES` steps, `BackendError` where a call fails or a reward is
    missing: there is no optimum with holes.
    """
    actions, depth = len(dynamics.action_set), state.horizon - state.step
    check_tree_size(actions, depth)
    shapes = [(actions,) * (t + 1) for t in range(depth)]
    rewards = [np.zeros(shape) for shape in shapes]
    eliminated = [np.zeros(shape, dtype=bool) for shape in shapes]
    legal = [np.ones(shape, dtype=bool) for shape in shapes]
    asked = [0, 0]
    usage = Usage()

    async def below(node: State, path: tuple[int, ...]) -> None:
        nonlocal usage
        mask = dynamics.action_mask(node)
        legal[len(path)][path] = mask
        for action in np.flatnonzero(mask):
            outcome = await dynamics.step(node, int(action))
            if outcome.reward is None:
                raise outcome.error or BackendError(f"a plan has a hole: {outcome.failure}")
            here = (*path, int(action))
            rewards[len(path)][here] = outcome.reward
            eliminated[len(path)][here] = outcome.transition.elimination is not None
            asked[0] += outcome.calls
            asked[1] += outcome.score.calls
            usage += outcome.usage
            if not outcome.state.over:
                await below(outcome.state, here)

    await below(replace(state, chain_draw=draw), ())
    return Tree(rewards, eliminated, legal, asked[0], asked[1], usage)


def check_tree_size(actions: int, horizon: int) -> None:
    """Raise `ConfigError` if the tree of all sequences is too large to be grown."""
    if tree_nodes(actions, horizon) > MAX_NODES:
        raise ConfigError(
            f"all sequences of {actions} operations over {horizon} steps are {tree_nodes(actions, horizon):,} steps; "
            f"expected at most {MAX_NODES:,}. Lower env.horizon, or choose a smaller action set."
        )


PLANNERS = {
    Greedy.name: "asks for the rewrite and the reward of every operation, and keeps the best",
    Search.name: "grows the tree of all sequences under resampled draws (search:DRAWS); for small tasks",
}


def planner_named(name: str, action_set: ActionSet, horizon: int) -> Planner | None:
    """The planner ``greedy``, ``search`` or ``search:DRAWS``; None for any other name. Raises `ConfigError`."""
    head, colon, rest = name.partition(":")
    if name == Greedy.name:
        return Greedy()
    if head != Search.name:
        return None
    if colon and not rest.isdecimal():
        raise ConfigError(f"policy '{name}'; expected a number of draws after the colon, as in 'search:4'.")
    check_tree_size(len(action_set), horizon)
    return Search(int(rest)) if colon else Search()
