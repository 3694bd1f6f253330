"""`InstructionEvolutionVectorEnv`: many chains at once, whose calls go out together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from instructgym.envs.build import Blueprint, Session
from instructgym.envs.dynamics import Dynamics, Outcome, State
from instructgym.envs.infos import batch_infos, reset_info, step_info
from instructgym.envs.rendering import render_chain
from instructgym.envs.spec import EnvConfig
from instructgym.errors import ConfigError, UsageError
from instructgym.rewards.concurrency import gather
from instructgym.types import Transition

__all__ = ["InstructionEvolutionVectorEnv"]

Batch = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]
_RNG = np.random.Generator


@dataclass(frozen=True)
class _Job:
    """A step to take: of which row, from where, and with which generator."""

    row: int
    action: int
    state: State
    rng: _RNG


@dataclass(frozen=True)
class _Landed:
    """One row's step, not yet taken into the row: until then, nothing of the row has moved.

    `state`, `observation`, `info` and `rng` are those after the autoreset, if there was one.
    """

    job: _Job
    outcome: Outcome
    truncated: bool
    state: State
    observation: Any
    info: dict[str, Any]
    rng: _RNG


@dataclass
class _Row:
    state: State
    observation: Any
    landed: _Landed | None = None  # the last step


class InstructionEvolutionVectorEnv(VectorEnv[Any, Any, Any]):
    """N chains in one process; equal step for step to ``SyncVectorEnv(..., autoreset_mode=SAME_STEP)``.

    Options are those of `EnvConfig`; seeds, observations and infos are as there, `final_obs` and `final_info` included.
    A step is one hop to the portal, where all rows' calls are made at the same time. Nothing is opened before the first
    `reset`, and all belongs to the process of that reset.

    An invalid row (a call failed, or the reward is missing) is truncated, so it is reset in the same step like any
    ended row. The state in which it failed is kept until the row's next step or reset: `retry_rows` goes back to it.

    Besides Gymnasium's interface: `action_masks`, `states`, `last_outcomes`, `last_transitions`, `retry_rows`,
    `end_rollout` (for rewards with memory), and `send` / `recv` / `cancel` for those who do not want to wait for the
    slowest row (names and idea are EnvPool's, Weng et al. 2022, arXiv 2206.10558).

    Args:
        num_envs: N.
        max_episode_steps: truncate an episode there, as Gymnasium's TimeLimit does; None leaves it to the horizon.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: EnvConfig | None = None,
        *,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise UsageError(f"got a config and the options {sorted(options)}; pass one or the other.")
        if num_envs < 1:
            raise ConfigError(f"num_envs = {num_envs}; expected 1 or more.")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode = {render_mode!r}; expected 'ansi' or None.")
        self.config = EnvConfig.from_options(options) if config is None else config
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["ansi"], "render_fps": 1, "autoreset_mode": AutoresetMode.SAME_STEP}
        self._blueprint = Blueprint(self.config)
        self._max_episode_steps = max_episode_steps
        self.single_observation_space = self._blueprint.observer.space
        self.single_action_space = spaces.Discrete(len(self._blueprint.action_set))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._session: Session | None = None
        self._rngs: list[_RNG | None] = [None] * num_envs
        self._rows: list[_Row | None] = [None] * num_envs
        self._flights: dict[int, asyncio.Task[_Landed]] = {}
        self._arrived: list[int] = []
        self._arrival = asyncio.Event()

    # Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes in all rows, or in those of ``options["reset_mask"]`` ((N,) bool).

        `seed` is one number (row i gets seed + i) or one a row. Other options are those of the single env and hold for
        each row. Steps that are in flight in these rows are dropped.
        """
        seeds = self._seeds(seed)
        given = dict(options or {})
        mask = self._reset_mask(given.pop("reset_mask", None))
        session = self._open()
        rows = [row for row in range(self.num_envs) if mask[row]]
        dropped = [row for row in rows if row in self._flights]
        if dropped:
            session.call(self._drop, dropped)
        for row in rows:
            rng = self._rngs[row]
            if seeds[row] is not None or rng is None:
                self._rngs[row] = seeding.np_random(seeds[row])[0]
        states = [self._blueprint.start(session.dynamics, self._rng(row), given) for row in rows]
        observations = session.call(self._observe_all, states)
        infos: list[dict[str, Any] | None] = [None] * self.num_envs
        for row, state, observation in zip(rows, states, observations, strict=True):
            self._rows[row] = _Row(state, observation)
            infos[row] = reset_info(state, session.dynamics.action_mask(state))
        return self._stack([item.observation for item in self._all_rows()]), batch_infos(infos)

    def step(self, actions: Any) -> Batch:
        return self._go(self._jobs(actions, range(self.num_envs)))

    def render(self) -> tuple[str, ...] | None:
        """Each row's chain so far, in mode "ansi"."""
        if self.render_mode is None:
            return None
        return tuple(render_chain(state) for state in self.states)

    def close_extras(self, **kwargs: Any) -> None:
        session = self._session
        if session is None:
            return
        try:
            if session.usable:
                self.cancel()
        finally:
            self._session, self._rows, self._flights, self._arrived = None, [None] * self.num_envs, {}, []
            session.close()

    def __del__(self) -> None:
        """Nothing: the collector may run on the portal's own thread, where nothing can wait for the portal."""

    # What runners and trainers ask for

    @property
    def dynamics(self) -> Dynamics:
        """The open dynamics, with the reward and the LLMs. Raises `UsageError` before the first reset."""
        return self._running().dynamics

    @property
    def states(self) -> tuple[State, ...]:
        """Where each row stands (a row that ended: in its new episode)."""
        return tuple(row.state for row in self._all_rows())

    @property
    def last_outcomes(self) -> tuple[Outcome | None, ...]:
        """What each row's last step led to, before any autoreset; None for a row that has just been reset."""
        return tuple(None if row.landed is None else row.landed.outcome for row in self._all_rows())

    @property
    def last_transitions(self) -> tuple[Transition | None, ...]:
        """The transition of each row's last step; None where there was no step or it was not valid."""
        return tuple(
            outcome.transition if outcome is not None and outcome.valid else None for outcome in self.last_outcomes
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are legal now, (N, A) bool."""
        dynamics = self._running().dynamics
        return np.stack([dynamics.action_mask(row.state) for row in self._all_rows()])

    def retry_rows(self, actions: Any, rows: Sequence[int]) -> Batch:
        """Do the last step of these rows again, from the states in which it failed.

        Args:
            actions: (K,), for `rows` in their order.
            rows: indices of rows whose last step was not valid.

        Returns:
            What `step` returns, for these K rows alone; ``infos["env_id"]`` holds their indices. Each row is then as if
            the failure had not been; where it fails again it can be retried again.
        """
        self._check_rows(rows)
        jobs: list[_Job] = []
        for index, action in zip(rows, self._actions(actions, rows), strict=True):
            row = self._row(index)
            if row.landed is None or row.landed.outcome.valid:
                raise UsageError(f"row {index} has no failed step to retry; its last step was valid, or it was reset.")
            jobs.append(_Job(index, action, row.landed.job.state, row.landed.job.rng))
        return self._go(jobs, name_rows=True)

    def send(self, actions: Any, rows: Sequence[int] | None = None) -> None:
        """Start the steps of `rows` (default: all) and return at once; `recv` fetches them.

        Raises `UsageError` for a row that is in flight already.
        """
        chosen_rows = list(range(self.num_envs)) if rows is None else list(rows)
        self._check_rows(chosen_rows)
        self._running().call(self._launch, self._jobs(actions, chosen_rows))

    def recv(self, min_ready: int = 1) -> Batch:
        """Wait until at least `min_ready` of the rows in flight are done, and return all that are.

        The batch is that of `step`, for K >= `min_ready` rows in ascending order; ``infos["env_id"]`` ((K,) int) says
        which. Rows that ended are reset at once, with `final_obs` and `final_info`. Who comes first depends on time,
        so a run that collects like this does not repeat itself.

        If a step raised, so does this. That row is then as before its step; the others can still be fetched.
        """
        if not 1 <= min_ready <= len(self._flights):
            raise UsageError(
                f"recv(min_ready={min_ready}) with {len(self._flights)} rows in flight; send() as many first."
            )
        return self._take(self._running().call(self._fetch, min_ready), name_rows=True)

    def cancel(self) -> None:
        """Drop the steps in flight; their rows are as before them.

        Calls that are out already are not taken back: the ledger gets their answers, so they are not paid for twice.
        """
        if self._flights:
            self._running().call(self._drop, list(self._flights))

    def end_rollout(self) -> None:
        """Tell a reward with memory that a rollout is over: it takes the rows' valid steps, in (row, step) order.

        Until then all steps are scored by the memory as it was; without such a reward it does nothing. A step belongs
        to the rollout in which it is received; one that is in flight belongs to the next, and is scored by the memory
        that the reward has when its score is asked for.
        """
        session = self._running()
        session.call(session.rollout.commit)

    # A step

    def _go(self, jobs: Sequence[_Job], *, name_rows: bool = False) -> Batch:
        session = self._running()
        if self._flights:
            raise UsageError(f"rows {sorted(self._flights)} are in flight; fetch them with recv() first.")
        return self._take(session.call(self._advance_all, jobs), name_rows=name_rows)

    async def _advance_all(self, jobs: Sequence[_Job]) -> list[_Landed]:
        """All rows' steps at once. If one raises, none is taken, and none goes on in the background."""
        instant = self.dynamics.instant and self._blueprint.observer.instant
        return await gather([self._advance(job) for job in jobs], instant=instant)

    async def _advance(self, job: _Job) -> _Landed:
        dynamics, observer = self.dynamics, self._blueprint.observer
        outcome = await dynamics.step(job.state, job.action)
        observation = await observer.observe(outcome.state)
        info = step_info(outcome, dynamics.action_mask(outcome.state))
        at_limit = self._max_episode_steps is not None and outcome.state.step >= self._max_episode_steps
        truncated = outcome.truncated or at_limit
        if not (outcome.terminated or truncated):
            return _Landed(job, outcome, truncated, outcome.state, observation, info, job.rng)
        rng = _copy(job.rng)
        state = self._blueprint.start(dynamics, rng)
        ended = {"final_obs": observation, "final_info": info, **reset_info(state, dynamics.action_mask(state))}
        return _Landed(job, outcome, truncated, state, await observer.observe(state), ended, rng)

    def _take(self, steps: Sequence[_Landed], *, name_rows: bool) -> Batch:
        rewards = np.zeros(len(steps), dtype=np.float64)
        terminations = np.zeros(len(steps), dtype=np.bool_)
        truncations = np.zeros(len(steps), dtype=np.bool_)
        session = self._running()
        for place, landed in enumerate(steps):
            row = self._row(landed.job.row)
            self._rngs[landed.job.row], row.landed = landed.rng, landed
            row.state, row.observation = landed.state, landed.observation
            if landed.outcome.valid:
                session.rollout.add(landed.job.row, landed.outcome.transition)
            rewards[place] = 0.0 if landed.outcome.reward is None else landed.outcome.reward
            terminations[place] = landed.outcome.terminated
            truncations[place] = landed.truncated
        infos = batch_infos([landed.info for landed in steps])
        if name_rows:
            infos["env_id"] = np.array([landed.job.row for landed in steps], dtype=np.int64)
        return self._stack([landed.observation for landed in steps]), rewards, terminations, truncations, infos

    # On the portal's loop

    async def _observe_all(self, states: Sequence[State]) -> list[Any]:
        return list(await asyncio.gather(*(self._blueprint.observer.observe(state) for state in states)))

    async def _launch(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            task = asyncio.get_running_loop().create_task(self._advance(job))
            self._flights[job.row] = task
            task.add_done_callback(partial(self._land, job.row))

    def _land(self, row: int, task: asyncio.Task[_Landed]) -> None:
        if self._flights.get(row) is task:
            self._arrived.append(row)
            self._arrival.set()

    async def _fetch(self, count: int) -> list[_Landed]:
        while len(self._arrived) < count:
            self._arrival.clear()
            await self._arrival.wait()
        failed = [row for row in self._arrived if self._flights[row].exception() is not None]
        if failed:
            self._arrived.remove(failed[0])
            return [self._flights.pop(failed[0]).result()]  # raises
        arrived, self._arrived = sorted(self._arrived), []
        return [self._flights.pop(row).result() for row in arrived]

    async def _drop(self, rows: Sequence[int]) -> None:
        tasks = [self._flights.pop(row) for row in rows]
        self._arrived = [row for row in self._arrived if row in self._flights]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Checks

    def _open(self) -> Session:
        if self._session is None:
            self._session = Session(self._blueprint, self.num_envs)
            self._arrival = asyncio.Event()  # belongs to the loop that waits on it
            self.closed = False
        return self._session

    def _running(self) -> Session:
        if self._session is None:
            raise UsageError("the environment has not been reset, or was closed; call reset() first.")
        return self._session

    def _row(self, index: int) -> _Row:
        row = self._rows[index]
        if row is None:
            raise UsageError(f"row {index} has not been reset, or was closed; call reset() first.")
        return row

    def _all_rows(self) -> list[_Row]:
        return [self._row(index) for index in range(self.num_envs)]

    def _rng(self, row: int) -> _RNG:
        rng = self._rngs[row]
        if rng is None:
            raise UsageError(f"row {row} has no generator yet; call reset() first.")
        return rng

    def _check_rows(self, rows: Sequence[int]) -> None:
        if len(set(rows)) != len(rows) or not all(0 <= row < self.num_envs for row in rows) or not len(rows):
            raise UsageError(f"rows = {list(rows)}; expected different indices from 0 to {self.num_envs - 1}.")
        flying = [row for row in rows if row in self._flights]
        if flying:
            raise UsageError(f"rows {flying} are in flight; fetch them with recv() first.")

    def _jobs(self, actions: Any, rows: Sequence[int]) -> list[_Job]:
        self._running()
        chosen = zip(rows, self._actions(actions, rows), strict=True)
        return [_Job(row, action, self._row(row).state, self._rng(row)) for row, action in chosen]

    def _actions(self, actions: Any, rows: Sequence[int]) -> list[int]:
        array = np.asarray(actions)
        if array.shape != (len(rows),) or array.dtype.kind not in "iu":
            raise UsageError(
                f"actions of shape {array.shape} and type {array.dtype}; expected {len(rows)} whole numbers, one a row."
            )
        return [int(action) for action in array]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise UsageError(f"{len(seed)} seeds for {self.num_envs} rows; pass one a row, or a single number.")
        return list(seed)

    def _reset_mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise UsageError(f"reset_mask = {mask!r}; expected a bool array of shape ({self.num_envs},).")
        if not mask.any():
            raise UsageError("reset_mask chooses no row; expected at least one True.")
        return mask

    def _stack(self, observations: Sequence[Any]) -> Any:
        space = self.single_observation_space
        empty: Any = create_empty_array(space, n=len(observations))
        return concatenate(space, observations, empty)


def _copy(rng: _RNG) -> _RNG:
    """A second generator in the state of `rng`, which `seeding.np_random` made, in a third of `deepcopy`'s time."""
    bits = np.random.PCG64(0)
    state: Any = rng.bit_generator.state
    bits.state = state
    return np.random.Generator(bits)
