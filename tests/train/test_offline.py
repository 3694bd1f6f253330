"""Chains of finished runs as logs: rebuilt states, agents trained on them, policies judged by them."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructgym.agents import RandomAgent, load_agent
from instructgym.errors import ActionSetError, ConfigError, InstructGymError, RunFolderError
from instructgym.train.chains import ChainJob, run_chains, step_row
from instructgym.train.logged_chains import episodes_of_rows, logged_episodes
from instructgym.train.offline import logs_digest, off_policy_table, run_train_from_logs, train_from_logs
from instructgym.train.pipeline import run, seeds_of
from instructgym.train.progress import Silent
from instructgym.train.run_folder import RunFolder
from instructgym.train.runtime import Runtime
from instructgym.train.stage import StageContext

from .conftest import small_config

FITTED_Q = ('agent.name="fitted_q"', "agent.kwargs={}", 'evolve.policy="random"', "evolve.chains_per_seed=6")


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory, seeds_file: Path) -> Path:
    """Six uniform random chains a seed. Not to be changed by tests."""
    out = tmp_path_factory.mktemp("logs") / "random"
    run(small_config(seeds_file, 'evolve.policy="random"', "evolve.chains_per_seed=6"), out, stages=("evolve",))
    return out


def lineage(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "lineage.jsonl").read_text("utf-8").splitlines()]


def changed(folder: Path, to: Path, rows: list[dict[str, Any]]) -> Path:
    """A copy of a run's folder with another lineage."""
    to.mkdir()
    shutil.copy(folder / "run.json", to / "run.json")
    (to / "lineage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return to


class Watching(RandomAgent):
    """Uniform choices, and what was seen at each of them."""

    observes = True

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def act(self, obs: Any, **options: Any) -> Any:
        self.seen.append(obs)
        return super().act(obs, **options)


@pytest.mark.parametrize("mode", ["flat", "dict", "tokens", "last_operation"])
def test_rebuilt_observations_masks_and_rewards_are_those_of_the_run(mode: str, seeds_file: Path) -> None:
    config = small_config(seeds_file, f'env.observation="{mode}"', "env.with_stop=true", "env.horizon=4")
    runtime = Runtime(config)
    runtime.connect(None)
    agent = Watching()
    seeds = seeds_of(config).all
    try:
        jobs = [ChainJob(chain, seeds[chain % len(seeds)], chain, agent) for chain in range(12)]
        dynamics = runtime.dynamics("evolve", runtime.reward_for("evolve"))
        chains = runtime.call(
            lambda: run_chains(jobs, dynamics=dynamics, observer=runtime.observer, run_seed=0, width=1)
        )
        rows = json.loads(json.dumps([step_row(chain.job, step) for chain in chains for step in chain.steps]))
        logs = asyncio.run(episodes_of_rows(rows, action_set=runtime.action_set, observer=runtime.observer, horizon=4))
    finally:
        runtime.close()
    steps = [step for chain in chains for step in chain.steps]
    assert {step.transition.elimination is None for step in steps} == {True, False}
    assert any(len(chain.steps) < 4 for chain in chains)  # `stop` was chosen
    assert len(logs) == len(agent.seen) == len(steps)
    for number, seen in enumerate(agent.seen):
        assert same_row(logs.obs, number, seen)
    follows = np.flatnonzero(~logs.terminated)
    for number in follows.tolist():
        assert same_row(logs.next_obs, number, agent.seen[number + 1])
    assert logs.rewards.tolist() == [step.reward for step in steps]
    assert logs.terminated.tolist() == [index == len(c.steps) - 1 for c in chains for index in range(len(c.steps))]
    assert logs.log_probs == pytest.approx(-math.log(len(runtime.action_set)), abs=1e-6)
    assert logs.masks.all()


def same_row(columns: Any, number: int, seen: Any) -> bool:
    if isinstance(columns, dict):
        return all(np.array_equal(columns[name][number], seen[name][0]) for name in columns)
    return np.array_equal(columns[number], seen[0])


def test_the_lineage_says_how_likely_each_choice_was(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    drawn = lineage(finished_run)
    assert all(-10 < row["log_prob"] < 0 for row in drawn)
    fixed = tmp_path / "fixed"
    run(small_config(seeds_file, 'evolve.policy="fixed:deepen"'), fixed, stages=("evolve",))
    assert {row["log_prob"] for row in lineage(fixed)} == {None}
    config = small_config(seeds_file, f'evolve.policy="{finished_run / "agent"}"', "evolve.deterministic=true")
    run(config, tmp_path / "mode", stages=("evolve",))
    assert {row["log_prob"] for row in lineage(tmp_path / "mode")} == {None}


def test_a_lineage_without_probabilities_is_known_if_it_was_uniform(random_run: Path, tmp_path: Path) -> None:
    rows = lineage(random_run)
    for row in rows:
        row.pop("log_prob")
    runtime = Runtime(seeds_config(random_run))
    logs = logged_episodes([changed(random_run, tmp_path / "uniform", rows)], runtime)
    assert logs.log_probs == pytest.approx(-math.log(6))
    other = changed(random_run, tmp_path / "other", rows)
    card = json.loads((other / "run.json").read_text("utf-8"))
    card["identity"]["evolve.policy"] = "trained"
    (other / "run.json").write_text(json.dumps(card), encoding="utf-8")
    assert not logged_episodes([other], runtime).knows_behaviour


def seeds_config(folder: Path, *overrides: str) -> Any:
    from instructgym.train.config_text import load_config

    return load_config(folder / "config.toml", overrides)


def test_a_failed_step_is_left_out_and_its_chain_is_not_complete(random_run: Path, tmp_path: Path) -> None:
    rows = lineage(random_run)
    second = next(index for index, row in enumerate(rows) if row["step"] == 1)
    rows[second] |= {"failure": "CallTimeout: no answer", "reward": None, "child": None, "accepted": False}
    runtime = Runtime(seeds_config(random_run))
    logs = logged_episodes([changed(random_run, tmp_path / "failed", rows)], runtime)
    whole = logged_episodes([random_run], runtime)
    assert (len(logs), len(whole)) == (len(rows) - 1, len(rows))
    assert not logs.terminated[second - 1]
    assert np.array_equal(logs.next_obs[second - 1], whole.next_obs[second - 1])
    assert logs.complete().num_episodes == whole.num_episodes - 1 == whole.complete().num_episodes - 1


def test_training_on_logs_saves_an_agent_as_training_does_and_asks_nobody(
    random_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    config = small_config(seeds_file, *FITTED_Q)
    first = train_from_logs(config, random_run, tmp_path / "first")
    second = train_from_logs(config, [random_run], tmp_path / "second")
    assert [file.name for file in sorted(tmp_path.rglob("*")) if file.is_file()] == [
        "agent.json",
        "weights.safetensors",
    ] * 2
    for name in ("agent.json", "weights.safetensors"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    runtime = Runtime(config)
    load_agent(first.folder, expected_action_set_hash=runtime.action_set.hash)
    held_out = seeds_of(config).held_out
    assert len(held_out) == 2
    assert first.episodes == 6 * (8 - 2)  # chains of held-out seeds are left out
    assert logged_episodes([random_run], runtime, seeds=held_out).num_episodes == 12
    assert set(logs_digest(random_run)) == {"0/run.json", "0/lineage.jsonl"}


def test_several_logs_are_learned_from_together(random_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, 'agent.name="behaviour_cloning"', "agent.kwargs={epochs = 2}")
    twice = train_from_logs(config, [random_run, random_run], tmp_path / "twice")
    assert twice.metrics["train/transitions"] == 2 * 6 * 6 * 2
    assert twice.episodes == 2 * 6 * 6


def context_of(config: Any, folder: RunFolder, runtime: Runtime) -> StageContext:
    return StageContext(config, folder, seeds_of(config), runtime, Silent())


def test_a_stage_trains_on_logs_and_policies_are_judged_by_them(
    random_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    config = small_config(seeds_file, *FITTED_Q, "agent.kwargs={temperature = 0.5}")
    runtime = Runtime(config)
    with RunFolder.hold(tmp_path / "out") as folder:
        context = context_of(config, folder, runtime)
        output = run_train_from_logs(context, random_run)
        assert output.files == ("agent",)
        assert (output.result["logged_chains"], output.result["logged_steps"]) == (36, 72)
        table = off_policy_table(("trained", "random"), context, random_run)
    random = table["random"]
    rows = lineage(random_run)
    held_out = {seed.instruction.text for seed in seeds_of(config).held_out}
    starts = {row["chain"]: row["parent"]["instruction"] for row in rows if row["step"] == 0}
    rewards = [row["reward"] for row in rows if starts[row["chain"]] in held_out]
    low, high = random["interval_95"]
    assert low <= sum(rewards) / 12 <= high
    assert (random["chains"], random["seeds"], random["effective_sample_size"]) == (12, 2, 12.0)
    assert table["trained"]["effective_sample_size"] < 12
    assert not runtime.connected


def fault(kind: type[InstructGymError], config: Any, folders: Any, out: Path) -> str:
    with pytest.raises(kind) as error:
        train_from_logs(config, folders, out)
    assert not (out / "agent").exists()
    return str(error.value)


def test_what_is_no_log_is_said(random_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    config, out = small_config(seeds_file, *FITTED_Q), tmp_path / "out"
    assert fault(RunFolderError, config, tmp_path, out) == (
        f"'{tmp_path}' is no run's folder: there is no run.json in it. Give the folder of a run."
    )
    bare = changed(random_run, tmp_path / "bare", [])
    (bare / "lineage.jsonl").unlink()
    assert fault(RunFolderError, config, bare, out) == (
        f"'{bare}' has no lineage.jsonl, which says what was chosen and what it earned; a ledger alone does not. "
        f"Finish its stage 'evolve' first: instructgym evolve {bare}."
    )
    empty = changed(random_run, tmp_path / "empty", [])
    assert fault(ConfigError, config, empty, out) == (
        f"the lineage of '{empty}' holds no valid step of a chain that starts at one of the 6 seed instructions asked "
        "for; expected at least one."
    )
    rows = lineage(random_run)
    rows[1]["parent"]["instruction"] += " And more."
    torn = changed(random_run, tmp_path / "torn", rows)
    everything = small_config(seeds_file, *FITTED_Q, "seeds.holdout=0")
    assert fault(RunFolderError, everything, torn, out) == (
        f"{torn}: step 1 of chain 0 does not follow from the steps before it. The file was changed, or is of another "
        "version; evolve again."
    )


def test_logs_of_another_task_are_refused(random_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    core = small_config(seeds_file, *FITTED_Q, 'env.action_set="core"')
    there, here = (Runtime(config).action_set for config in (seeds_config(random_run), core))
    assert fault(ActionSetError, core, random_run, out) == (
        f"the chains in '{random_run}' were made with action set {there.hash} ('evol_instruct'), this run has "
        f"{here.hash} ({', '.join(here.names)}). Learn with the set that they were made with."
    )
    dearer = small_config(seeds_file, *FITTED_Q, "env.penalty=0.5")
    assert fault(ConfigError, dearer, random_run, out) == (
        f"the chains in '{random_run}' were made with env.penalty = 0.1, this run has 0.5. What they earned is logged "
        "and not asked again: give the same value."
    )
    other = small_config(seeds_file, *FITTED_Q, "reward.terms.novelty=1.0")
    assert fault(ConfigError, other, random_run, out).startswith(
        f"the chains in '{random_run}' were made with reward.terms.novelty = 0.15, this run has 1.0."
    )


def test_an_agent_that_needs_an_env_is_refused(random_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, 'agent.name="random"', "agent.kwargs={}")
    assert fault(ConfigError, config, random_run, tmp_path / "out") == (
        "agent 'random' does not learn from logs; expected one with a method learn_from(batch), such as "
        "behaviour_cloning or fitted_q."
    )


def test_the_stage_train_learns_from_logs_that_the_config_names(
    random_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    shutil.copytree(random_run, logs)
    config = small_config(seeds_file, *FITTED_Q, f"train.logs={json.dumps([str(logs)])}")
    for _ in range(2):
        result = run(config, tmp_path / "out", stages=("train",))
    assert result.stages[-1].skipped
    assert [row.calls for row in result.traffic] == []
    assert load_agent(tmp_path / "out" / "agent", expected_action_set_hash=None).name == "fitted_q"
    rows = lineage(logs)
    (logs / "lineage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2:]), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"train\.logs \(content\)"):
        run(config, tmp_path / "out", stages=("train",))


def test_an_agent_that_needs_logs_is_refused_without_them(seeds_file: Path, tmp_path: Path) -> None:
    message = (
        "agent 'fitted_q' learns from logs and from nothing else; name the folder of a run that evolved: "
        "`instructgym train --from-ledger DIR`, or train.logs."
    )
    with pytest.raises(ConfigError) as error:
        run(small_config(seeds_file, *FITTED_Q), tmp_path / "out", stages=("train",))
    assert str(error.value) == message
