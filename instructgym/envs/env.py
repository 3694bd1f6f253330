"""`InstructionEvolutionEnv`: one chain as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.envs.build import Blueprint, Session
from instructgym.envs.dynamics import Dynamics, Outcome, State
from instructgym.envs.infos import reset_info, step_info
from instructgym.envs.rendering import render_chain
from instructgym.envs.spec import EnvConfig
from instructgym.errors import UsageError

__all__ = ["InstructionEvolutionEnv"]


class InstructionEvolutionEnv(gymnasium.Env[Any, np.int64]):
    """An episode evolves one instruction; an action is an operation that the expert applies to it.

    Options are those of `EnvConfig`. Nothing is opened here: portal, ledger and models open at the first `reset` and
    belong to its process (`UsageError` in any other: create the env inside the worker).

    - observation: see `Observer`. action: `Discrete`, the index of the action set. Masks: `action_masks()`, and
      ``info["action_mask"]`` as int8.
    - reward: the reward's value, or minus `penalty` for an eliminated rewrite, whose parent stays.
    - terminated: horizon reached or `stop`. truncated: a call failed or the reward is missing; then the tuple's reward
      is 0.0, ``info["valid"]`` False and ``info["failure"]`` says why. Drop such a row.
    - info: see `infos.step_info`; a function of seed and actions. `last_outcome` holds all that a step led to.
    - ``reset(options={"instruction": ..., "input": ...})`` evolves a text of yours, ``{"seed_id": ...}`` a given seed.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  Gymnasium's own form

    def __init__(self, config: EnvConfig | None = None, *, render_mode: str | None = None, **options: Any) -> None:
        if config is not None and options:
            raise UsageError(f"got a config and the options {sorted(options)}; pass one or the other.")
        self.config = EnvConfig.from_options(options) if config is None else config
        self.render_mode = render_mode
        self._blueprint = Blueprint(self.config)
        self.observation_space = self._blueprint.observer.space
        self.action_space = spaces.Discrete(len(self._blueprint.action_set))
        self._session: Session | None = None
        self._state: State | None = None
        self._failed = False
        self.last_outcome: Outcome | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        session = self._open()
        state = self._blueprint.start(session.dynamics, self.np_random, options)
        observation = session.call(self._blueprint.observer.observe, state)
        self._state, self._failed, self.last_outcome = state, False, None
        return observation, reset_info(state, session.dynamics.action_mask(state))

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        session, state = self._running()
        if self._failed:
            raise UsageError("the last step failed and ended the episode; call reset(), or retry() to ask again.")
        return self._step(session, state, action)

    def retry(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do a step that was not valid again, from the state in which it failed."""
        session, state = self._running()
        if not self._failed:
            raise UsageError("retry() repeats a step whose info['valid'] is False; the last one was valid.")
        return self._step(session, state, action)

    def end_rollout(self) -> None:
        """Tell a reward with memory that a rollout is over: it takes the valid steps since the last, in order.

        Until then all steps are scored by the memory as it was. Without such a reward it does nothing.
        """
        session, _ = self._running()
        session.call(session.rollout.commit)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are legal now, (A,) bool: what sb3-contrib asks for."""
        session, state = self._running()
        return session.dynamics.action_mask(state)

    @property
    def state(self) -> State:
        """Where the chain stands. Raises `UsageError` before the first reset."""
        return self._running()[1]

    @property
    def dynamics(self) -> Dynamics:
        """The open dynamics, with the reward and the LLMs. Raises `UsageError` before the first reset."""
        return self._running()[0].dynamics

    def render(self) -> str | None:
        """The chain so far as text, in mode "ansi"."""
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() was called without a render mode; pass one: gymnasium.make(..., render_mode='ansi')."
            )
            return None
        return render_chain(self._running()[1])

    def close(self) -> None:
        session, self._session, self._state = self._session, None, None
        if session is not None:
            session.close()

    def _step(self, session: Session, state: State, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        outcome, observation = session.call(self._outcome, session.dynamics, state, int(action))
        self._state, self._failed, self.last_outcome = outcome.state, not outcome.valid, outcome
        if outcome.valid:
            session.rollout.add(0, outcome.transition)
        reward = 0.0 if outcome.reward is None else outcome.reward
        info = step_info(outcome, session.dynamics.action_mask(outcome.state))
        return observation, reward, outcome.terminated, outcome.truncated, info

    async def _outcome(self, dynamics: Dynamics, state: State, action: int) -> tuple[Outcome, Any]:
        outcome = await dynamics.step(state, action)
        return outcome, await self._blueprint.observer.observe(outcome.state)

    def _open(self) -> Session:
        if self._session is None:
            self._session = Session(self._blueprint, 1)
        return self._session

    def _running(self) -> tuple[Session, State]:
        if self._session is None or self._state is None:
            raise UsageError("the environment has not been reset, or was closed; call reset() first.")
        return self._session, self._state
