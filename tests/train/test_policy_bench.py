"""The benchmark of policies: what it plans, that it is fair, that it goes on, and what it says."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructgym.agents.base import Algorithm
from instructgym.errors import ActionSetError, ConfigError, RunFolderError
from instructgym.rewards.encoders.hashing import HashingEncoder
from instructgym.train.call_budget import steps_within
from instructgym.train.config import Config
from instructgym.train.config_text import load_config
from instructgym.train.policies import build_agent
from instructgym.train.policy_bench import PolicyBench, bench_policies, make_plan
from instructgym.train.policy_bench.cell import job_of, learning_curve, read_cell, run_cell
from instructgym.train.policy_bench.diversity import calls_to_overtake, calls_to_reach, set_by_calls
from instructgym.train.policy_bench.estimate import estimate_policies
from instructgym.train.policy_bench.plan import Plan, Policy, Task
from instructgym.train.policy_bench.standings import Result, leaderboard, scales, with_best_fixed
from instructgym.train.policy_bench.workers import Job, run_jobs
from instructgym.train.runtime import Runtime

from .conftest import write_seeds

SMALL = (
    "env.action_set=core",
    "env.horizon=2",
    "train.num_envs=4",
    "agent.kwargs={n_steps = 8, batch_size = 16, n_epochs = 2, net_arch = [16]}",
    "evaluate.draws=1",
    "evaluate.bootstrap=100",
)
TASK = Task("config", "core", "reviewer_equality+novelty")


def config_for(seeds: Path, *overrides: str) -> Config:
    return load_config("quickstart", [*SMALL, f"seeds.path={json.dumps(str(seeds))}", *overrides])


def bench(config: Config, out: Path, policies: Sequence[str] = ("random", "greedy", "ppo"), **more: Any) -> PolicyBench:
    options: dict[str, Any] = {"budget_calls": 64, "runs": 2, "jobs": 1, "optimum_seeds": 1, **more}
    return bench_policies(config, out, policies=policies, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, PolicyBench]:
    """A small benchmark. Not to be changed by tests."""
    folder = tmp_path_factory.mktemp("bench")
    config = config_for(write_seeds(folder / "seeds.jsonl"))
    return config, folder / "out", bench(config, folder / "out")


# What it leaves ------------------------------------------------------------------------------------------------------


def test_every_cell_is_trained_with_the_same_calls_and_planners_pay_for_what_they_try(
    finished: tuple[Config, Path, PolicyBench],
) -> None:
    _, out, found = finished
    assert found.exit_code == 0
    rows = {row["policy"]: row for row in found.document["leaderboard"]}
    assert set(rows) == {"random", "greedy", "ppo"}
    assert rows["ppo"]["train_calls"] == 64
    assert rows["greedy"]["calls_a_chain"] == 8.0  # 2 steps of 4 operations
    assert rows["random"]["calls_a_chain"] == 2.0
    assert rows["greedy"]["iqm"] > rows["random"]["iqm"]
    assert rows["random"]["mean"] == pytest.approx(0.0, abs=1e-6)
    scale = found.document["scale"][TASK.name]
    assert scale["one"] == "the exhaustive optimum"
    assert scale["optimum"]["trees"] == 2
    assert scale["optimum"]["uniform"] < scale["optimum"]["best_sequence"] <= scale["optimum"]["optimum"]
    for name in (
        "config.toml",
        "cells/config--core/ppo/seed-1/ledger.sqlite",
        "leaderboard.png",
        "profiles.svg",
        "sets.svg",
    ):
        assert (out / name).is_file(), name


def test_the_same_seed_instructions_and_draws_give_every_policy_the_same_replies(
    finished: tuple[Config, Path, PolicyBench],
) -> None:
    _, out, _ = finished
    replies: dict[tuple[Any, ...], Any] = {}
    shared = 0
    for policy in ("random", "greedy", "ppo"):
        path = out / f"cells/config--core/{policy}/seed-0/stages/evaluation_lineage.jsonl"
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            at = (row["seed_id"], row["chain"], row["step"], json.dumps(row["parent"]), row["operation"])
            outcome = (json.dumps(row["child"]), row["eliminated"], row["reward"])
            shared += at in replies
            assert replies.setdefault(at, outcome) == outcome
    assert shared > 0


def test_the_report_says_simulated_and_how_to_repeat_a_row(finished: tuple[Config, Path, PolicyBench]) -> None:
    _, out, found = finished
    text = (out / "leaderboard.md").read_text("utf-8")
    assert "SIMULATED: expert, reviewer; nothing here is said of a language model." in text
    command = (
        f"instructgym bench policies {out / 'config.toml'} --policies ppo --rewards config --action-sets core "
        "--budget-calls 64 --seeds 2 --optimum 1 --out NEW_FOLDER"
    )
    assert command in text
    with (out / "leaderboard.csv").open(encoding="utf-8") as stream:
        rows = {row["policy"]: row for row in csv.DictReader(stream)}
    assert rows["ppo"]["command"] == command
    assert rows["ppo"]["simulated"] == "expert reviewer"
    assert "SIMULATED" in (out / "leaderboard.svg").read_text("utf-8")
    assert json.loads((out / "results.json").read_text("utf-8")) == json.loads(json.dumps(found.document))


def test_the_set_is_compared_at_equal_calls(finished: tuple[Config, Path, PolicyBench]) -> None:
    rows = {row["policy"]: row for row in finished[2].document["diversity"]}
    assert {row["calls"] for row in rows.values()} == {4.0}  # 2 held-out seeds, 1 draw, 2 steps
    assert rows["greedy"]["accepted"] < rows["random"]["accepted"]  # a quarter of the steps
    assert rows["random"]["matched_vendi"] == "2 of 2"
    assert (rows["random"]["overtook_vendi"], rows["ppo"]["overtook_vendi"]) == ("0 of 0", "0 of 2")  # 64 calls before
    low, high = rows["random"]["vendi_interval_95"]
    assert low <= rows["random"]["vendi"] <= high
    assert rows["ppo"]["train_calls"] == 64


# Going on ------------------------------------------------------------------------------------------------------------


def test_the_same_command_repeats_nothing_and_writes_the_same_bytes(
    finished: tuple[Config, Path, PolicyBench],
) -> None:
    config, out, _ = finished
    before = (out / "results.json").read_bytes()
    said: list[str] = []
    again = bench(config, out, progress=said.append)
    assert again.ran == 0
    assert said == ["all 6 cells are finished"]
    assert (out / "results.json").read_bytes() == before


@pytest.mark.slow
def test_killed_in_the_middle_and_repeated_gives_the_same_bytes(
    tmp_path: Path, finished: tuple[Config, Path, PolicyBench]
) -> None:
    config, whole, _ = finished
    program = (
        "import sys; from pathlib import Path\n"
        "from instructgym.train.config_text import load_config\n"
        "from instructgym.train.policy_bench import bench_policies\n"
        "if __name__ == '__main__':\n"
        "    bench_policies(load_config(sys.argv[1]), Path(sys.argv[2]), policies=('random', 'greedy', 'ppo'),\n"
        "        budget_calls=64, runs=2, jobs=1, optimum_seeds=1, progress=lambda note: print(note, flush=True))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, str(script), str(whole / "config.toml"), str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/"):
                break
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.6)  # its workers look for their parent every 0.2 s
    found = bench(config, out)
    assert 0 < found.ran < 8
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_another_budget_in_the_same_folder_is_refused(finished: tuple[Config, Path, PolicyBench]) -> None:
    config, out, _ = finished
    with pytest.raises(RunFolderError) as caught:
        bench(config, out, budget_calls=65)
    assert str(caught.value) == (
        f"'{out}' holds another run: its bench.budget_calls is 64, here it is 65 (stage 'bench' has begun there). "
        "Choose another folder, or give the same config."
    )


def test_a_failed_cell_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from instructgym.agents import Agent\n"
        "class Broken(Agent):\n"
        "    '''Breaks.'''\n"
        "    observes = False\n"
        "    def act(self, obs, **more):\n"
        "        raise ValueError('no idea')\n"
    )
    config = config_for(write_seeds(tmp_path / "seeds.jsonl"))
    found = bench(config, tmp_path / "out", ["random", f"{own}:Broken"], runs=1, optimum_seeds=0)
    assert found.exit_code == 4
    assert found.failed == {
        "Broken, reviewer_equality+novelty on core, seed 0": "ValueError: no idea (mine.py, line 6)"
    }
    cells = {cell["policy"]: cell for cell in found.document["cells"]}
    assert (cells["random"]["state"], cells["Broken"]["state"]) == ("finished", "failed")
    assert cells["Broken"]["reason"] == "ValueError: no idea (mine.py, line 6)"
    assert found.document["scale"][TASK.name]["one"] == "the best policy here"
    assert "ValueError: no idea" in (tmp_path / "out/leaderboard.md").read_text("utf-8")


def test_figures_are_drawn_without_a_word_where_every_cell_of_the_leaderboard_failed(tmp_path: Path) -> None:
    config = config_for(write_seeds(tmp_path / "seeds.jsonl"))
    found = bench(config, tmp_path / "out", ["ppo"], budget_calls=1, runs=1, optimum_seeds=0)
    assert list(found.failed.values()) == [
        "ConfigError: agent 'ppo' takes more than train.calls = 1 steps at a time; expected at least one rollout of 4 "
        "envs. Raise the calls, or lower its n_steps or train.num_envs."
    ]
    assert (tmp_path / "out/profiles.png").is_file()


# Plans ---------------------------------------------------------------------------------------------------------------


def plan_for(tmp_path: Path, *overrides: str, policies: Sequence[str] = ("ppo",), **more: Any) -> Plan:
    config = config_for(write_seeds(tmp_path / "seeds.jsonl"), *overrides)
    options: dict[str, Any] = {"rewards": ["config"], "action_sets": ["config"], "budget_calls": 100, "runs": 1, **more}
    return make_plan(config, policies, **options)


def test_arguments_go_to_the_policy_that_they_are_given_to(tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path,
        "agents.slow.agent=ppo",
        "agents.slow.learning_rate=1e-5",
        "agents.sb3:a2c.n_steps=3",
        policies=("ppo", "slow", "sb3:a2c", "sb3:ppo"),
    )
    kwargs = {policy.name: dict(policy.kwargs) for policy in plan.policies}
    own = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "net_arch": [16]}
    assert kwargs == {"ppo": own, "slow": {**own, "learning_rate": 1e-5}, "sb3:a2c": {"n_steps": 3}, "sb3:ppo": {}}
    cell = next(cell for cell in plan.cells if cell.policy.name == "slow")
    assert (cell.config.agent.name, cell.config.agents) == ("ppo", None)
    assert (cell.config.train.calls, cell.config.train.steps) == (100, 400)
    assert cell.config.evaluate.policies == ("trained",)


def test_random_is_measured_whether_it_is_named_or_not(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, policies=["best_fixed"], runs=2, rewards=["config", "novelty"])
    assert plan.policies == ()
    assert {cell.policy.name for cell in plan.cells} == {
        "random",
        "fixed:add_constraints",
        "fixed:deepen",
        "fixed:concretize",
        "fixed:breadth",
    }
    assert len(plan.cells) == 5 * 2 * 2
    assert {cell.config.reward.terms["novelty"] for cell in plan.cells} == {0.15, 1.0}
    assert {cell.stages for cell in plan.cells} == {("evaluate",)}


def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    def said(error: type[Exception], *overrides: str, **more: Any) -> str:
        with pytest.raises(error) as caught:
            plan_for(tmp_path, *overrides, **more)
        return str(caught.value)

    assert said(ConfigError, policies=["ppoo"]).startswith("policy 'ppoo': unknown policy 'ppoo'; expected trained,")
    assert said(ConfigError, policies=["trained"]) == (
        "policy 'trained' is a run's own; name the agent to be trained, or the folder of a saved one."
    )
    assert "did you mean 'learning_rate'?" in said(ConfigError, "agents.ppo.learning_rat=1.0")
    assert said(ConfigError, policies=["greedy"], rewards=["noveltty"]).startswith("unknown reward 'noveltty'")
    assert said(ConfigError, "agents.greedy.width=1", policies=["greedy"]) == (
        "policy 'greedy' takes no arguments, but got ['width']."
    )
    assert "nope" in said(ActionSetError, policies=["fixed:nope"])


def test_arguments_that_nobody_takes_this_time_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan_for(tmp_path, "agents.pp.gamma=1.0")
    assert "agents.pp gives arguments to no policy of this comparison; did you mean 'ppo'? Known: ppo." in caplog.text


def test_the_dry_run_counts_what_is_not_finished(tmp_path: Path, finished: tuple[Config, Path, PolicyBench]) -> None:
    config, out, _ = finished
    names = ("random", "greedy", "ppo", "round_robin", "search:2")
    found = estimate_policies(config, out, policies=names, budget_calls=64, runs=3, optimum_seeds=1)
    rows = {row.policy.name: row for row in found.rows}
    assert {name: (row.cells, row.finished, row.to_run) for name, row in rows.items()} == {
        "random": (3, 2, 1),
        "greedy": (3, 2, 1),
        "ppo": (3, 2, 1),
        "round_robin": (3, 0, 3),
        "search:2": (3, 0, 3),
    }
    asked = {name: (row.calls("expert", "train"), row.calls("expert", "evaluate")) for name, row in rows.items()}
    each = 4  # 2 held-out seeds, 2 steps
    assert asked["random"] == (0, each)
    assert asked["greedy"] == (0, each * 4)
    assert asked["ppo"] == (64, each)
    assert asked["round_robin"] == (0, 3 * each)
    assert asked["search:2"] == (0, 3 * 2 * (2 + 2 * (20 + 4)))  # by seed: two steps, and two trees of 20 and of 4
    assert 0 < rows["ppo"].calls("reviewer") <= 2 * (64 + each)  # in both orders, unless the rewrite was eliminated
    assert (found.optima, found.cost_usd) == (1, 0.0)
    done = estimate_policies(config, out, policies=("random", "ppo"), budget_calls=64, runs=2, optimum_seeds=1)
    assert sum(row.calls("expert") for row in done.rows) == done.optima == 0
    fresh = estimate_policies(config, tmp_path / "new", policies=("ppo",), budget_calls=64, runs=2)
    assert (sum(row.to_run for row in fresh.rows), fresh.optima) == (4, 2)  # random is measured too
    assert not (tmp_path / "new").exists()


# Equal calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "sb3:ppo", "sb3:a2c", "sb3:dqn", "sb3:trpo", "sb3:maskable_ppo"])
def test_no_algorithm_takes_more_steps_than_it_was_given_or_loses_a_rollout(name: str, tmp_path: Path) -> None:
    config = config_for(write_seeds(tmp_path / "seeds.jsonl"))
    runtime = Runtime(config)
    for bound, envs in ((400, 16), (90, 4), (2100, 16), (5000, 16), (3, 4)):
        agent = build_agent(name, runtime, {}, 0)
        assert isinstance(agent, Algorithm)
        steps = steps_within(agent, bound, envs)
        assert 0 <= steps <= bound
        if bound >= 400:
            assert steps > 0.9 * bound
        if name.startswith("sb3:") and steps:
            sizes = agent._defaults(envs, steps) if hasattr(agent, "_defaults") else {}
            assert "n_steps" not in sizes or steps % (sizes["n_steps"] * envs) == 0


def test_a_policy_that_stops_gets_more_steps_and_never_more_calls(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "env.with_stop=true", policies=["ppo", "sb3:a2c"], budget_calls=60)
    trained = {}
    for cell in plan.cells:
        if cell.policy.learns:
            run_cell(job_of(cell, tmp_path / "out", retry_failed=False))
            found = read_cell(cell, tmp_path / "out")
            assert found is not None
            trained[cell.policy.name] = found[0]["train"]
    for name, train in trained.items():
        assert train["calls"] <= 60, name
        assert train["steps"] > train["calls"], name  # stop asked nobody
    assert trained["ppo"]["calls"] > 60 - 4  # less than one step of all envs is left


def test_a_budget_below_one_rollout_is_a_failure_and_no_untrained_policy(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "agents.sb3:a2c.n_steps=30", policies=["sb3:a2c"], budget_calls=60)
    cell = next(cell for cell in plan.cells if cell.policy.learns)
    with pytest.raises(ConfigError) as caught:
        run_cell(job_of(cell, tmp_path / "out", retry_failed=False))
    assert str(caught.value) == (
        "agent 'sb3:a2c' takes more than train.calls = 60 steps at a time; expected at least one rollout of 4 envs. "
        "Raise the calls, or lower its n_steps or train.num_envs."
    )


# Standings -----------------------------------------------------------------------------------------------------------


def result(policy: str, reward: float, seed: int, task: Task = TASK) -> Result:
    evaluation = {"mean_episode_reward": reward, "chains": 2, "incomplete": 0, "expert_calls": 8, "reviewer_calls": 6}
    evaluation |= {"prompt_tokens": 100, "completion_tokens": 20}
    return Result(policy, task, seed, {"evaluation": evaluation, "train": None, "sets": []}, {"evaluate": 1.0})


def plan_of(*names: str, tasks: tuple[Task, ...] = (TASK,), best_fixed: bool = False) -> Plan:
    return Plan(tuple(Policy(name, name) for name in names), tasks, (0, 1), (), best_fixed)


def test_scores_are_between_random_and_the_optimum() -> None:
    plan = plan_of("random", "good")
    results = [result("random", 1.0, 0), result("random", 2.0, 1), result("good", 3.0, 0), result("good", 4.0, 1)]
    tree = {"uniform": 1.0, "optimum": 5.0, "best_sequence": 3.0, "span_se": 0.3, "trees": 4, "of": 10}
    found = scales(plan, results, {(TASK, 0): tree, (TASK, 1): {**tree, "optimum": 7.0, "span_se": 0.4}})[TASK]
    assert (found.zero, found.span, found.one) == (1.5, 5.0, "the exhaustive optimum")
    assert found.optimum is not None
    assert (found.optimum["trees"], found.optimum["span_se"]) == (8, pytest.approx(0.25))
    assert found.optimum["best_sequence_score"] == pytest.approx(2.0 / 5.0)
    rows = leaderboard(plan.policies, plan, results, {TASK: found})
    assert [row["policy"] for row in rows] == ["good", "random"]
    assert rows[0]["iqm"] == pytest.approx((1.5 / 5 + 2.5 / 5) / 2)
    assert rows[0]["optimality_gap"] == pytest.approx(0.6)
    assert rows[0]["beats_random"] == 1.0
    assert rows[0]["calls_a_chain"] == 4.0
    assert rows[1]["mean"] == 0.0


def test_without_an_optimum_one_is_the_best_policy_and_without_random_there_is_no_scale() -> None:
    plan = plan_of("random", "good")
    results = [result("random", 1.0, 0), result("good", 3.0, 0)]
    found = scales(plan, results, {})[TASK]
    assert (found.zero, found.span, found.one, found.optimum) == (1.0, 2.0, "the best policy here", None)
    assert leaderboard(plan.policies, plan, results, {TASK: found})[0]["optimality_gap"] is None
    assert scales(plan, results[1:], {}) == {}
    assert leaderboard(plan.policies, plan, results[1:], {})[0]["iqm"] is None


def test_the_best_fixed_operation_is_that_of_the_highest_mean_of_each_task() -> None:
    other = Task("novelty", "core")
    plan = plan_of(tasks=(TASK, other), best_fixed=True)
    results = [
        result("fixed:a", 1.0, 0),
        result("fixed:b", 2.0, 0),
        result("fixed:b", 0.5, 1),
        result("fixed:a", 2.0, 1),
    ]
    results.append(result("fixed:b", 9.0, 0, other))
    found, chosen = with_best_fixed(plan, results)
    assert chosen == {TASK.name: "fixed:a", other.name: "fixed:b"}
    assert [each.reward for each in found if each.policy == "best_fixed"] == [1.0, 2.0, 9.0]


def test_the_learning_curve_is_over_calls() -> None:
    episodes = [(4 * number, float(number)) for number in range(1, 201)]
    curve = learning_curve(episodes)
    assert curve[0] == [80, pytest.approx(10.5)]  # 20 episodes of 4 calls
    assert curve[-1] == [800, pytest.approx(np.mean(range(101, 201)))]
    assert learning_curve([]) == []
    assert learning_curve([(4, 1.0)]) == [[4, 1.0]]


# Sets ----------------------------------------------------------------------------------------------------------------


def row(text: str | None, calls: int = 1) -> dict[str, Any]:
    child = None if text is None else {"instruction": text, "input": ""}
    return {"accepted": text is not None, "child": child, "calls": {"expert": calls}}


def test_a_set_holds_what_was_accepted_within_so_many_calls() -> None:
    lineage = [
        row("Boil an egg."),
        row(None),
        row("Boil an egg."),
        row("Sail to Rome.", calls=4),
        row("Never.", calls=4),
    ]
    points = {point["calls"]: point for point in set_by_calls(lineage, 10, HashingEncoder())}
    assert (points[2]["accepted"], points[2]["distinct"]) == (1, 1)
    assert (points[3]["accepted"], points[3]["distinct"]) == (2, 1)
    assert points[3]["vendi"] == pytest.approx(1.0)
    assert points[6]["distinct"] == 1  # the fourth row costs four calls
    assert points[7]["distinct"] == points[10]["distinct"] == 2
    assert 1.5 < points[10]["vendi"] <= 2.0


def test_the_calls_to_reach_a_value_lie_on_the_line_between_points() -> None:
    points = [{"calls": 10, "vendi": 2.0}, {"calls": 20, "vendi": 4.0}, {"calls": 30, "vendi": 3.0}]
    assert calls_to_reach(points, "vendi", 3.0) == 15.0
    assert calls_to_reach(points, "vendi", 1.0) == 5.0
    assert calls_to_reach(points, "vendi", 4.1) is None
    assert calls_to_reach([{"calls": 10, "vendi": None}], "vendi", 1.0) is None


def test_with_the_calls_of_training_counted_a_set_overtakes_later_or_not_at_all() -> None:
    reference = [{"calls": calls, "vendi": calls / 10} for calls in (10, 20, 30, 40)]
    better = [{"calls": calls, "vendi": calls / 5} for calls in (10, 20, 30, 40)]
    assert calls_to_overtake(better, reference, "vendi", 0.0) == 10.0
    assert calls_to_overtake(better, reference, "vendi", 15.0) == 35.0  # 20 calls: 4.0 against 3.5
    assert calls_to_overtake(better, reference, "vendi", 25.0) is None
    assert calls_to_overtake(better, reference, "vendi", 100.0) is None  # the reference does not last so long
    ahead_for_a_while = [{"calls": 10, "vendi": 2.0}, {"calls": 40, "vendi": 3.0}]
    assert calls_to_overtake(ahead_for_a_while, reference, "vendi", 0.0) is None
    assert calls_to_overtake([{"calls": 10, "vendi": None}], reference, "vendi", 0.0) is None


# Processes -----------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_is_a_failed_job_and_is_replaced() -> None:
    heard: dict[str, str] = {}
    jobs = [
        Job("dies", os._exit, 7),
        Job("killed", _kill_me, 0),
        Job("fine", print_nothing, 0),
        Job("raises", int, "x"),
    ]
    run_jobs(jobs, 1, lambda job, reason: heard.update({job.name: reason}))
    assert heard["dies"] == "its process died (exit code 7); for want of memory, perhaps"
    assert heard["killed"] == "its process died (killed by signal 9); for want of memory, perhaps"
    assert heard["fine"] == ""
    assert heard["raises"].startswith("ValueError: invalid literal for int() with base 10: 'x'")


def _kill_me(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def print_nothing(_: int) -> None:
    pass
