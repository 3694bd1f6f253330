import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from instructgym.agents.rollout import Rollout, action_masks, gae, require_same_step, valid_rows
from instructgym.errors import UsageError

from .toy_envs import Identity, Masked, Scripted, vector


def column(*values, dtype=float):
    return np.array(values, dtype)[:, None]


def advantages(rewards, values, next_values, terminated=(), truncated=(), invalid=(), gamma=0.5, gae_lambda=0.5):
    flags = [column(*(t in at for t in range(len(rewards))), dtype=bool) for at in (terminated, truncated, invalid)]
    args = column(*rewards), column(*values), column(*next_values), flags[0], flags[1], ~flags[2]
    return gae(*args, gamma=gamma, gae_lambda=gae_lambda).ravel().tolist()


def test_gae_by_hand():
    # deltas: 1 + 0.5 * 4 - 2 = 1 and 2 + 0.5 * 6 - 4 = 1; the first takes 0.25 of the second
    assert advantages([1, 2], [2, 4], [4, 6]) == [1.25, 1.0]


def test_a_terminated_row_does_not_bootstrap():
    assert advantages([1, 2], [2, 4], [9, 6], terminated=[0]) == [-1.0, 1.0]


def test_a_truncated_row_bootstraps_and_takes_nothing_from_the_next_episode():
    assert advantages([1, 2], [2, 4], [9, 6], truncated=[0]) == [3.5, 1.0]


def test_a_row_both_terminated_and_truncated_does_not_bootstrap():
    assert advantages([1, 2], [2, 4], [9, 6], terminated=[0], truncated=[0]) == [-1.0, 1.0]


def test_the_row_before_an_invalid_one_bootstraps_from_the_state_in_which_the_call_failed():
    # next_values[0] is the value of the state at row 1, where the call failed: 1 + 0.5 * 4 - 2 = 1, and nothing more
    assert advantages([1, 0, 2], [2, 4, 6], [4, 99, 8], truncated=[1], invalid=[1]) == [1.0, 0.0, 0.0]


def naive(rewards, values, next_values, terminated, truncated, valid, gamma, gae_lambda):
    """Each advantage on its own: the sum of discounted TD errors to the end of the episode, or to a failure."""
    steps, envs = rewards.shape
    result = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            weight, t = 1.0, start
            while t < steps and valid[t, env]:
                future = 0.0 if terminated[t, env] else gamma * next_values[t, env]
                result[start, env] += weight * (rewards[t, env] + future - values[t, env])
                if terminated[t, env] or truncated[t, env]:
                    break
                weight *= gamma * gae_lambda
                t += 1
    return result


@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_the_sum_written_out(seed):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, 40, 6))
    terminated, truncated = rng.random((2, 40, 6)) < 0.15
    valid = rng.random((40, 6)) > 0.15
    truncated |= ~valid
    terminated &= valid
    args = rewards, values, next_values, terminated, truncated, valid
    assert gae(*args, gamma=0.97, gae_lambda=0.9) == pytest.approx(naive(*args, 0.97, 0.9), abs=1e-5)


def test_advantages_are_of_each_env_on_its_own_however_the_transitions_came():
    rng = np.random.default_rng(0)
    rows = rng.choice(3, 50, p=[0.7, 0.25, 0.05])
    rollout = Rollout.empty(60, 4, obs_dim=1, actions=2).first(50)
    rollout.rows[:] = rows
    rollout.times[:] = [np.sum(rows[:place] == row) for place, row in enumerate(rows)]
    rollout.rewards[:], rollout.values[:], rollout.next_values[:] = rng.normal(size=(3, 50))
    rollout.terminated[:], rollout.learned[:] = rng.random(50) < 0.2, rng.random(50) < 0.8
    got = rollout.advantages(0.9, 0.8)
    names = ("rewards", "values", "next_values", "terminated", "truncated", "learned")
    for row in range(3):
        own = rows == row
        alone = gae(*(getattr(rollout, name)[own][:, None] for name in names), gamma=0.9, gae_lambda=0.8)
        assert got[own].tolist() == alone[:, 0].tolist()


def test_masks_are_read_as_gymnasium_batches_them():
    env = vector(lambda: Masked(3), 4)
    obs, infos = env.reset(seed=0)
    masks = action_masks(infos, 4, 3)
    assert [int(np.argmin(row)) for row in masks] == obs.tolist()
    assert action_masks({}, 4, 3) is None
    assert action_masks({"action_mask": np.ones((4, 3), np.int8)}, 4, 3) is None
    partly = {"action_mask": np.array([[1, 0], [0, 0]], np.int8), "_action_mask": np.array([True, False])}
    assert action_masks(partly, 2, 2).tolist() == [[True, False], [True, True]]


def test_a_row_without_a_legal_action_is_an_error():
    with pytest.raises(UsageError) as error:
        action_masks({"action_mask": np.array([[1, 0], [0, 0]])}, 2, 2)
    assert str(error.value) == "info['action_mask'] of env 1 allows no action; expected at least one."
    with pytest.raises(UsageError) as error:
        action_masks({"action_mask": np.array([[1, 0], [0, 0]]), "env_id": np.array([3, 7])}, 2, 2)
    assert str(error.value) == "info['action_mask'] of env 7 allows no action; expected at least one."
    with pytest.raises(UsageError) as error:
        action_masks({"action_mask": np.ones((2, 5))}, 2, 3)
    assert str(error.value) == "info['action_mask'] of shape (2, 5); expected (2, 3)."


def test_validity_of_a_finished_row_is_in_its_final_info():
    env = Scripted(["go end fail cut"])
    env.reset()
    _, _, terminated, truncated, infos = env.step(np.zeros(4))
    assert valid_rows(infos, terminated | truncated).tolist() == [True, True, False, True]
    assert valid_rows({}, np.zeros(2, bool)).tolist() == [True, True]


class Failing(Identity):
    def step(self, action):
        obs, reward, terminated, _, _ = super().step(action)
        failed = self.shown == 0
        return obs, 0.0 if failed else reward, terminated and not failed, failed, {"valid": not failed}


def test_validity_is_read_as_gymnasium_batches_it():
    env = SyncVectorEnv([lambda: Failing(2, 100)] * 6, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=1)
    _, _, terminated, truncated, infos = env.step(np.zeros(6, int))
    assert 0 < truncated.sum() < 6
    assert np.array_equal(valid_rows(infos, terminated | truncated), ~truncated)


def test_another_autoreset_mode_is_refused_with_the_way_out():
    env = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(UsageError) as error:
        require_same_step(env)
    assert str(error.value) == (
        "vector env of autoreset mode NextStep; expected SameStep. Make it with "
        'vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}.'
    )
