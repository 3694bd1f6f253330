"""Stage `train`: the instructor learns on the training seeds.

A run that was cut off trains again from the start: what it had asked stands in the ledger, so no call is paid twice
and the result is the same to the byte. A finished training can be continued (`continuation`).
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from typing import Any

from instructgym.agents import Agent, Algorithm, load_agent, save_agent
from instructgym.agents.base import OfflineAlgorithm
from instructgym.envs.spec import EnvConfig
from instructgym.errors import BackendError, ConfigError
from instructgym.train.call_budget import learn_within
from instructgym.train.continuation import EPISODES, LEARNING_CURVE, STAGED, Past, check_learns_on, clear
from instructgym.train.policies import AGENT, REWARD_MEMORY, build_agent
from instructgym.train.reward_memory import load_memory, save_memory
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput
from instructgym.train.traffic import Traffic
from instructgym.train.watched_env import WatchedVectorEnv

__all__ = ["EPISODES", "LEARNING_CURVE", "METRICS", "run_train"]

METRICS = "metrics"


def run_train(context: StageContext) -> StageOutput:
    """Writes `agent/`, `stages/learning_curve.json` and TensorBoard's `metrics/`.

    With `train.calls` also `stages/episodes.json`: [expert calls so far, episode reward] of every episode.

    With ``context.trained`` it learns `train.steps` (or `train.calls`) more from there; steps, calls, curves and counts
    go on, and all but `metrics/` is written below `continuation.STAGED`.

    Raises `BudgetExhausted`, and other `BackendError` where training cannot go on; `ConfigError` for an agent that
    does not learn from an env, or cannot learn on.
    """
    config, runtime, folder = context.config, context.runtime, context.folder
    if config.train.logs:
        from instructgym.train.offline import run_train_from_logs

        return run_train_from_logs(context, config.train.logs)
    past = Past() if context.trained is None else Past.of(folder, context.trained)
    agent = _agent(context)
    reward = runtime.reward_for("train")
    if past.parts and (folder.path / REWARD_MEMORY).exists():
        reward.load_state_dict(load_memory(folder.path / REWARD_MEMORY))
    env = WatchedVectorEnv(
        config.train.num_envs, _env_config(context, reward), runtime.counting, max_calls=config.train.calls
    )
    curve: list[dict[str, float | None]] = []
    goal = min(config.train.steps, config.train.calls or config.train.steps)
    # An agent that does not remember its steps counts from 0 again.
    offset = past.steps if getattr(agent, "num_steps", 0) == 0 else 0
    context.progress.started("train", goal)
    with _one_torch_thread(), contextlib.closing(env), contextlib.closing(_writer(context, past.parts)) as writer:

        def progress(steps: int, metrics: dict[str, float]) -> None:
            env.end_rollout()
            steps += offset
            shown = {name: _finite(value) for name, value in sorted(metrics.items()) if not name.startswith("time/")}
            curve.append({"steps": steps, "calls": past.calls + env.calls, **shown})
            meter = runtime.traffic
            traffic = {} if meter is None else Traffic.total(meter.rows("train")).scalars()
            for name, value in (metrics | traffic).items():
                writer.add_scalar(name, value, steps)
            mean = metrics.get("rollout/ep_rew_mean")
            note = "" if mean is None else f"mean episode reward {mean:.2f}"
            context.progress.advance("train", min(steps - past.steps, goal), note)

        if isinstance(agent, Algorithm):
            try:
                learn_within(agent, env, config.train.steps, config.train.calls, progress)
            except BackendError as error:
                # A learner that meets nothing but failures says so; what it met says why.
                raise (runtime.counting.fatal or error) from error
    whole = [*past.curve, *curve]
    files = _write(context, agent, reward, whole, env, past)
    result = {
        "agent": config.agent.name,
        "steps": whole[-1]["steps"] if whole else 0,
        "calls": past.calls + env.calls,
        "num_envs": config.train.num_envs,
        "final_mean_episode_reward": whole[-1].get("rollout/ep_rew_mean") if whole else None,
        # Who comes first in asynchronous collection depends on time.
        "repeats_to_the_byte": config.agent.kwargs.get("collect") != "async",
        "accounting": past.accounting_with(runtime.accounting("train")),
    }
    return StageOutput(files, {**result, **({"continued": past.parts} if past.parts else {})})


def _agent(context: StageContext) -> Agent:
    """A new agent, or the one that is to learn on."""
    config, runtime, action_set = context.config, context.runtime, context.runtime.action_set
    if context.trained is not None:
        clear(context.folder)
        found = load_agent(
            context.folder.path / AGENT,
            expected_action_set_hash=action_set.hash,
            expected_action_set_names=action_set.names,
        )
        return check_learns_on(config.agent.name, found)
    agent = build_agent(config.agent.name, runtime, config.agent.kwargs, config.run.seed)
    if isinstance(agent, OfflineAlgorithm):
        raise ConfigError(
            f"agent '{config.agent.name}' learns from logs and from nothing else; name the folder of a run that "
            "evolved: `instructgym train --from-ledger DIR`, or train.logs."
        )
    return agent


def _write(
    context: StageContext, agent: Agent, reward: Any, curve: list[Any], env: WatchedVectorEnv, past: Past
) -> tuple[str, ...]:
    """The stage's files, in their place or below `STAGED`; returns their names."""
    config, folder, action_set = context.config, context.folder, context.runtime.action_set
    place = f"{STAGED}/" if past.parts else ""
    target = folder.path / f"{place}{AGENT}"
    shutil.rmtree(target, ignore_errors=True)
    save_agent(agent, target, action_set_hash=action_set.hash, action_set_names=action_set.names)
    save_memory(reward.state_dict(), folder.path / f"{place}{REWARD_MEMORY}")
    folder.write_json(f"{place}{LEARNING_CURVE}", curve)
    if config.train.calls is None:
        return (AGENT, LEARNING_CURVE)
    episodes = [*past.episodes, *([past.calls + calls, total] for calls, total in env.episodes)]
    folder.write_text(f"{place}{EPISODES}", canonical_json(episodes) + "\n")
    return (AGENT, LEARNING_CURVE, EPISODES)


def _env_config(context: StageContext, reward: Any) -> EnvConfig:
    config, runtime = context.config, context.runtime
    return EnvConfig(
        action_set=runtime.action_set,
        **runtime.observation_options(config.agent.name, config.agent.kwargs),
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


def _writer(context: StageContext, parts: int) -> Any:
    """TensorBoard's writer in `metrics/`: what starts over, a run or its last part, must not draw two curves."""
    from torch.utils.tensorboard import SummaryWriter

    path, part = context.folder.path / METRICS, f".part-{parts}" if parts else ""
    if parts:
        for remains in path.glob(f"*{part}"):
            remains.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
    writer = SummaryWriter(str(path), filename_suffix=part)
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
