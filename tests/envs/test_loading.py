from __future__ import annotations

import importlib.metadata

import pytest

from instructgym.envs import ActionSet, Rewrite, action_set_names, load_action_set, loading
from instructgym.errors import ActionSetError, ConfigError

MINE = """
from instructgym.envs import ActionSet, Rewrite

MY_SET = ActionSet(
    "mine",
    (
        Rewrite("simplify", "Make the instruction easier to understand.", words=None),
        Rewrite("translate", "Ask for the answer in another language."),
    ),
)
NUMBER = 3
"""


def test_builtin_sets_and_their_order():
    assert load_action_set("evol_instruct").names == (
        "add_constraints",
        "deepen",
        "concretize",
        "increase_reasoning",
        "complicate_input",
        "breadth",
    )
    assert load_action_set("core").names == ("add_constraints", "deepen", "concretize", "breadth")
    assert load_action_set("teams_rl").names == (
        "breadth",
        "add_constraints",
        "deepening",
        "concretizing",
        "increase_reasoning_steps",
        "complicate_input",
    )
    assert load_action_set("core+stop").names[-1] == "stop"


def test_a_set_from_the_users_file(tmp_path):
    path = tmp_path / "my_ops.py"
    path.write_text(MINE)
    assert load_action_set(f"{path}:MY_SET").names == ("simplify", "translate")
    assert load_action_set(f"{path}:MY_SET+stop").names == ("simplify", "translate", "stop")


def test_a_file_without_that_name_names_the_nearest(tmp_path):
    path = tmp_path / "my_ops.py"
    path.write_text(MINE)
    with pytest.raises(ConfigError) as caught:
        load_action_set(f"{path}:MY_SETT")
    assert str(caught.value) == (
        f"'{path}:MY_SETT': my_ops.py has no name 'MY_SETT'; did you mean 'MY_SET'? "
        "Known: ActionSet, Rewrite, MY_SET, NUMBER."
    )


def test_something_else_in_the_file_is_an_action_set_error(tmp_path):
    path = tmp_path / "my_ops.py"
    path.write_text(MINE)
    with pytest.raises(ActionSetError) as caught:
        load_action_set(f"{path}:NUMBER")
    assert str(caught.value) == f"'{path}:NUMBER' is of type int; expected an instructgym.envs.ActionSet."


def test_unknown_name_names_the_nearest():
    with pytest.raises(ActionSetError) as caught:
        load_action_set("evol_instrukt")
    assert str(caught.value) == (
        "unknown action set 'evol_instrukt'; did you mean 'evol_instruct'? Known: evol_instruct, core, teams_rl. "
        "One of your own: 'path/to/file.py:NAME'."
    )


def test_installed_packages_bring_sets_through_entry_points(monkeypatch):
    found = ActionSet("theirs", (Rewrite("simplify", "Make it easier."),))

    class Point:
        name = "theirs"

        def load(self):
            return found

    monkeypatch.setattr(loading, "entry_points", lambda group: [Point()] if group == "instructgym.action_sets" else [])
    assert load_action_set("theirs") is found
    assert action_set_names() == ("evol_instruct", "core", "teams_rl", "theirs")
    assert importlib.metadata.entry_points is not loading.entry_points
