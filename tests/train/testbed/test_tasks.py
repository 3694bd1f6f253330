"""The testbed's tasks: one right answer each, read back from the prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.train.testbed.tasks import (
    FAMILIES,
    Split,
    careless_answer,
    check,
    make_tasks,
    right_answer,
    task_of,
    wrong_answer,
)

SPLITS: tuple[Split, ...] = ("train", "held_out_instances", "held_out_templates")


@pytest.mark.parametrize("split", SPLITS)
def test_the_checker_reads_a_task_back_from_its_prompt(split: Split) -> None:
    for task in make_tasks(400, 0, split=split):
        found = task_of(task.prompt)
        assert found is not None
        assert (found.family, found.answer) == (task.family, task.answer)
        assert right_answer(task.prompt) == task.answer
        assert check(task, f" {task.answer}\n")


@given(st.integers(0, 1000))
@settings(max_examples=30)
def test_wrong_answers_are_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for task in make_tasks(16, seed):
        assert not check(task, careless_answer(task.prompt) or "")
        assert not check(task, wrong_answer(task, rng))


def test_splits_share_no_instance_and_no_template() -> None:
    found = {split: make_tasks(400, 1, split=split) for split in SPLITS}
    prompts = {split: {task.prompt for task in tasks} for split, tasks in found.items()}
    for one in SPLITS:
        assert len(prompts[one]) == 400
        for other in SPLITS:
            assert one == other or prompts[one].isdisjoint(prompts[other])
    last = {name: len(family.templates) - 1 for name, family in FAMILIES.items()}
    assert all(task.template < last[task.family] for task in found["train"])
    assert all(task.template == last[task.family] for task in found["held_out_templates"])
    assert all(task.held_out for task in found["held_out_instances"] + found["held_out_templates"])


def test_the_same_seed_gives_the_same_tasks_and_every_family_its_share() -> None:
    tasks = make_tasks(80, 5)
    assert tasks == make_tasks(80, 5)
    assert tasks != make_tasks(80, 6)
    assert {sum(task.family == name for task in tasks) for name in FAMILIES} == {10}


def test_answers_by_hand() -> None:
    assert right_answer("write punag in capitals") == "PUNAG"
    assert right_answer("spell bofir backwards") == "rifob"
    assert right_answer("sort rurer") == "errru"
    assert right_answer("count all letters in zape") == "4"
    assert right_answer("pick the second of dagar tuvan") == "tuvan"
    assert right_answer("in ragan replace a with e") == "regen"
    assert right_answer("what is 8 plus 7") == "15"
    assert right_answer("three times vafo") == "vafo, vafo, vafo"
    assert careless_answer("three times vafo") == "vafo vafo vafo"
    assert right_answer("Why is the sky blue?") is None
    assert careless_answer("Why is the sky blue?") is None


def test_a_family_that_has_no_more_is_left_out() -> None:
    tasks = make_tasks(6000, 0)
    counts = {name: sum(task.family == name for task in tasks) for name in FAMILIES}
    assert len({task.prompt for task in tasks}) == 6000
    assert counts["arithmetic"] < counts["case"]
