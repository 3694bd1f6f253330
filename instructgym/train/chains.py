"""Chains: a policy evolves an instruction step by step. Each chain is a coroutine of its own, without barriers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instructgym.agents.base import Agent, row_rng
from instructgym.envs.dynamics import Dynamics, Outcome
from instructgym.envs.observations import Observer
from instructgym.errors import BackendError
from instructgym.train.bounded import ENDS_THE_RUN, map_bounded
from instructgym.train.planning import Planned, Planner
from instructgym.types import Instruction, Seed, Transition, Usage

__all__ = ["Chain", "ChainJob", "Step", "run_chains", "step_row"]

DIGITS = 6
"""Rewards are written with so many decimals: enough to read, too few for the noise of a sum's order."""
_log = logging.getLogger(__name__)
_UNSEEN = np.zeros((1, 0), np.float32)


@dataclass(frozen=True)
class ChainJob:
    """A chain to run. `chain` is its id: with the run's seed it decides the policy's draws, as `draw` the expert's."""

    chain: int
    seed: Seed
    draw: int
    policy: Agent | Planner
    policy_name: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One attempted transition. `reward` is None where a call failed or the reward is missing.

    `tokens`, `calls` and `reviewer_calls` include what a planner asked before it chose; `tokens` also what a chat model
    was asked that chose.
    `log_prob` is of the choice, under the policy that made it; None where that policy does not say, and where it took
    its mode, for the number that it gives then is that of a draw.
    """

    transition: Transition
    reward: float | None
    terms: dict[str, float]
    tokens: tuple[int, int]
    calls: int
    reviewer_calls: int
    failure: str | None
    log_prob: float | None = None

    @classmethod
    def of(cls, outcome: Outcome, log_prob: float | None = None) -> Step:
        return cls(
            transition=outcome.transition,
            reward=None if outcome.reward is None else round(float(outcome.reward), DIGITS),
            terms={name: round(float(value), DIGITS) for name, value in sorted(outcome.score.terms.items())},
            tokens=(outcome.usage.prompt_tokens, outcome.usage.completion_tokens),
            calls=outcome.calls,
            reviewer_calls=outcome.score.calls,
            failure=outcome.failure,
            log_prob=None if log_prob is None else round(log_prob, DIGITS),
        )

    def planned_with(self, planned: Planned) -> Step:
        """The step with what choosing it cost; itself where that cost nothing."""
        if not planned.calls and planned.usage == Usage():
            return self
        tokens = (self.tokens[0] + planned.usage.prompt_tokens, self.tokens[1] + planned.usage.completion_tokens)
        return replace(
            self,
            tokens=tokens,
            calls=self.calls + planned.calls,
            reviewer_calls=self.reviewer_calls + planned.reviewer_calls,
        )


@dataclass(frozen=True)
class Chain:
    """A chain that was run. `incomplete`: a call failed for good, and it stopped with what it had."""

    job: ChainJob
    steps: tuple[Step, ...]
    incomplete: bool = False
    accepted: tuple[Step, ...] = field(init=False)

    def __post_init__(self) -> None:
        accepted = tuple(step for step in self.steps if step.failure is None and step.transition.accepted)
        object.__setattr__(self, "accepted", accepted)

    @property
    def final(self) -> Instruction:
        """The last accepted instruction; the seed's if nothing was accepted."""
        last = self.accepted[-1].transition.child if self.accepted else None
        return self.job.seed.instruction if last is None else last

    @property
    def total_reward(self) -> float:
        return sum(step.reward for step in self.steps if step.reward is not None)

    @property
    def calls(self) -> int:
        """Logical expert calls."""
        return sum(step.calls for step in self.steps)


async def run_chains(
    jobs: Sequence[ChainJob],
    *,
    dynamics: Dynamics,
    observer: Observer | Callable[[Agent], Observer],
    run_seed: int,
    width: int,
    deterministic: bool = False,
    on_chain: Callable[[Chain], None] | None = None,
    on_step: Callable[[ChainJob, Step], None] | None = None,
) -> list[Chain]:
    """Run `jobs`, at most `width` at a time; the result is in their order and depends on no order of replies.

    `observer` makes the observations of all agents, or says who makes those of one. `on_step` hears of each step as it
    ends, `on_chain` of each chain. A call that fails for good, be it to choose, ends its chain, which is then
    `incomplete`. Raises `BudgetExhausted`, and what makes every further call pointless (no key, no such model,
    nobody there).
    """

    async def run(job: ChainJob) -> Chain:
        return await _run_chain(job, dynamics, observer, run_seed, deterministic, on_step)

    def told(_: int, chain: Chain) -> None:
        if on_chain is not None:
            on_chain(chain)

    return await map_bounded(run, jobs, width=width, on_done=told)


async def _run_chain(
    job: ChainJob,
    dynamics: Dynamics,
    observer: Observer | Callable[[Agent], Observer],
    run_seed: int,
    deterministic: bool,
    on_step: Callable[[ChainJob, Step], None] | None,
) -> Chain:
    state = dynamics.start(job.seed, job.draw)
    memory: Any = None
    seen: Observer | None = None
    if not isinstance(job.policy, Planner):
        seen = observer(job.policy) if callable(observer) else observer
    steps: list[Step] = []
    while not state.over:
        log_prob: float | None = None
        if isinstance(job.policy, Planner):
            planned = await job.policy.step(dynamics, state)
        else:
            obs = _one_row(await seen.observe(state)) if job.policy.observes and seen is not None else _UNSEEN
            try:
                decision = await job.policy.aact(
                    obs,
                    action_mask=dynamics.action_mask(state)[None],
                    rng=[row_rng(run_seed, job.chain, 0, state.step)],
                    state=memory,
                    deterministic=deterministic,
                )
            except ENDS_THE_RUN:
                raise
            except BackendError as error:
                _log.warning("chain %d of %s ends: nothing was chosen (%s)", job.chain, job.policy_name, error)
                return Chain(job, tuple(steps), incomplete=True)
            memory = decision.state
            if decision.log_prob is not None and not deterministic:
                log_prob = float(decision.log_prob[0])
            planned = Planned(await dynamics.step(state, int(decision.actions[0])), usage=decision.usage)
        outcome = planned.outcome
        if isinstance(outcome.error, ENDS_THE_RUN):
            raise outcome.error
        steps.append(Step.of(outcome, log_prob).planned_with(planned))
        if on_step is not None:
            on_step(job, steps[-1])
        if not outcome.valid:
            return Chain(job, tuple(steps), incomplete=True)
        state = outcome.state
        await asyncio.sleep(0)
    return Chain(job, tuple(steps))


def _one_row(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: np.asarray(value)[None] for name, value in observation.items()}
    return np.asarray(observation)[None]


def step_row(job: ChainJob, step: Step) -> dict[str, Any]:
    """A step as a row of `lineage.jsonl`."""
    transition = step.transition
    elimination = transition.elimination
    row: dict[str, Any] = {
        "chain": job.chain,
        "step": transition.step,
        "seed_id": job.seed.id,
        "operation": transition.operation,
        "parent": _text(transition.parent),
        "child": None if transition.child is None else _text(transition.child),
        "accepted": step.failure is None and transition.accepted,
        "eliminated": None if elimination is None else elimination.reason,
        "detail": "" if elimination is None else elimination.detail,
        "log_prob": step.log_prob,
        "reward": step.reward,
        "terms": step.terms,
        "failure": step.failure,
        "prompt_version": transition.prompt_version,
        "calls": {"expert": step.calls, "reviewer": step.reviewer_calls},
        "tokens": {"prompt": step.tokens[0], "completion": step.tokens[1]},
    }
    if transition.child is None:
        row["reply"] = transition.reply
    return row


def _text(instruction: Instruction) -> dict[str, str]:
    return {"instruction": instruction.text, "input": instruction.input}
