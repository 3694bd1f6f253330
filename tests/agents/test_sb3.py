import tempfile
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from instructgym.agents import evaluate, load_agent, make_agent, row_rng, save_agent
from instructgym.agents.sb3 import SB3Agent, SB3VecEnv
from instructgym.errors import BackendError, ConfigError, UsageError

from .toy_envs import Identity, Masked, Mixed, Retrying, Scripted, vector

SMALL = {
    "sb3:ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "sb3:a2c": {"n_steps": 8},
    "sb3:dqn": {"learning_starts": 10},
    "sb3:maskable_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "sb3:trpo": {"n_steps": 8, "batch_size": 16},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agent_for(env, name, seed=0, **kwargs):
    return SB3Agent(name, env.single_observation_space, env.single_action_space, kwargs=kwargs, seed=seed)


# the adapter


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
        agent_for(env, "sb3:ppo", retries=2, **SMALL["sb3:ppo"]).learn(env, 32)
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


# the agents


@pytest.mark.parametrize("name", SMALL)
def test_each_algorithm_learns_saves_and_goes_on(name, tmp_path):
    env = vector(Masked if name == "sb3:maskable_ppo" else Identity, 4)
    agent = agent_for(env, name, net_arch=[8], **SMALL[name])
    told = []
    history = agent.learn(env, 64, progress=lambda steps, metrics: told.append(steps))
    assert agent.num_steps == 64
    assert told[-1] == 64
    assert len(history) == len(told)
    assert "rollout/ep_rew_mean" in history[-1]
    assert "train/n_updates" in history[-1]
    assert not any("fps" in key for row in history for key in row)

    save_agent(agent, tmp_path / "agent", action_set_hash="h", action_set_names="abcd")
    loaded = load_agent(tmp_path / "agent", expected_action_set_hash="h")
    obs, masks = np.arange(4), np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]], bool)
    generators = [row_rng(0, row) for row in range(4)]
    chosen = agent.act(obs, action_mask=masks, rng=generators)
    again = loaded.act(obs, action_mask=masks, rng=[row_rng(0, row) for row in range(4)])
    assert chosen.actions.tolist() == again.actions.tolist()
    assert masks[np.arange(4), chosen.actions].all()
    wider = vector(Masked if name == "sb3:maskable_ppo" else Identity, 2)
    loaded.learn(wider, 32)
    assert loaded.num_steps == 96

    plain = loaded.algorithm.load(tmp_path / "agent" / "model.zip", device="cpu")
    extra = {"action_masks": masks} if name == "sb3:maskable_ppo" else {}
    predicted, _ = plain.predict(obs, deterministic=True, **extra)
    all_legal = masks if name == "sb3:maskable_ppo" else np.ones((4, 4), bool)
    best = agent.act(obs, action_mask=all_legal, rng=generators, deterministic=True).actions
    assert predicted.tolist() == best.tolist()


def test_trpo_with_normalised_observations_learns_identity(tmp_path):
    env = vector(Identity, 4)
    agent = agent_for(env, "sb3:trpo", n_steps=64, batch_size=64, gamma=0.5, target_kl=0.03, normalize_obs=5.0)
    agent.learn(env, 3072)
    assert evaluate(agent, env, 16).mean() > 7
    save_agent(agent, tmp_path, action_set_hash="h", action_set_names="abcd")
    loaded = load_agent(tmp_path, expected_action_set_hash="h")
    assert loaded.normaliser.moments.count == agent.normaliser.moments.count == 3072 + 4
    assert loaded.normaliser.clip == 5.0
    assert evaluate(loaded, env, 16).tolist() == evaluate(agent, env, 16).tolist()


def test_dict_observations_and_normalised_ones():
    env = vector(Mixed, 2)
    for kwargs in ({}, {"normalize_obs": True, "clip_obs": 3.0}):
        agent = agent_for(env, "sb3:ppo", **SMALL["sb3:ppo"], **kwargs)
        agent.learn(env, 16)
        assert evaluate(agent, env, 2).shape == (2,)


def test_the_same_seed_twice_gives_the_same_weights():
    states = []
    for seed in (0, 0, 1):
        env = vector(Identity, 2)
        agent = agent_for(env, "sb3:ppo", seed, **SMALL["sb3:ppo"])
        agent.learn(env, 32)
        states.append(torch.cat([tensor.flatten() for tensor in agent.model.policy.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_nothing_is_left_in_the_temp_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = vector(Identity, 2)
    agent_for(env, "sb3:ppo", **SMALL["sb3:ppo"]).learn(env, 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("envs", "total", "steps"), [(16, 20_000, 128), (1, 1200, 1280), (8, 1_000_000, 256)])
def test_rollouts_fit_the_run_unless_the_user_says_otherwise(envs, total, steps):
    env = vector(Identity, 1)
    assert agent_for(env, "sb3:trpo" if envs == 1 else "sb3:ppo")._defaults(envs, total) == {"n_steps": steps}


def test_a_saved_model_is_sb3s_own_zip(tmp_path):
    env = vector(Identity, 1)
    agent_for(env, "sb3:a2c").save_files(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert {"data", "policy.pth", "pytorch_variables.pth"} <= set(archive.namelist())


def test_arguments_that_do_not_exist_are_named():
    env = vector(Identity, 1)
    with pytest.raises(
        ConfigError, match=r"^agent 'sb3:ppo' takes no argument 'lerning_rate'; did you mean 'learning_rate'\?"
    ):
        agent_for(env, "sb3:ppo", lerning_rate=1.0)
    with pytest.raises(ConfigError) as error:
        agent_for(env, "sb3:ppo", normalize_obs=-1.0)
    assert str(error.value) == "agent 'sb3:ppo': normalize_obs = -1.0; expected false, true or a clip above 0."
    with pytest.raises(ConfigError, match=r"^action space Box"):
        SB3Agent("sb3:ppo", env.single_observation_space, spaces.Box(0.0, 1.0))
    assert isinstance(make_agent("sb3:trpo", env.single_observation_space, env.single_action_space), SB3Agent)


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:maskable_ppo", "sb3:dqn"])
def test_probabilities_are_those_that_it_chooses_with(name):
    env = vector(Masked, 2)
    agent = make_agent(name, env.single_observation_space, env.single_action_space, seed=1)
    mask = np.array([[True, False, True, True], [False, True, True, False]])
    obs = np.array([1, 0])
    probs, _ = agent.probabilities(obs, action_mask=mask)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (probs[~mask] == 0).all()
    counts = np.zeros((2, 4))
    for draw in range(400):
        chosen = agent.act(obs, action_mask=mask, rng=[row_rng(0, draw, row) for row in range(2)])
        counts[[0, 1], chosen.actions] += 1
        if chosen.log_prob is not None:
            np.testing.assert_allclose(np.exp(chosen.log_prob), probs[[0, 1], chosen.actions], rtol=1e-5)
    np.testing.assert_allclose(counts / 400, probs, atol=0.1)
    mode = agent.act(obs, action_mask=mask, rng=[row_rng(0, row) for row in range(2)], deterministic=True).actions
    np.testing.assert_array_equal(agent.probabilities(obs, action_mask=mask, deterministic=True)[0], np.eye(4)[mode])
