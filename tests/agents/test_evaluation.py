import numpy as np
import pytest

from instructgym.agents import FixedAgent, RandomAgent, RoundRobinAgent, evaluate

from .toy_envs import Horizon, Masked, Scripted, vector


def test_each_env_plays_its_share_of_whole_episodes():
    returns = evaluate(FixedAgent(0), vector(Horizon, 3), 7)
    assert returns == pytest.approx(np.full(7, 0.8))


def test_the_state_of_a_row_starts_over_with_its_episode():
    # actions 0 and 1 in turn: each episode is 0.2 + 0.5, and the next starts with action 0 again
    assert evaluate(RoundRobinAgent(), vector(Horizon, 2), 6) == pytest.approx(np.full(6, 0.7))


def test_an_episode_that_a_failed_call_cut_is_played_again():
    assert evaluate(RandomAgent(), Scripted(["go go", "fail go", "end end"]), 2).tolist() == [1.0, 6.0]


def test_the_same_seed_gives_the_same_returns():
    first, again, other = (evaluate(RandomAgent(), vector(Masked, 3), 9, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
