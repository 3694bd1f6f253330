import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgym.train.alignment.prompt_writing import read_written, shots_for, writing_messages
from instructgym.train.alignment.records import Prompt
from instructgym.types import Completion

SEEDS = [Prompt(f"s{number}", f"Seed task {number}") for number in range(20)]
NEW = [Prompt(f"g{number}", f"New task {number}") for number in range(5)]


def shots(number, seeds=SEEDS, generated=NEW, rng_seed=0, **counts):
    return shots_for(number, seeds, generated, np.random.default_rng(rng_seed), **counts)


def of(found, letter):
    return [each for each in found if each.id.startswith(letter)]


def test_six_are_seeds_and_two_are_new():
    found = shots(3)
    assert (len(of(found, "s")), len(of(found, "g"))) == (6, 2)


def test_seeds_take_the_place_of_new_ones_that_are_not_there_yet():
    assert len(of(shots(0, generated=[]), "s")) == 8
    assert (len(of(shots(0, generated=NEW[:1]), "s")), len(of(shots(0, generated=NEW[:1]), "g"))) == (7, 1)


@given(
    st.integers(0, 100), st.integers(1, 20), st.integers(0, 5), st.integers(1, 10), st.integers(0, 4), st.integers(0, 9)
)
def test_shots_are_distinct_as_many_as_there_are_and_hold_the_seed_whose_turn_it_is(
    number, seeds, generated, from_seeds, from_generated, rng_seed
):
    counts = {"from_seeds": from_seeds, "from_generated": from_generated}
    found = shots(number, SEEDS[:seeds], NEW[:generated], rng_seed, **counts)
    newer = min(from_generated, generated)
    assert len(of(found, "g")) == newer
    assert len(of(found, "s")) == min(from_seeds + from_generated - newer, seeds)
    assert len({each.id for each in found}) == len(found)
    assert SEEDS[number % seeds] in found
    assert found == shots(number, SEEDS[:seeds], NEW[:generated], rng_seed, **counts)


def test_without_seeds_there_are_no_shots():
    with pytest.raises(ValueError, match=r"shots_for got no seeds; expected one prompt or more\."):
        shots(0, seeds=[])
    with pytest.raises(ValueError, match="from_seeds = 0 and from_generated = 2; expected 1 or more and 0 or more"):
        shots(0, from_seeds=0)


def test_the_question_numbers_the_shots_and_asks_for_the_next():
    system, user = writing_messages([Prompt("a", "Name a river."), Prompt("b", "Sum these up.", "1 and {2}")])
    assert system.content == "You write tasks for a language model."
    assert "\n\nTask 1: Name a river.\n\nTask 2: Sum these up.\n\n1 and {2}\n\n" in user.content
    assert "Begin with task 3," in user.content
    assert user.content.endswith("\nTask 3: ...")
    with pytest.raises(ValueError, match=r"writing_messages got no examples; expected one or more\."):
        writing_messages([])


@pytest.mark.parametrize(
    ("reply", "tasks"),
    [
        ("Task 9: Name a sea.", ["Name a sea."]),
        ("Task 9: Name a sea.\n\nTask 10: Name a lake.\nIt is salty.", ["Name a sea.", "Name a lake.\nIt is salty."]),
        ("Sure! Here they are.\n\n**Task 9:** Name a sea.", ["Name a sea."]),
        ("### Task 1.\nName a sea.\n### task 2)\nName a lake.", ["Name a sea.", "Name a lake."]),
        ("**Task 3**: Name a sea.", ["Name a sea."]),
        ("Name a sea.", ["Name a sea."]),
        ("Name a sea. Then do Task 9: of the list.", ["Name a sea. Then do Task 9: of the list."]),
        ("Task 9: Name a sea.\nTask 10: name a SEA", ["Name a sea."]),
        ("Task 9:\n\nTask 10: Name a sea.", ["Name a sea."]),
        ("Task 9: ...", []),
        ("", []),
        ("  \n", []),
        ("Task: Name a sea.", ["Task: Name a sea."]),
        ("Task 9: 1. one\n2. two", ["1. one\n2. two"]),
    ],
)
def test_tasks_are_read(reply, tasks):
    assert read_written(Completion(reply)) == tasks


def test_the_last_task_of_a_cut_reply_is_dropped():
    assert read_written(Completion("Task 9: Name a sea.\nTask 10: Name a la", "length")) == ["Name a sea."]
    assert read_written(Completion("Name a se", "length")) == []


def test_a_shot_that_is_said_again_is_no_new_task():
    known = [Prompt("a", "Name a river.")]
    assert read_written(Completion("Task 1: name a river\nTask 2: Name a sea."), known) == ["Name a sea."]


def test_a_reply_of_a_hundred_thousand_marks_is_read_at_once():
    assert len(read_written(Completion("*" * 100_000 + "\nTask 1: x"))) == 1
    assert read_written(Completion("Task 1" + " " * 100_000)) == ["Task 1"]
