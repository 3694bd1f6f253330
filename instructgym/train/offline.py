"""Training on logged chains, and the value of policies from them: no new call."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgym.agents import AGENTS, Agent, save_agent
from instructgym.agents.offline.estimators import DEFAULT_ESTIMATOR, off_policy_values
from instructgym.agents.offline.logs import LoggedEpisodes
from instructgym.errors import ConfigError
from instructgym.train.chains import DIGITS
from instructgym.train.config import Config
from instructgym.train.logged_chains import logged_episodes
from instructgym.train.policies import AGENT, build_agent, policy_named
from instructgym.train.run_folder import digest_files

if TYPE_CHECKING:
    from instructgym.envs.observations import Observer
    from instructgym.train.runtime import Runtime
    from instructgym.train.stage import SeedSplit, StageContext, StageOutput

__all__ = ["OfflineResult", "logs_digest", "off_policy_table", "run_train_from_logs", "train_from_logs"]


@dataclass(frozen=True)
class OfflineResult:
    """An agent that learned from logs, where it was saved, and what its learner reported."""

    agent: Agent
    folder: Path
    episodes: int
    metrics: dict[str, float]


def train_from_logs(config: Config, folders: Sequence[Path | str] | Path | str, out: Path | str) -> OfflineResult:
    """Train the config's agent on the chains of finished runs and save it as ``OUT/agent``, as stage `train` does.

    Chains that start at a seed which the config holds out are left out, so that it can be evaluated on them.

    Raises:
        ConfigError: the agent does not learn from logs, the task of the logs was another, or no chain is left.
        ActionSetError: the logs were made with another action set.
        RunFolderError: a folder is no run's, or has no lineage.
    """
    from instructgym.train.pipeline import seeds_of
    from instructgym.train.runtime import Runtime

    runtime = Runtime(config)
    try:
        runtime.check_names()
        agent, logs, metrics = _learned(config, runtime, seeds_of(config), folders)
        target = Path(out) / AGENT
        _save(agent, target, runtime)
        return OfflineResult(agent, target, logs.num_episodes, metrics)
    finally:
        runtime.close()


def run_train_from_logs(context: StageContext, folders: Sequence[Path | str] | Path | str) -> StageOutput:
    """Stage `train` on logs: writes `agent/` into the run's folder, and asks nobody. Raises as `train_from_logs`."""
    from instructgym.train.stage import StageOutput

    context.progress.started("train", 1)
    agent, logs, metrics = _learned(context.config, context.runtime, context.seeds, folders)
    _save(agent, context.folder.path / AGENT, context.runtime)
    context.progress.advance("train", 1)
    result = {
        "agent": context.config.agent.name,
        "steps": 0,
        "logged_chains": logs.num_episodes,
        "logged_steps": len(logs),
        "metrics": {name: round(value, DIGITS) for name, value in sorted(metrics.items())},
        "repeats_to_the_byte": True,
        "accounting": [],
    }
    return StageOutput((AGENT,), result)


def logs_digest(folders: Sequence[Path | str] | Path | str) -> dict[str, str]:
    """The contents that training on these logs hangs on, by name: for a run's identity."""
    digests: dict[str, str] = {}
    for number, folder in enumerate(_listed(folders)):
        found = digest_files(Path(folder), ["run.json", "lineage.jsonl"])
        digests |= {f"{number}/{name}": digest for name, digest in found.items()}
    return digests


def off_policy_table(
    names: Sequence[str],
    context: StageContext,
    folders: Sequence[Path | str] | Path | str,
    *,
    estimator: str = DEFAULT_ESTIMATOR,
    deterministic: bool = False,
) -> dict[str, dict[str, Any]]:
    """What policies would have earned on the logged chains of the held-out seeds, a row a policy; no new call.

    All logged chains count where the config holds no seed out. A row has `value` (the mean episode reward),
    `interval_95`, `effective_sample_size`, `trustworthy`, `chains`, `seeds` and `estimator`.

    Raises as `train_from_logs` does, and `UsageError` for a policy that does not say its probabilities or logs whose
    choices have none.
    """
    seeds = context.seeds.held_out or None
    read: dict[Observer, LoggedEpisodes] = {}
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        policy = policy_named(name, context)
        if not isinstance(policy, Agent):
            raise ConfigError(f"policy '{name}' asks before it chooses; logs cannot evaluate it. Name an agent.")
        observer = context.runtime.observer_for(policy)
        if observer not in read:
            read[observer] = logged_episodes(_listed(folders), context.runtime, seeds=seeds, observer=observer)
        logs = read[observer]
        found = off_policy_values(policy, logs, estimators=(estimator,), deterministic=deterministic)[estimator]
        table[name] = {
            "value": round(found.value, DIGITS),
            "interval_95": [round(bound, DIGITS) for bound in found.interval],
            "effective_sample_size": round(found.effective_sample_size, 1),
            "trustworthy": found.trustworthy,
            "chains": found.episodes,
            "seeds": found.clusters,
            "estimator": estimator,
        }
    return table


def _learned(
    config: Config, runtime: Runtime, seeds: SeedSplit, folders: Sequence[Path | str] | Path | str
) -> tuple[Agent, LoggedEpisodes, dict[str, float]]:
    agent = build_agent(config.agent.name, runtime, config.agent.kwargs, config.run.seed)
    learn_from = getattr(agent, "learn_from", None)
    if learn_from is None:
        able = [name for name in ("behaviour_cloning", "fitted_q") if name in AGENTS]
        raise ConfigError(
            f"agent '{config.agent.name}' does not learn from logs; expected one with a method learn_from(batch), such "
            f"as {' or '.join(able) or 'one of your own'}."
        )
    observer = runtime.observer_for(agent)
    logs = logged_episodes(_listed(folders), runtime, seeds=seeds.train, observer=observer)
    return agent, logs, dict(learn_from(logs))


def _save(agent: Agent, target: Path, runtime: Runtime) -> None:
    shutil.rmtree(target, ignore_errors=True)
    save_agent(agent, target, action_set_hash=runtime.action_set.hash, action_set_names=runtime.action_set.names)


def _listed(folders: Sequence[Path | str] | Path | str) -> list[Path | str]:
    return [folders] if isinstance(folders, (str, Path)) else list(folders)
