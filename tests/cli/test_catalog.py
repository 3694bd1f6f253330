from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Invoke


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("actions", ["evol_instruct", "core", "teams_rl"]),
        ("rewards", ["reviewer_equality", "novelty", "validity"]),
        ("agents", ["ppo", "random", "round_robin", "fixed"]),
        ("backends", ["simulated", "openai", "replay"]),
        ("configs", ["quickstart", "teams_rl"]),
        ("pipelines", ["self_reward", "teacher_reward", "teacher_demo", "spin", "oracle_reward"]),
        ("alignments", ["testbed", "self_rewarding", "phi2_study"]),
    ],
)
def test_list_shows_every_kind(invoke: Invoke, kind: str, names: list[str]) -> None:
    result = invoke("list", kind)
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert set(names) <= set(listed)


def test_describe_an_action_set_shows_each_prompt(invoke: Invoke) -> None:
    result = invoke("describe", "core")
    assert result.exit_code == 0
    for index, name in enumerate(("add_constraints", "deepen", "concretize", "breadth")):
        assert f"\n  {index} {name}\n" in result.stdout
        assert f"Operation: {name}" in result.stdout


def test_describe_a_name_of_two_things_describes_both(invoke: Invoke) -> None:
    result = invoke("describe", "teams_rl")
    assert result.exit_code == 0
    assert "action set teams_rl\n" in result.stdout
    assert "config teams_rl\n" in result.stdout


def test_describe_with_stop(invoke: Invoke) -> None:
    result = invoke("describe", "core+stop")
    assert "\n  4 stop\n    Keep the instruction as it is and end.\n" in result.stdout


def test_describe_the_users_own_action_set(invoke: Invoke, tmp_path: Path) -> None:
    own = tmp_path / "my_ops.py"
    own.write_text(
        "from instructgym.envs.operations import ActionSet, Rewrite\n"
        "MINE = ActionSet('mine', (Rewrite('shorten', 'Say the same in fewer words.', words=None),))\n"
    )
    result = invoke("describe", f"{own}:MINE")
    assert result.exit_code == 0
    assert "Say the same in fewer words." in result.stdout


@pytest.mark.parametrize("name", ["novelty", "simulated", "quickstart", "ppo", "teacher_demo", "phi2_study"])
def test_describe_the_other_kinds(invoke: Invoke, name: str) -> None:
    result = invoke("describe", name)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) >= 2


def test_describe_a_reward_says_what_must_be_given_and_what_is_there(invoke: Invoke) -> None:
    assert invoke("describe", "novelty").stdout.splitlines()[2:] == [
        "  needs: encoder",
        "  options:",
        "    parent_weight = 0.5",
        "    seed_weight = 0.5",
        "  in a config: reward.terms.novelty = WEIGHT, reward.kwargs.novelty.OPTION = VALUE",
    ]
    lagrangian = invoke("describe", "lagrangian").stdout
    assert "\n  needs: what its rewards need\n" in lagrangian
    assert "\n    limit must be given\n    learning_rate = 0.05\n" in lagrangian
    assert 'reward = "REWARD", cost = "operation_cost"' in lagrangian
    assert 'rewards = ["REWARD", "REWARD"]' in " ".join(invoke("describe", "product").stdout.split())


def test_describe_an_unknown_name_offers_the_nearest(invoke: Invoke) -> None:
    result = invoke("describe", "noveltie")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: nothing is called 'noveltie'; did you mean 'novelty'? `instructgym list KIND` shows the names.\n"
    )


def test_describe_shows_one_operation_by_its_name(invoke: Invoke) -> None:
    ended = invoke("describe", "deepen")
    assert ended.exit_code == 0
    assert "operation deepen, of action set" in ended.stdout
    assert "Operation: deepen" in ended.stdout


def test_describe_says_how_a_config_names_an_object_of_the_users_own(invoke: Invoke, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from instructgym.agents import Agent\n"
        "from instructgym.agents.base import Algorithm\n"
        "from instructgym.envs.operations import ActionSet, Rewrite\n"
        "class Chooser(Agent):\n    '''Chooses.'''\n"
        "class Learner(Algorithm):\n    '''Learns.'''\n"
        "class Nothing:\n    '''No part.'''\n"
        "chooser = Chooser()\n"
        "def short(transition):\n    '''Scores.'''\n    return 0.0\n"
        "MINE = ActionSet('mine', (Rewrite('shorten', 'Say the same in fewer words.', words=None),))\n"
    )

    def told(name: str) -> list[str]:
        lines = invoke("describe", f"{own}:{name}").stdout.splitlines()
        return [line.strip() for line in lines if "in a config: " in line]

    quoted = {name: f'"{own}:{name}"' for name in ("Chooser", "Learner", "chooser", "short", "MINE")}
    assert told("Learner") == [f"in a config: agent.name = {quoted['Learner']}, agent.kwargs.OPTION = VALUE"]
    policy = "does not learn; in a config: evolve.policy = {}, or among evaluate.policies"
    assert told("chooser") == [policy.format(quoted["chooser"])]
    assert told("Chooser") == [
        policy.format(quoted["Chooser"]),
        f"its options, in a config: agents.{quoted['Chooser']}.OPTION = VALUE",
    ]
    assert told("short") == [f"in a config: reward.terms.{quoted['short']} = WEIGHT"]
    assert told("MINE") == [f"in a config: env.action_set = {quoted['MINE']}"]
    assert told("Nothing") == ["in a config: nothing; expected an Agent, a Reward, a function, or an ActionSet"]
