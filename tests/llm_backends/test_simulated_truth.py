"""The truth of a simulated rewrite, against what the simulator drew."""

from collections import Counter

import pytest

from instructgym.envs.loading import load_action_set
from instructgym.llm_backends.simulated import expert
from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.truth import gained
from instructgym.train.seed_files import read_seeds
from instructgym.types import Instruction


@pytest.fixture
def outcomes(monkeypatch):
    drawn = []
    real = expert._outcome

    def outcome(table, draws):
        drawn.append(real(table, draws))
        return drawn[-1]

    monkeypatch.setattr(expert, "_outcome", outcome)
    return drawn


def test_what_gained_is_what_the_simulator_drew_as_a_gain(outcomes):
    action_set = load_action_set("evol_instruct")
    seeds = read_seeds("default").seeds
    agree = Counter()
    for number, seed in enumerate(seeds):
        for operation in action_set.operations:
            parent = seed.instruction
            for draw in range(3):
                reply = expert.rewrite(
                    operation.name, parent.text, parent.input, Draws(f"{number}/{operation.name}/{draw}".encode())
                )
                child = operation.parse(reply, parent)
                if isinstance(child, Instruction):
                    agree[gained(operation.name, parent, child), outcomes[-1]] += 1
    # A gain with chatter or a leak around it is a gain where the operation's parser cut that off.
    agree = Counter({key: count for key, count in agree.items() if key[1] not in ("chatter", "leak")})
    wrong = {key: count for key, count in agree.items() if key[0] != (key[1] == "gain")}
    assert not wrong
    assert agree[True, "gain"] > 500
    assert sum(count for (_, drawn), count in agree.items() if drawn != "gain") > 500


def test_a_gain_is_known_by_its_words_alone():
    parent = Instruction("Explain how a heat pump warms a house in winter when the air outside is cold.")
    assert not gained("deepen", parent, parent)
    assert not gained("deepen", parent, Instruction(f"{parent.text} Please answer carefully."))
    assert not gained("breadth", parent, Instruction("Describe something else."))
