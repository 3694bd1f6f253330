import numpy as np
import pytest

from instructgym.agents import FixedAgent, RandomAgent, RoundRobinAgent, SequenceAgent, row_rng
from instructgym.errors import ConfigError

MASKS = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], bool)


def rng(rows, episode=0):
    return [row_rng(0, row, episode, 0) for row in range(rows)]


def test_random_is_uniform_over_the_legal_actions():
    masks = np.tile([True, False, True, True], (6000, 1))
    decision = RandomAgent().act(None, action_mask=masks, rng=rng(6000))
    assert abs(np.bincount(decision.actions, minlength=4) / 6000 - [1 / 3, 0, 1 / 3, 1 / 3]).max() < 0.02
    assert decision.log_prob == pytest.approx(np.full(6000, -np.log(3)))


def test_random_chooses_by_row_whatever_rows_are_asked_together():
    masks = np.ones((8, 5), bool)
    together = RandomAgent().act(None, action_mask=masks, rng=rng(8)).actions
    alone = [RandomAgent().act(None, action_mask=masks[:1], rng=[g]).actions[0] for g in rng(8)]
    assert together.tolist() == alone


def test_fixed_takes_the_lowest_legal_action_where_its_own_is_illegal():
    assert FixedAgent(0).act(None, action_mask=MASKS, rng=rng(3)).actions.tolist() == [0, 1, 2]


def test_sequence_plays_by_the_step_of_the_episode_and_starts_over():
    agent, state, played = SequenceAgent([2, 0]), None, []
    for _ in range(4):
        decision = agent.act(None, action_mask=np.ones((2, 3), bool), rng=rng(2), state=state)
        state = decision.state
        played.append(decision.actions.tolist())
    assert played == [[2, 2], [0, 0], [2, 2], [0, 0]]


def test_round_robin_takes_the_next_legal_action_in_the_circle():
    decision = RoundRobinAgent().act(None, action_mask=MASKS, rng=rng(3), state=np.array([3, 0, 1]))
    assert decision.actions.tolist() == [0, 1, 2]
    assert decision.state.tolist() == [4, 1, 2]


def test_an_action_that_does_not_exist_is_named():
    with pytest.raises(ConfigError) as error:
        FixedAgent(7).act(None, action_mask=MASKS, rng=rng(3))
    assert str(error.value) == "agent 'fixed' plays action 7, but there are only 3 actions (0 to 2)."
    with pytest.raises(ConfigError) as error:
        SequenceAgent([])
    assert str(error.value) == "a sequence of actions []; expected at least one index of 0 or more."
