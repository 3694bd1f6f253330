"""Stage `train`: the instructor learns on the training seeds.

A run that was cut off trains again from the start: what it had asked stands in the ledger, so no call is paid twice
and the result is the same to the byte.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from typing import Any

from instructgym.agents import Algorithm, make_agent, save_agent
from instructgym.agents.base import OfflineAlgorithm
from instructgym.envs.spec import EnvConfig
from instructgym.errors import BackendError, ConfigError
from instructgym.train.call_budget import learn_within
from instructgym.train.policies import AGENT, REWARD_MEMORY
from instructgym.train.reward_memory import save_memory
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput
from instructgym.train.traffic import Traffic
from instructgym.train.watched_env import WatchedVectorEnv

__all__ = ["EPISODES", "LEARNING_CURVE", "METRICS", "run_train"]

LEARNING_CURVE = "stages/learning_curve.json"
EPISODES = "stages/episodes.json"
METRICS = "metrics"


def run_train(context: StageContext) -> StageOutput:
    """Writes `agent/`, `stages/learning_curve.json` and TensorBoard's `metrics/`.

    With `train.calls` also `stages/episodes.json`: [expert calls so far, episode reward] of every episode.

    Raises `BudgetExhausted`, and other `BackendError` where training cannot go on.
    """
    config, runtime, folder = context.config, context.runtime, context.folder
    if config.train.logs:
        from instructgym.train.offline import run_train_from_logs

        return run_train_from_logs(context, config.train.logs)
    reward = runtime.reward_for("train")
    env = WatchedVectorEnv(
        config.train.num_envs, _env_config(context, reward), runtime.counting, max_calls=config.train.calls
    )
    curve: list[dict[str, float | None]] = []
    goal = min(config.train.steps, config.train.calls or config.train.steps)
    context.progress.started("train", goal)
    with _one_torch_thread(), contextlib.closing(env), contextlib.closing(_writer(context)) as writer:
        agent = make_agent(
            config.agent.name,
            env.single_observation_space,
            env.single_action_space,
            kwargs=config.agent.kwargs,
            seed=config.run.seed,
            action_names=runtime.action_set.names,
        )

        if isinstance(agent, OfflineAlgorithm):
            raise ConfigError(
                f"agent '{config.agent.name}' learns from logs and from nothing else; name the folder of a run that "
                "evolved: `instructgym train --from-ledger DIR`, or train.logs."
            )

        def progress(steps: int, metrics: dict[str, float]) -> None:
            env.end_rollout()
            shown = {name: _finite(value) for name, value in sorted(metrics.items()) if not name.startswith("time/")}
            curve.append({"steps": steps, "calls": env.calls, **shown})
            meter = runtime.traffic
            traffic = {} if meter is None else Traffic.total(meter.rows("train")).scalars()
            for name, value in (metrics | traffic).items():
                writer.add_scalar(name, value, steps)
            mean = metrics.get("rollout/ep_rew_mean")
            note = "" if mean is None else f"mean episode reward {mean:.2f}"
            context.progress.advance("train", min(steps, goal), note)

        if isinstance(agent, Algorithm):
            try:
                learn_within(agent, env, config.train.steps, config.train.calls, progress)
            except BackendError as error:
                # A learner that meets nothing but failures says so; what it met says why.
                raise (runtime.counting.fatal or error) from error
    shutil.rmtree(folder.path / AGENT, ignore_errors=True)
    save_agent(
        agent,
        folder.path / AGENT,
        action_set_hash=runtime.action_set.hash,
        action_set_names=runtime.action_set.names,
    )
    save_memory(reward.state_dict(), folder.path / REWARD_MEMORY)
    folder.write_json(LEARNING_CURVE, curve)
    if config.train.calls is not None:
        folder.write_text(EPISODES, canonical_json(env.episodes) + "\n")
    result = {
        "agent": config.agent.name,
        "steps": curve[-1]["steps"] if curve else 0,
        "calls": env.calls,
        "num_envs": config.train.num_envs,
        "final_mean_episode_reward": curve[-1].get("rollout/ep_rew_mean") if curve else None,
        # Who comes first in asynchronous collection depends on time.
        "repeats_to_the_byte": config.agent.kwargs.get("collect") != "async",
        "accounting": runtime.accounting("train"),
    }
    files = (AGENT, LEARNING_CURVE) if config.train.calls is None else (AGENT, LEARNING_CURVE, EPISODES)
    return StageOutput(files, result)


def _env_config(context: StageContext, reward: Any) -> EnvConfig:
    config, runtime = context.config, context.runtime
    return EnvConfig(
        action_set=runtime.action_set,
        observation=config.env.observation,
        reward=reward,
        elimination=runtime.rules_for("train"),
        penalty=config.env.penalty,
        horizon=config.env.horizon,
        seeds=context.seeds.train,
        draws_per_seed=config.env.draws_per_seed,
        expert=runtime.llm("expert", "train"),
        reviewer=runtime.llm("reviewer", "train"),
        encoder=runtime.encoder,
        run_seed=config.run.seed,
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _writer(context: StageContext) -> Any:
    """TensorBoard's writer on an empty `metrics/`: a run that starts over must not draw two curves."""
    from torch.utils.tensorboard import SummaryWriter

    path = context.folder.path / METRICS
    shutil.rmtree(path, ignore_errors=True)
    writer = SummaryWriter(str(path))
    path.chmod(0o700)  # the writer makes it with the process's umask; a run's files are their owner's
    return writer


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Small networks are faster on one thread, and sums come out the same on every machine's number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
