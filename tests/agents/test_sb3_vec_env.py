"""Gymnasium vector envs as Stable-Baselines3 sees them."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from instructgym.agents.sb3 import SB3Agent, SB3VecEnv
from instructgym.errors import BackendError, UsageError

from .toy_envs import Identity, Retrying, Scripted, vector


def test_the_adapter_equals_sb3s_own_on_cartpole():
    ours = SB3VecEnv(
        gymnasium.make_vec(
            "CartPole-v1",
            3,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
            max_episode_steps=12,
        )
    )
    theirs = DummyVecEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=12)] * 3)
    ours.seed(4)
    theirs.seed(4)
    assert np.array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    endings = set()
    for _ in range(60):
        actions = rng.integers(2, size=3)
        (obs, rewards, done, infos), (obs2, rewards2, done2, infos2) = ours.step(actions), theirs.step(actions)
        assert np.array_equal(obs, obs2)
        assert np.array_equal(rewards, rewards2)
        assert np.array_equal(done, done2)
        for info, info2 in zip(infos, infos2, strict=True):
            assert info.get("TimeLimit.truncated", False) == info2["TimeLimit.truncated"]
            assert ("terminal_observation" in info) == ("terminal_observation" in info2)
            if "terminal_observation" in info:
                assert np.array_equal(info["terminal_observation"], info2["terminal_observation"])
                endings.add(info["TimeLimit.truncated"])
    assert endings == {True, False}


def test_infos_are_taken_apart_row_by_row():
    env = SB3VecEnv(Scripted(["go end cut"]))
    env.reset()
    obs, rewards, done, infos = env.step(np.zeros(3, int))
    assert obs.tolist() == [[0, 1, 0], [1, 0, 1], [2, 0, 1]]
    assert rewards.tolist() == [1.0, 1.0, 1.0]
    assert done.tolist() == [False, True, True]
    assert (infos[0]["valid"], infos[0]["step"]) == (True, 1)
    assert [info["TimeLimit.truncated"] for info in infos[1:]] == [False, True]
    assert [info["terminal_observation"].tolist() for info in infos[1:]] == [[1, 1, 0], [2, 1, 0]]
    # the info of the reset is kept apart from that of the step
    assert (infos[1]["failure"], env.reset_infos[1]["step"]) == ("", 0)


def test_masks_are_answered_as_maskable_ppo_asks():
    env = VecMonitor(SB3VecEnv(Scripted(["go end"])))
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    env.reset()
    assert np.stack(env.env_method("action_masks")).tolist() == [[1, 1, 0], [1, 1, 0]]
    env.step(np.zeros(2, int))
    assert np.stack(env.env_method("action_masks")).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert env.env_method("action_masks", indices=[0])[0].tolist() == [1, 1, 1]
    assert env.get_attr("action_masks", indices=1)[0]().tolist() == [1, 1, 0]
    assert SB3VecEnv(vector(Identity, 2)).env_method("action_masks")[0].tolist() == [1, 1, 1, 1]


def test_attributes_and_methods_of_the_rows_are_reached():
    env = SB3VecEnv(vector(Identity, 2))
    assert env.get_attr("length") == [8, 8]
    env.reset()
    assert len(env.env_method("_show", indices=[1])) == 1
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False, False]


def test_a_failed_row_is_repeated_and_never_emitted():
    inner = Retrying(["go fail go fail"], retries=["fail end", "go"])
    env = SB3VecEnv(inner)
    env.reset()
    obs, rewards, done, infos = env.step(np.array([0, 1, 0, 1]))
    assert inner.asked == [([1, 1], [1, 3]), ([1], [1])]
    assert obs.tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0], [3, 0, 1]]
    assert rewards.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert done.tolist() == [False, False, False, True]
    assert infos[1]["valid"] is True
    assert infos[3]["valid"] is True
    assert infos[3]["TimeLimit.truncated"] is False
    assert infos[3]["terminal_observation"].tolist() == [3, 1, 0]
    assert np.stack(env.env_method("action_masks")).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]


def test_after_k_failures_learning_stops():
    env = Retrying(["go go", "fail go"], retries=["fail", "fail"])
    with pytest.raises(BackendError) as error:
        SB3Agent(
            "sb3:ppo",
            env.single_observation_space,
            env.single_action_space,
            kwargs={"retries": 2, "n_steps": 8, "batch_size": 16, "n_epochs": 1},
        ).learn(env, 32)
    assert str(error.value) == (
        "the step of envs [0] failed and so did 2 repetitions; env 0: call 2 of row 0 was lost."
    )


def test_a_failed_row_without_a_way_to_repeat_it_is_said_so():
    env = SB3VecEnv(Scripted(["fail go"]))
    env.reset()
    with pytest.raises(UsageError) as error:
        env.step(np.zeros(2, int))
    assert str(error.value) == (
        "the step of envs [0] failed (info['valid'] is False), and Scripted has no retry_rows(actions, rows) to repeat "
        "it with. Stable-Baselines3 cannot leave a row out: give the vector env that method, or use agent 'ppo'."
    )
