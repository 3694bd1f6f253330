"""Contract 4: the whole MDP. Env, VectorEnv and the evolve stage are thin callers of `Dynamics.step`."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from instructgym.envs.elimination import Inspection, cut
from instructgym.envs.operations import ActionSet, Operation
from instructgym.errors import ActionSetError, BackendError, ContentFiltered, ContextOverflow, UsageError
from instructgym.llm_backends.base import LLM, is_instant
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.types import Completion, Elimination, Instruction, Score, Seed, Transition, Usage

__all__ = ["Dynamics", "Eliminates", "Outcome", "State"]


class Eliminates(Protocol):
    """The rules that reject a rewrite: `EliminationRules`, or what has its `inspect`."""

    def inspect(self, transition: Transition, *, finish_reason: str) -> Awaitable[Inspection]: ...


@dataclass(frozen=True)
class State:
    """Where a chain stands. `history` holds every attempt so far, eliminated ones included, so it has `step` items."""

    seed: Seed
    instruction: Instruction
    step: int
    horizon: int
    chain_draw: int
    history: tuple[Transition, ...] = ()
    stopped: bool = False

    @property
    def over(self) -> bool:
        """True once the horizon is reached or `stop` was chosen."""
        return self.stopped or self.step >= self.horizon


@dataclass(frozen=True)
class Outcome:
    """What one step led to.

    `reward` is the number that the agent gets: the score, or minus the penalty if the rewrite was eliminated. It is
    None for an invalid row (`valid` False, `truncated` True): a call failed or the reward is missing, `state` is the
    state before, `failure` says what happened and `error` holds the exception where there was one.
    `calls` counts logical expert requests that were answered: 1 for an attempt, whatever came of it, 0 for `stop`, for
    an illegal choice, and where the expert's own call failed. `usage` is of all requests that were answered: the
    expert's, the elimination rules' and the reward's.
    """

    state: State
    transition: Transition
    score: Score
    reward: float | None
    terminated: bool
    truncated: bool
    valid: bool
    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    failure: str | None = None
    error: BackendError | None = None


class Dynamics:
    """Steps one chain at a time; a coroutine, so chains never wait for each other unless the caller wants them to.

    Endings. **Eliminated rewrite** (also an illegal choice, and a reply that is empty, cut, filtered or overflows the
    context): reward minus `penalty`, the parent stays, the episode goes on. **Horizon, stop**: `terminated`.
    **Failed call, spent budget, missing reward**: `truncated` and not `valid`, the state stays as it was.
    """

    def __init__(
        self,
        *,
        expert: LLM,
        action_set: ActionSet,
        reward: Reward,
        elimination: Eliminates,
        horizon: int,
        penalty: float,
    ) -> None:
        self.expert = expert
        self.action_set = action_set
        self.reward = reward
        self.elimination = elimination
        self.horizon = horizon
        self.penalty = penalty

    @property
    def instant(self) -> bool:
        """Whether a step waits for nobody: expert, rules and reward answer at once."""
        return is_instant(self.expert) and is_instant(self.elimination) and is_instant(self.reward)

    def start(self, seed: Seed, chain_draw: int) -> State:
        """The first state of a chain. `chain_draw` is the first index of the expert's samples."""
        return State(seed=seed, instruction=seed.instruction, step=0, horizon=self.horizon, chain_draw=chain_draw)

    def action_mask(self, state: State) -> NDArray[np.bool_]:
        """Which operations are legal, (A,) bool; all of them once the chain is over, where nobody chooses any more.

        Raises `ActionSetError` if a state that goes on has no legal operation.
        """
        if state.over:
            return np.ones(len(self.action_set), dtype=np.bool_)
        mask = np.array([operation.legal(state) for operation in self.action_set.operations], dtype=np.bool_)
        if not mask.any():
            raise ActionSetError(
                f"action set '{self.action_set.name}' has no legal operation at step {state.step} of seed "
                f"'{state.seed.id}'; expected at least one in every state. Add one that always is, such as 'stop'."
            )
        return mask

    async def step(self, state: State, action: int) -> Outcome:
        """Apply operation number `action` to the chain.

        Raises `UsageError` if the chain is over or `action` is no index of the action set, `RewardError` if the reward
        raises or is not a number. A failed call raises nothing: it is an invalid `Outcome`.
        """
        operation = self._operation(state, action)
        attempt = Transition(
            seed=state.seed.instruction,
            parent=state.instruction,
            operation=operation.name,
            child=None,
            step=state.step,
            horizon=state.horizon,
            prompt_version=operation.prompt_version,
        )
        if not operation.legal(state):
            return self._eliminated(state, attempt, Elimination("illegal", "the operation is not legal in this state"))
        if operation.stops:
            return self._went_on(state, attempt, Score(0.0), 0.0, stopped=True)
        try:
            completion = await self.expert.ask(
                operation.messages(state.instruction, state.history),
                prompt_version=operation.prompt_version,
                sample=(state.chain_draw, state.step),
            )
        except ContentFiltered:
            refused = Elimination("content_filter", "the endpoint's content filter refused the request")
            return self._eliminated(state, attempt, refused, calls=1)
        except ContextOverflow:
            too_long = Elimination("context_overflow", "the prompt does not fit the expert's context")
            return self._eliminated(state, attempt, too_long, calls=1)
        except BackendError as error:
            return _failed(state, attempt, error)
        usage = completion.usage or Usage()
        parsed = _unusable(completion) or operation.parse(completion.text, state.instruction)
        if isinstance(parsed, Elimination):
            return self._eliminated(state, replace(attempt, reply=completion.text), parsed, usage=usage, calls=1)
        attempt = replace(attempt, reply=completion.text, child=parsed)
        try:
            inspection = await self.elimination.inspect(attempt, finish_reason=completion.finish_reason)
            usage += inspection.usage
            if inspection.elimination is not None:
                return self._eliminated(state, attempt, inspection.elimination, usage=usage, calls=1)
            score = await checked_score(self.reward.name, self.reward, attempt)
        except BackendError as error:
            return _failed(state, attempt, error, usage=usage, calls=1)
        usage += score.usage
        if score.value is None:
            return _invalid(state, attempt, "reward missing", score=score, usage=usage, calls=1)
        return self._went_on(state, attempt, score, score.value, usage=usage, calls=1)

    def _operation(self, state: State, action: int) -> Operation:
        if state.over:
            raise UsageError(
                f"the chain of seed '{state.seed.id}' is over (step {state.step} of {state.horizon}"
                f"{', stopped' if state.stopped else ''}); call reset() before the next step."
            )
        if not 0 <= action < len(self.action_set):
            raise UsageError(
                f"action {action}; expected 0 to {len(self.action_set) - 1}, an index of action set "
                f"'{self.action_set.name}' ({', '.join(self.action_set.names)})."
            )
        return self.action_set.operations[action]

    def _eliminated(
        self, state: State, attempt: Transition, why: Elimination, *, usage: Usage | None = None, calls: int = 0
    ) -> Outcome:
        reward = -self.penalty if self.penalty else 0.0
        return self._went_on(
            state, replace(attempt, elimination=why), Score(reward), reward, usage=usage or Usage(), calls=calls
        )

    def _went_on(
        self,
        state: State,
        transition: Transition,
        score: Score,
        reward: float,
        *,
        usage: Usage | None = None,
        calls: int = 0,
        stopped: bool = False,
    ) -> Outcome:
        child = transition.child if transition.accepted else None
        after = replace(
            state,
            instruction=state.instruction if child is None else child,
            step=state.step + 1,
            history=(*state.history, transition),
            stopped=stopped,
        )
        return Outcome(
            state=after,
            transition=transition,
            score=score,
            reward=reward,
            terminated=after.over,
            truncated=False,
            valid=True,
            usage=usage or Usage(),
            calls=calls,
        )


def _unusable(completion: Completion) -> Elimination | None:
    """Replies that no operation can use, whatever the rules are."""
    if completion.finish_reason == "content_filter":
        return Elimination("content_filter", "the endpoint's content filter cut the reply")
    if not completion.text.strip():
        return Elimination("empty", "the reply is empty")
    return cut(completion.finish_reason)


def _failed(
    state: State, attempt: Transition, error: BackendError, *, usage: Usage | None = None, calls: int = 0
) -> Outcome:
    failure = f"{type(error).__name__}: {error}"
    return replace(_invalid(state, attempt, failure, usage=usage, calls=calls), error=error)


def _invalid(
    state: State,
    attempt: Transition,
    failure: str,
    *,
    score: Score | None = None,
    usage: Usage | None = None,
    calls: int = 0,
) -> Outcome:
    return Outcome(
        state=state,
        transition=attempt,
        score=score or Score(None),
        reward=None,
        terminated=False,
        truncated=True,
        valid=False,
        usage=usage or Usage(),
        calls=calls,
        failure=failure,
    )
