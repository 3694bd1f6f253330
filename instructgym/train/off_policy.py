"""What policies would have earned on the chains of finished runs, as a table in a run's folder; nobody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgym import __version__
from instructgym.errors import ConfigError, RunFolderError, UsageError
from instructgym.train.config import ROLES, Config
from instructgym.train.offline import logs_digest, off_policy_table
from instructgym.train.pipeline import seeds_of
from instructgym.train.policies import AGENT, TRAINED, policy_names
from instructgym.train.progress import Silent
from instructgym.train.run_folder import RunFolder
from instructgym.train.runtime import Runtime
from instructgym.train.stage import StageContext

__all__ = ["OFF_POLICY", "judge_from_logs", "judged_by_default"]

OFF_POLICY = "off_policy.json"
_SCHEMA = 1


def judge_from_logs(config: Config, out: Path, logs: Sequence[Path], policies: Sequence[str]) -> dict[str, Any]:
    """What each policy would have earned on the logged chains of the held-out seeds; ``OUT/off_policy.json`` holds it.

    Args:
        config: of the run that judges: its action set, horizon and reward must be those of the logs.
        out: the folder of a run; ``trained`` is its agent.
        logs: folders of runs whose stage `evolve` is finished.
        policies: agents that say their probabilities, by the names of `evaluate.policies`.

    Returns what is written: `policies` are the rows of `off_policy_table`.

    Raises:
        ConfigError: no policy, one that logs cannot judge, or another task than that of the logs.
        ActionSetError: the logs were made with another action set.
        RunFolderError: a folder is no run's, or has no lineage.
    """
    if not policies:
        raise ConfigError("no policy is named that the logs are to judge; expected at least one.")
    for path in (out, *logs):
        if not (path / "run.json").is_file():
            raise RunFolderError(f"'{path}' is no run's folder: there is no run.json in it. Give the folder of a run.")
    runtime = Runtime(config)
    try:
        runtime.check_names()
        names = policy_names(policies, runtime.action_set)
        if TRAINED in names and not (out / AGENT).is_dir():
            raise ConfigError(f"policy 'trained': nothing is trained in '{out}'. Name the folder of a saved agent.")
        seeds = seeds_of(config)
        with RunFolder.hold(out) as folder:
            context = StageContext(config, folder, seeds, runtime, Silent())
            try:
                table = off_policy_table(names, context, logs)
            except UsageError as error:
                raise ConfigError(f"the logs cannot judge it: {error}") from error
            document = {
                "schema": _SCHEMA,
                "version": __version__,
                "logs": [str(path) for path in logs],
                "logs (content)": logs_digest(logs),
                "held_out": bool(seeds.held_out),
                "simulated": [role for role in ROLES if role in runtime.simulated_roles],
                "policies": table,
            }
            folder.write_json(OFF_POLICY, document)
            return document
    finally:
        runtime.close()


def judged_by_default(out: Path) -> tuple[str, ...]:
    """What is judged where nobody names a policy: the run's trained agent, if it has one, and uniform choice."""
    return (*([TRAINED] if (out / AGENT).is_dir() else []), "random")
