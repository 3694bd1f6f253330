"""`train --continue`: what is trained in a run's folder learns on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instructgym.agents import load_agent
from instructgym.errors import BudgetExhausted, ConfigError, RunFolderError
from instructgym.train import pipeline
from instructgym.train.pipeline import ALL, run
from instructgym.train.run_folder import RunFolder
from instructgym.train.runtime import Runtime
from instructgym.train.train_instructor import _env_config
from instructgym.train.watched_env import WatchedVectorEnv

from .conftest import small_config
from .test_kill import PROCESSES, paid_calls
from .test_pipeline import Recorder, contents

TRAIN = ("train",)
# A reward with a memory, so that what it remembers has to be carried over too.
MEMORY = "reward.terms={archive_novelty = 1.0}"


def overrides_for(name: str) -> tuple[str, ...]:
    kwargs = {
        "ppo": "{n_steps = 8, batch_size = 16, n_epochs = 2, net_arch = [16]}",
        "sb3:ppo": "{n_steps = 8, batch_size = 16, n_epochs = 1, net_arch = [16]}",
        "sb3:dqn": "{learning_starts = 16, net_arch = [16]}",
        "linucb": "{}",
        "ppo_lagrangian": "{n_steps = 8, batch_size = 16, net_arch = [16], cost = 'calls', cost_limit = 1.0}",
        "trpo": "{n_steps = 8, net_arch = [16]}",
    }
    short = ("env.observation=last_operation",) if name == "linucb" else ()  # its matrices are of that size
    return (f"agent.name={name}", f"agent.kwargs={kwargs[name]}", *short)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def train(config: Any, out: Path, **more: Any) -> Any:
    return run(config, out, stages=TRAIN, **more)


def agent_files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "agent").rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, seeds_file: Path) -> Path:
    """A folder with a trained agent. Not to be changed by tests."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    train(small_config(seeds_file, MEMORY), out)
    return out


@pytest.fixture(scope="module")
def continued(trained: Path, tmp_path_factory: pytest.TempPathFactory, seeds_file: Path) -> Path:
    """The same, continued once."""
    out = tmp_path_factory.mktemp("runs") / "continued"
    shutil.copytree(trained, out)
    train(small_config(seeds_file, MEMORY), out, continue_training=True)
    return out


# What it comes to -----------------------------------------------------------------------------------------------------


def test_steps_calls_and_curves_go_on(trained: Path, continued: Path, seeds_file: Path) -> None:
    first, second = read(trained / "stages/train.json")["result"], read(continued / "stages/train.json")["result"]
    assert (first["steps"], first["calls"]) == (64, 64)
    assert (second["steps"], second["calls"], second["continued"]) == (128, 128, 1)
    assert "continued" not in first
    assert {row["role"]: row["calls"] for row in second["accounting"]} == {"expert": 128}
    curve = read(continued / "stages/learning_curve.json")
    assert [row["steps"] for row in curve] == [32, 64, 96, 128]
    assert [row["calls"] for row in curve] == [32, 64, 96, 128]
    assert curve[:2] == read(trained / "stages/learning_curve.json")
    assert not (continued / "stages/continued").exists()
    log = EventAccumulator(str(continued / "metrics")).Reload()
    assert [event.step for event in log.Scalars("rollout/ep_rew_mean")] == [32, 64, 96, 128]
    assert paid_calls(continued)[1] == 0
    assert {path.stat().st_mode & 0o777 for path in (continued / "agent").rglob("*") if path.is_file()} == {0o600}


def test_the_second_part_draws_other_chains_than_the_first(trained: Path, continued: Path) -> None:
    assert paid_calls(trained)[0] == 64
    assert paid_calls(continued)[0] > 64 + 56  # all but some that two episodes begin with alike


@pytest.mark.parametrize("name", ["ppo", "ppo_lagrangian", "trpo", "linucb", "sb3:ppo", "sb3:dqn"])
def test_it_is_learning_twice_in_python_with_a_saved_agent_in_between(
    name: str, tmp_path: Path, seeds_file: Path
) -> None:
    from instructgym.agents import save_agent
    from instructgym.agents.base import Algorithm
    from instructgym.train.pipeline import seeds_of
    from instructgym.train.policies import build_agent
    from instructgym.train.stage import StageContext
    from instructgym.train.train_instructor import _one_torch_thread

    config = small_config(seeds_file, *overrides_for(name), MEMORY)
    out = tmp_path / "run"
    train(config, out)
    train(config, out, continue_training=True)

    runtime = Runtime(config)
    runtime.connect(tmp_path / "ledger.sqlite")
    action_set = runtime.action_set
    identity = {"action_set_hash": action_set.hash, "action_set_names": action_set.names}
    context = StageContext(config, None, seeds_of(config), runtime, Recorder())  # type: ignore[arg-type]
    memory: Any = None
    try:
        agent = build_agent(name, runtime, config.agent.kwargs, config.run.seed)
        for _ in range(2):
            assert isinstance(agent, Algorithm)
            reward = runtime.reward_for("train")
            if memory is not None:
                reward.load_state_dict(memory)
            env = WatchedVectorEnv(config.train.num_envs, _env_config(context, reward), runtime.counting)
            with _one_torch_thread():
                agent.learn(env, config.train.steps, progress=lambda steps, metrics, env=env: env.end_rollout())  # type: ignore[misc]
            env.close()
            memory = reward.state_dict()
            save_agent(agent, tmp_path / "agent", **identity)  # type: ignore[arg-type]
            agent = load_agent(tmp_path / "agent", expected_action_set_hash=action_set.hash)
    finally:
        runtime.close()
    theirs = load_agent(out / "agent", expected_action_set_hash=action_set.hash)
    assert theirs.num_steps == agent.num_steps == 128  # type: ignore[attr-defined]
    if name.startswith("sb3:"):  # whose zip holds the time
        mine, other = agent.model.policy.state_dict(), theirs.model.policy.state_dict()  # type: ignore[attr-defined]
        assert all(bool((mine[key] == other[key]).all()) for key in mine)
    else:
        for file in ("agent.json", "weights.safetensors"):
            assert (tmp_path / "agent" / file).read_bytes() == (out / "agent" / file).read_bytes()


def test_what_was_made_with_the_agent_is_made_again(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", small_config(seeds_file)
    shutil.copytree(finished_run, out)
    train(config, out, continue_training=True)
    summary = read(out / "summary.json")
    assert summary["train"]["steps"] == 128
    assert not {"evaluation", "evolve", "respond", "filter", "export"} & set(summary)
    with pytest.raises(RunFolderError, match="stage 'respond' needs stage 'evolve', which is not finished"):
        run(config, out, stages=["respond"])
    result = run(config, out)
    assert [(report.stage, report.skipped) for report in result.stages] == [(stage, stage == "train") for stage in ALL]
    for stage in ("evaluate", "evolve"):
        assert read(out / f"stages/{stage}.json")["key"] != read(finished_run / f"stages/{stage}.json")["key"]


def test_stages_that_do_not_read_the_agent_stay(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, "evolve.policy=random")
    run(config, tmp_path / "run", stages=["train", "evolve"])
    train(config, tmp_path / "run", continue_training=True)
    assert [report.skipped for report in run(config, tmp_path / "run", stages=["evolve"]).stages] == [True]


def test_with_a_bound_on_calls_each_part_has_it(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, "train.calls=40", "train.steps=400", "env.with_stop=true")
    out = tmp_path / "run"
    train(config, out)
    calls = [read(out / "stages/train.json")["result"]["calls"]]
    episodes = read(out / "stages/episodes.json")
    for _ in range(2):
        train(config, out, continue_training=True)
        calls.append(read(out / "stages/train.json")["result"]["calls"])
    assert calls[0] <= 40
    assert all(30 < later - earlier <= 40 for earlier, later in itertools.pairwise(calls))
    longer = read(out / "stages/episodes.json")
    assert longer[: len(episodes)] == episodes
    assert [row[0] for row in longer] == sorted(row[0] for row in longer)
    assert read(out / "stages/train.json")["result"]["continued"] == 2


def test_calls_that_are_too_few_for_one_population_leave_no_agent(seeds_file: Path, tmp_path: Path) -> None:
    ars = ("agent.name=sb3:ars", "agent.kwargs={n_delta = 4}")  # 8 candidates x 4 envs x 2 steps
    with pytest.raises(ConfigError, match=r"^agent 'sb3:ars' takes more than train\.calls = 60 steps at a time"):
        train(small_config(seeds_file, *ars, "train.calls=60"), tmp_path / "few")
    assert not (tmp_path / "few/agent").exists()
    train(small_config(seeds_file, *ars, "train.calls=70"), tmp_path / "run")
    assert read(tmp_path / "run/stages/train.json")["result"]["steps"] == 64


def test_an_agent_of_ones_own_that_does_not_count_its_steps_goes_on_counting(seeds_file: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
import numpy as np
from instructgym.agents import Algorithm, Decision

class Own(Algorithm):
    name = "own"
    def __init__(self):
        self.learned = 0
    def act(self, obs, *, action_mask, rng, state=None, deterministic=False):
        return Decision(action_mask.argmax(axis=1))
    def learn(self, vector_env, total_steps, *, progress=None):
        vector_env.reset(seed=self.learned)
        for step in range(0, total_steps, vector_env.num_envs):
            vector_env.step(np.zeros(vector_env.num_envs, np.int64))
        self.learned += 1
        progress(total_steps, {"learned": float(self.learned)})
        return []
    def state_dict(self):
        return {"learned": self.learned}
    def load_state_dict(self, state):
        self.learned = state["learned"]

class Forgetful(Own):
    state_dict, load_state_dict = Algorithm.state_dict, Algorithm.load_state_dict
"""
    )
    config = small_config(seeds_file, f"agent.name={tmp_path / 'own.py'}:Own", "agent.kwargs={}")
    train(config, tmp_path / "run")
    train(config, tmp_path / "run", continue_training=True)
    curve = read(tmp_path / "run/stages/learning_curve.json")
    assert [(row["steps"], row["learned"]) for row in curve] == [(64, 1.0), (128, 2.0)]

    config = small_config(seeds_file, f"agent.name={tmp_path / 'own.py'}:Forgetful", "agent.kwargs={}")
    train(config, tmp_path / "forgetful")
    before = agent_files(tmp_path / "forgetful")
    with pytest.raises(ConfigError) as caught:
        train(config, tmp_path / "forgetful", continue_training=True)
    assert str(caught.value) == (
        f"agent '{tmp_path / 'own.py'}:Forgetful' (Forgetful) does not keep what it learned; expected the methods "
        "state_dict() and load_state_dict(state), or save_files(folder) and load_files(folder). Without them training "
        "can only start anew, in another folder."
    )
    assert agent_files(tmp_path / "forgetful") == before
    assert [report.skipped for report in train(config, tmp_path / "forgetful").stages] == [True]


def test_what_sb3_and_a_users_callback_log_is_in_the_metrics(seeds_file: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
from stable_baselines3.common.callbacks import BaseCallback

class Counts(BaseCallback):
    def _on_step(self):
        self.logger.record("mine/steps", self.num_timesteps)
        return True
"""
    )
    callbacks = f'agent.kwargs.callbacks=["{tmp_path / "own.py"}:Counts"]'
    config = small_config(seeds_file, *overrides_for("sb3:ppo"), callbacks)
    train(config, tmp_path / "run")
    train(config, tmp_path / "run", continue_training=True)
    log = EventAccumulator(str(tmp_path / "run/metrics")).Reload()
    wanted = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/approx_kl", "train/explained_variance"}
    assert wanted | {"train/learning_rate", "train/loss", "mine/steps"} <= set(log.Tags()["scalars"])
    assert [event.value for event in log.Scalars("mine/steps")] == [32, 64, 64, 96, 128, 128]
    assert [event.step for event in log.Scalars("mine/steps")] == [32, 64, 64, 96, 128, 128]


# What is refused ------------------------------------------------------------------------------------------------------


def refused(error: type[Exception], config: Any, out: Path, **more: Any) -> str:
    with pytest.raises(error) as caught:
        run(config, out, continue_training=True, **{"stages": TRAIN, **more})
    return str(caught.value)


def test_where_nothing_is_trained_nothing_is_continued(seeds_file: Path, tmp_path: Path, trained: Path) -> None:
    config = small_config(seeds_file, MEMORY)
    assert refused(RunFolderError, config, tmp_path / "run") == (
        f"'{tmp_path / 'run'}' holds no trained agent to continue. Train one there first: the same command without "
        "--continue."
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(BudgetExhausted):
        train(small_config(seeds_file, "budget.max_calls=10"), tmp_path / "half")
    unfinished = (
        f"training in '{tmp_path / 'half'}' has not come to its end, or its files were changed since. Run the same "
        "command without --continue first."
    )
    assert refused(RunFolderError, small_config(seeds_file), tmp_path / "half") == unfinished
    shutil.copytree(trained, tmp_path / "spoilt")
    (tmp_path / "spoilt/agent/agent.json").unlink()
    assert "its files were changed since" in refused(RunFolderError, config, tmp_path / "spoilt")
    assert refused(ConfigError, config, trained, stages=["evolve"]) == (
        "only training can be continued; the stages are evolve. Add 'train'."
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("agent.name=linucb", "agent.name"),
        ("agent.kwargs.learning_rate=0.1", "agent.kwargs.learning_rate"),
        ("env.action_set=core", "env.action_set"),
        ("train.steps=640", "train.steps"),
    ],
)
def test_another_agent_or_another_task_is_another_run(
    override: str, key: str, seeds_file: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = agent_files(out)
    message = refused(RunFolderError, small_config(seeds_file, MEMORY, override), out)
    assert message.startswith(f"'{out}' holds another run: its ")
    assert key in message
    assert message.endswith("(stage 'train' has begun there). Choose another folder, or give the same config.")
    assert agent_files(out) == before


def test_agents_that_do_not_learn_from_an_env_are_refused(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, "agent.name=random", "agent.kwargs={}")
    train(config, tmp_path / "random")
    assert refused(ConfigError, config, tmp_path / "random") == (
        "agent 'random' does not learn; there is nothing to continue."
    )
    logs = small_config(seeds_file, "agent.name=fitted_q", "agent.kwargs={}", 'train.logs=["somewhere"]')
    assert refused(ConfigError, logs, tmp_path / "logs") == (
        "agent 'fitted_q' learned from logs (train.logs), all of them at once; there is nothing to continue. Train it "
        "on more logs, in another folder."
    )


# What stops it --------------------------------------------------------------------------------------------------------


def test_what_was_there_stays_until_the_continuation_is_whole(
    trained: Path, continued: Path, seeds_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    for calls in (20, 50):
        with pytest.raises(BudgetExhausted):
            train(small_config(seeds_file, MEMORY, f"budget.max_calls={64 + calls}"), out, continue_training=True)
        assert contents(out) == contents(trained)
        assert [report.skipped for report in train(small_config(seeds_file, MEMORY), out).stages] == [True]
    train(small_config(seeds_file, MEMORY), out, continue_training=True)
    assert contents(out) == contents(continued)
    assert paid_calls(out) == paid_calls(continued)
    log = EventAccumulator(str(out / "metrics")).Reload()
    assert [event.step for event in log.Scalars("rollout/ep_rew_mean")] == [32, 64, 96, 128]


class Deadly(Recorder):
    """Kills its process as soon as so many steps are reported."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def advance(self, stage: str, done: int, note: str = "") -> None:
        if done >= self.steps:
            os.kill(os.getpid(), signal.SIGKILL)


def continue_and_die(overrides: tuple[str, ...], seeds: Path, out: Path, moment: str) -> None:
    """What the killed process runs."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    progress = Deadly(32) if moment == "learning" else None
    if moment == "while it is put in place":
        RunFolder.take_back = die  # type: ignore[method-assign]
    elif moment == "before the summary":
        pipeline._conclude = die  # type: ignore[assignment]
    run(small_config(seeds, *overrides), out, stages=TRAIN, continue_training=True, progress=progress)


def test_killed_at_any_moment_it_pays_nothing_twice_and_ends_with_the_same_bytes(
    finished_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    config = small_config(seeds_file)
    whole = tmp_path / "whole"
    shutil.copytree(finished_run, whole)
    train(config, whole, continue_training=True)
    for number, moment in enumerate(
        (
            "learning",
            "while it is put in place",
            "before the summary",
        )
    ):
        out = tmp_path / str(number)
        shutil.copytree(finished_run, out)
        process = PROCESSES.Process(target=continue_and_die, args=((), seeds_file, out, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        train(config, out, continue_training=True)
        assert contents(out) == contents(whole), moment
        assert read(out / "stages/train.json") == read(whole / "stages/train.json"), moment
        assert paid_calls(out) == paid_calls(whole), moment
        assert not (out / "stages/continued").exists()
