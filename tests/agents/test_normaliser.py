import numpy as np
import pytest

from instructgym.agents.normaliser import ObservationNormaliser, RewardScaler, RunningMoments


def test_moments_do_not_depend_on_how_the_stream_is_cut():
    stream = np.random.default_rng(0).normal(1e4, 3.0, (500, 2))
    moments = RunningMoments((2,))
    for part in np.split(stream, [1, 2, 7, 7, 300]):
        moments.update(part)
    assert moments.mean == pytest.approx(stream.mean(axis=0), rel=1e-12)
    assert moments.var == pytest.approx(stream.var(axis=0), rel=1e-9)


def test_observations_are_z_scores_clipped():
    stream = np.random.default_rng(0).normal(5.0, 2.0, (4000, 1)).astype(np.float32)
    normaliser = ObservationNormaliser(1, clip=5.0)
    assert normaliser(np.array([[7.0]], np.float32)).tolist() == [[5.0]]
    normaliser.update(stream)
    assert normaliser(np.array([[7.0], [1e6], [-1e6]], np.float32)).ravel() == pytest.approx([1.0, 5.0, -5.0], abs=0.1)
    other = ObservationNormaliser(1, clip=5.0)
    other.load_state_dict(normaliser.state_dict())
    assert np.array_equal(other(stream), normaliser(stream))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    rewards = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    done = np.array([[False, True], [False, False], [False, False]])
    valid = np.array([[True, True], [True, True], [False, True]])
    returns = [1.0, 3.5, 2.0, 4.0, 8.0]  # gamma 0.5; the invalid row's is left out
    scaler = RewardScaler(0.5)
    scaler.update(rewards, done, valid, np.ones((3, 2), bool))
    assert scaler(rewards) == pytest.approx(rewards / np.std(returns), rel=1e-5)


def test_the_discounted_return_of_an_env_waits_where_it_brought_no_step():
    def column(*values):
        return np.array(values, np.float32)[:, None]

    def moments(*rollouts):
        scaler = RewardScaler(0.5)
        for rewards, present in rollouts:
            scaler.update(
                column(*rewards), column(*[False] * len(rewards)) > 0, column(*present) > 0, column(*present) > 0
            )
        return scaler.moments.mean, scaler.moments.var

    assert moments(([1, 2, 0, 0], [1, 1, 0, 0]), ([3], [1])) == moments(([1, 2], [1, 1]), ([3], [1]))
