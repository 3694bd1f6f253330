"""The chains of finished runs as logged episodes: states and observations are made again, and nobody is asked."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instructgym.agents.offline.logs import LoggedEpisodes
from instructgym.agents.spaces import stack_rows
from instructgym.envs.dynamics import State
from instructgym.envs.observations import Observer
from instructgym.envs.operations import ActionSet
from instructgym.errors import ActionSetError, ConfigError, RunFolderError
from instructgym.train.config import flatten
from instructgym.train.evolve import LINEAGE
from instructgym.types import Elimination, Instruction, Seed, Transition

if TYPE_CHECKING:
    from instructgym.train.runtime import Runtime

__all__ = ["episodes_of_rows", "logged_episodes", "read_lineage"]

_TASK = ("env.horizon", "env.penalty", "env.elimination", "reward.")
"""What decides a logged reward and when an episode ends: it must be the same where the logs are learned from."""

Rows = list[dict[str, Any]]


@dataclass
class _Gathered:
    """Columns that grow chain by chain."""

    obs: list[Any] = field(default_factory=list)
    next_obs: list[Any] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    next_masks: list[Any] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)


def logged_episodes(
    folders: Sequence[Path | str],
    runtime: Runtime,
    *,
    seeds: Sequence[Seed] | None = None,
    observer: Observer | None = None,
) -> Any:
    """The chains that stage `evolve` wrote into run folders, as this run's agents would have seen them.

    Args:
        folders: of runs with `lineage.jsonl`. Chains of training stand in no lineage, only those of `evolve`.
        runtime: of the run that learns or judges; its encoder, observation, action set and horizon make the arrays.
            It need not be connected: nobody is asked anything.
        seeds: keep only the chains that start at these instructions; None keeps all.
        observer: makes the observations; None takes the run's.

    Returns a `LoggedEpisodes` whose clusters are the seed instructions.

    Raises:
        RunFolderError: no run's folder, no lineage, or one that contradicts itself.
        ActionSetError: the run had another action set.
        ConfigError: its horizon, penalty, rules or reward were others, or no chain is left.
    """
    from instructgym.llm_backends.portal import acquire_portal

    wanted = None if seeds is None else {seed.instruction for seed in seeds}
    known = {seed.instruction: seed for seed in seeds or ()}
    clusters: dict[Instruction, int] = {}
    parts: list[LoggedEpisodes] = []
    portal = acquire_portal()
    try:
        for folder in map(Path, folders):
            rows, uniform = read_lineage(folder, runtime)
            part = portal.call(
                lambda rows=rows, uniform=uniform, name=str(folder): episodes_of_rows(
                    rows,
                    action_set=runtime.action_set,
                    observer=observer or runtime.observer,
                    horizon=runtime.config.env.horizon,
                    uniform=uniform,
                    wanted=wanted,
                    seeds=known,
                    clusters=clusters,
                    source=name,
                )
            )
            parts += [part] if len(part) else []
    finally:
        portal.release()
    if not parts:
        shown = ", ".join(f"'{folder}'" for folder in folders)
        of = "" if wanted is None else f" that starts at one of the {len(wanted)} seed instructions asked for"
        raise ConfigError(f"the lineage of {shown} holds no valid step of a chain{of}; expected at least one.")
    return LoggedEpisodes.joined(parts)


def read_lineage(folder: Path, runtime: Runtime) -> tuple[Rows, bool]:
    """The rows of a run's lineage, and whether its policy chose uniformly among what was legal.

    Raises as `logged_episodes` does.
    """
    card = folder / "run.json"
    if not card.is_file():
        raise RunFolderError(f"'{folder}' is no run's folder: there is no run.json in it. Give the folder of a run.")
    if not (folder / LINEAGE).is_file():
        raise RunFolderError(
            f"'{folder}' has no {LINEAGE}, which says what was chosen and what it earned; a ledger alone does not. "
            f"Finish its stage 'evolve' first: instructgym evolve {folder}."
        )
    try:
        identity: Mapping[str, Any] = json.loads(card.read_text("utf-8"))["identity"]
        with (folder / LINEAGE).open(encoding="utf-8", errors="surrogatepass") as stream:
            rows: Rows = [json.loads(line) for line in stream]
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"'{folder}' cannot be read as a run's folder: {type(error).__name__}: {error}. Give another one."
        ) from error
    _check_task(folder, identity, runtime)
    policy, agent = identity.get("evolve.policy"), identity.get("agent.name")
    return rows, policy == "random" or (policy == "trained" and agent == "random")


def _check_task(folder: Path, identity: Mapping[str, Any], runtime: Runtime) -> None:
    there, here = identity.get("env.action_set (content)"), runtime.action_set.hash
    if there != here:
        raise ActionSetError(
            f"the chains in '{folder}' were made with action set {there} ('{identity.get('env.action_set')}'), this "
            f"run has {here} ({', '.join(runtime.action_set.names)}). Learn with the set that they were made with."
        )
    config = json.loads(json.dumps(flatten(runtime.config)))
    for key in sorted({*config, *identity}):
        if key.startswith(_TASK) and config.get(key) != identity.get(key):
            raise ConfigError(
                f"the chains in '{folder}' were made with {key} = {json.dumps(identity.get(key))}, this run has "
                f"{json.dumps(config.get(key))}. What they earned is logged and not asked again: give the same value."
            )


async def episodes_of_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    action_set: ActionSet,
    observer: Observer,
    horizon: int,
    uniform: bool = False,
    wanted: set[Instruction] | None = None,
    seeds: Mapping[Instruction, Seed] | None = None,
    clusters: dict[Instruction, int] | None = None,
    source: str = "the lineage",
) -> LoggedEpisodes:
    """Rows of `step_row`, ordered by (chain, step), as episodes; see `logged_episodes`.

    A step that failed, or has no reward, is left out; the one before it keeps the state in which it failed as its
    successor. `uniform` says that a row without `log_prob` was a uniform choice of what was legal.

    Raises `RunFolderError` where a row does not follow from the one before, `ActionSetError` for an unknown operation.
    """
    found = _Gathered()
    numbers = {} if clusters is None else clusters
    for episode, chain in enumerate(_chains(rows)):
        start = _instruction(chain[0]["parent"])
        if wanted is not None and start not in wanted:
            continue
        seed = (seeds or {}).get(start) or Seed(str(chain[0]["seed_id"]), start)
        state = State(seed, start, 0, horizon, int(chain[0]["chain"]))
        mask, obs = _legal(action_set, state), await observer.observe(state)
        for row in chain:
            if state.over or row["step"] != state.step or _instruction(row["parent"]) != state.instruction:
                raise RunFolderError(
                    f"{source}: step {row['step']} of chain {row['chain']} does not follow from the steps before it. "
                    "The file was changed, or is of another version; evolve again."
                )
            if row["failure"] is not None or row["reward"] is None:
                break
            action = action_set.index(row["operation"])
            state = _after(state, row, stops=action_set.operations[action].stops)
            log_prob = row.get("log_prob")
            if log_prob is None:
                log_prob = -math.log(mask.sum()) if uniform else math.nan
            next_mask, next_obs = _legal(action_set, state), await observer.observe(state)
            found.obs.append(obs)
            found.next_obs.append(next_obs)
            found.masks.append(mask)
            found.next_masks.append(next_mask)
            found.actions.append(action)
            found.rewards.append(float(row["reward"]))
            found.terminated.append(state.over)
            found.log_probs.append(float(log_prob))
            found.episodes.append(episode)
            found.steps.append(int(row["step"]))
            found.clusters.append(numbers.setdefault(start, len(numbers)))
            mask, obs = next_mask, next_obs
    return _episodes(found, observer, len(action_set))


def _episodes(found: _Gathered, observer: Observer, actions: int) -> LoggedEpisodes:
    size = len(found.actions)
    return LoggedEpisodes(
        obs_space=observer.space,
        obs=stack_rows(observer.space, found.obs) if size else np.zeros((0,)),
        next_obs=stack_rows(observer.space, found.next_obs) if size else np.zeros((0,)),
        actions=np.array(found.actions, np.int64),
        rewards=np.array(found.rewards, np.float64),
        terminated=np.array(found.terminated, bool),
        masks=np.array(found.masks, bool).reshape(size, actions),
        next_masks=np.array(found.next_masks, bool).reshape(size, actions),
        log_probs=np.array(found.log_probs, np.float64),
        episodes=np.array(found.episodes, np.int64),
        steps=np.array(found.steps, np.int64),
        clusters=np.array(found.clusters, np.int64),
    )


def _chains(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row["chain"]):
        yield list(group)


def _after(state: State, row: Mapping[str, Any], *, stops: bool) -> State:
    child = None if row["child"] is None else _instruction(row["child"])
    reason = row["eliminated"]
    transition = Transition(
        seed=state.seed.instruction,
        parent=state.instruction,
        operation=row["operation"],
        child=child,
        step=state.step,
        horizon=state.horizon,
        elimination=None if reason is None else Elimination(reason, row["detail"]),
        reply=row.get("reply", ""),
        prompt_version=row["prompt_version"],
    )
    return replace(
        state,
        instruction=child if child is not None and transition.accepted else state.instruction,
        step=state.step + 1,
        history=(*state.history, transition),
        stopped=stops and reason is None,
    )


def _legal(action_set: ActionSet, state: State) -> Any:  # -> (A,) bool; all of them once the chain is over
    return np.array([state.over or operation.legal(state) for operation in action_set.operations], bool)


def _instruction(text: Mapping[str, str]) -> Instruction:
    return Instruction(text["instruction"], text["input"])
