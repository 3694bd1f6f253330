"""The algorithms of Stable-Baselines3 and sb3-contrib as agents."""

import tempfile
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instructgym.agents import AGENTS, evaluate, load_agent, make_agent, row_rng, save_agent
from instructgym.agents.sb3 import SB3Agent
from instructgym.agents.sb3.algorithms import ALGORITHMS
from instructgym.errors import ConfigError

from .toy_envs import Identity, Masked, Mixed, vector

LSTM = {"lstm_hidden_size": 8}
SMALL = {
    "sb3:ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "sb3:a2c": {"n_steps": 8},
    "sb3:dqn": {"learning_starts": 10},
    "sb3:qrdqn": {"learning_starts": 10, "policy_kwargs": {"n_quantiles": 5}},
    "sb3:maskable_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 1},
    "sb3:recurrent_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 1, "policy_kwargs": LSTM},
    "sb3:trpo": {"n_steps": 8, "batch_size": 16},
    "sb3:ars": {"n_delta": 1},
}
FAST = {"gamma": 0.0, "learning_rate": 0.02, "net_arch": [16], "n_steps": 32}
VALUES = {"gamma": 0.0, "learning_rate": 0.01, "net_arch": [16], "learning_starts": 32, "gradient_steps": 4}
LEARNS = {
    "sb3:ppo": ({**FAST, "n_epochs": 4}, 768),
    "sb3:a2c": ({**FAST, "n_steps": 16}, 1024),
    "sb3:dqn": ({**VALUES, "batch_size": 64}, 480),
    "sb3:qrdqn": ({**VALUES, "batch_size": 64, "policy_kwargs": {"n_quantiles": 5}}, 640),
    "sb3:maskable_ppo": ({**FAST, "n_epochs": 4}, 768),
    "sb3:recurrent_ppo": ({**FAST, "n_epochs": 4, "policy_kwargs": LSTM}, 768),
    "sb3:trpo": ({**FAST, "target_kl": 0.1}, 1024),
    "sb3:ars": ({"n_delta": 8, "learning_rate": 0.2, "delta_std": 0.2}, 5000),
}
OBS = np.arange(4)
MASKS = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]], bool)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def env_for(name, envs=4):
    return vector(Masked if name == "sb3:maskable_ppo" else Identity, envs)


def agent_for(env, name, seed=0, **kwargs):
    return SB3Agent(name, env.single_observation_space, env.single_action_space, kwargs=kwargs, seed=seed)


def rngs(rows=4, draw=0):
    return [row_rng(0, draw, row) for row in range(rows)]


def weights(agent):
    return torch.cat([tensor.flatten().float() for tensor in agent.model.policy.state_dict().values()])


def saved(agent, folder):
    save_agent(agent, folder, action_set_hash="h", action_set_names="abcd")
    return load_agent(folder, expected_action_set_hash="h")


def test_every_algorithm_of_the_registry_is_here():
    assert {name for name in AGENTS if name.startswith("sb3:")} == set(ALGORITHMS) == set(SMALL) == set(LEARNS)


@pytest.mark.parametrize("name", LEARNS)
def test_each_algorithm_learns_identity(name):
    env = env_for(name)
    kwargs, steps = LEARNS[name]
    agent = agent_for(env, name, seed=1, **kwargs)
    agent.learn(env, steps)
    assert evaluate(agent, env, 8).mean() > 7


@pytest.mark.parametrize("name", SMALL)
def test_each_algorithm_saves_acts_the_same_and_goes_on(name, tmp_path):
    env = env_for(name)
    agent = agent_for(env, name, **{"net_arch": [8], **SMALL[name]})
    told = []
    history = agent.learn(env, 64, progress=lambda steps, metrics: told.append((steps, metrics)))
    assert agent.num_steps == told[-1][0] >= 64
    assert len(history) == len(told)
    assert "rollout/ep_rew_mean" in history[-1]
    assert any(key.startswith("train/") for key in history[-1])
    # wall-clock values are shown, and no part of a history
    assert "time/fps" in told[0][1]
    assert not any("fps" in key or "elapsed" in key for row in history for key in row)

    loaded = saved(agent, tmp_path / "agent")
    chosen = agent.act(OBS, action_mask=MASKS, rng=rngs())
    again = loaded.act(OBS, action_mask=MASKS, rng=rngs())
    assert chosen.actions.tolist() == again.actions.tolist()
    assert MASKS[OBS, chosen.actions].all()

    plain = agent.algorithm.load(tmp_path / "agent" / "model.zip", device="cpu")
    extra = {"action_masks": MASKS} if name == "sb3:maskable_ppo" else {}
    predicted, _ = plain.predict(OBS, deterministic=True, **extra)
    legal = MASKS if name == "sb3:maskable_ppo" else np.ones((4, 4), bool)
    assert predicted.tolist() == agent.act(OBS, action_mask=legal, rng=rngs(), deterministic=True).actions.tolist()

    loaded.learn(env_for(name, 2), 32)  # another number of envs
    assert loaded.num_steps >= agent.num_steps + 32


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_twice_and_stop_and_go_give_the_same_weights(name, tmp_path):
    def learned(seed, stop):
        env = env_for(name)
        agent = agent_for(env, name, seed, **{"net_arch": [8], **SMALL[name]})
        agent.learn(env, 64)
        if stop:
            agent = saved(agent, tmp_path / "agent")
        agent.learn(env_for(name), 64)
        return weights(agent)

    whole = learned(0, stop=False)
    assert torch.equal(whole, learned(0, stop=True))
    assert not torch.equal(whole, learned(1, stop=False))


@pytest.mark.parametrize("name", SMALL)
def test_probabilities_are_those_that_it_chooses_with(name):
    env = vector(Masked, 2)
    kwargs = {"net_arch": [8], "policy_kwargs": SMALL[name].get("policy_kwargs", {})}
    agent = make_agent(name, env.single_observation_space, env.single_action_space, seed=1, kwargs=kwargs)
    mask, obs = MASKS[[1, 3]], np.array([1, 0])
    probs, _ = agent.probabilities(obs, action_mask=mask)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (probs[~mask] == 0).all()
    counts = np.zeros((2, 4))
    for draw in range(200):
        chosen = agent.act(obs, action_mask=mask, rng=rngs(2, draw))
        counts[[0, 1], chosen.actions] += 1
        if chosen.log_prob is not None:
            np.testing.assert_allclose(np.exp(chosen.log_prob), probs[[0, 1], chosen.actions], rtol=1e-5)
    np.testing.assert_allclose(counts / 200, probs, atol=0.12)
    mode = agent.act(obs, action_mask=mask, rng=rngs(2), deterministic=True).actions
    np.testing.assert_array_equal(agent.probabilities(obs, action_mask=mask, deterministic=True)[0], np.eye(4)[mode])


def test_a_recurrent_state_is_carried_row_by_row_as_sb3_carries_it():
    env = env_for("sb3:recurrent_ppo")
    agent = agent_for(env, "sb3:recurrent_ppo", **SMALL["sb3:recurrent_ppo"])
    agent.learn(env, 32)
    shown = [np.array([0, 1]), np.array([2, 2]), np.array([3, 0])]
    every = np.ones((2, 4), bool)
    state, theirs, starts = None, None, np.ones(2)
    for obs in shown:
        probs, after = agent.probabilities(obs, action_mask=every, state=state)
        decision = agent.act(obs, action_mask=every, rng=rngs(2), state=state, deterministic=True)
        np.testing.assert_array_equal(decision.state, after)
        alone = agent.act(
            obs[1:], action_mask=every[1:], rng=rngs(1), state=None if state is None else state[1:], deterministic=True
        )
        np.testing.assert_allclose(alone.state[0], after[1], atol=1e-6)
        predicted, theirs = agent.model.predict(obs, state=theirs, episode_start=starts, deterministic=True)
        assert predicted.tolist() == decision.actions.tolist() == probs.argmax(axis=1).tolist()
        np.testing.assert_allclose(after[:, 0].transpose(1, 0, 2), theirs[0], atol=1e-6)
        state, starts = after, np.zeros(2)
    assert state.shape == (2, 4, 1, 8)
    first = agent.probabilities(shown[0], action_mask=every)[0]
    assert not np.allclose(agent.probabilities(shown[0], action_mask=every, state=state)[0], first, atol=1e-6)
    # zeros, which runners set where an episode starts, are the start
    np.testing.assert_array_equal(agent.probabilities(shown[0], action_mask=every, state=state * 0)[0], first)


def test_trpo_with_normalised_observations_learns_identity(tmp_path):
    env = vector(Identity, 4)
    agent = agent_for(env, "sb3:trpo", n_steps=64, gamma=0.5, target_kl=0.05, normalize_obs=5.0)
    agent.learn(env, 2048)
    assert evaluate(agent, env, 16).mean() > 7
    loaded = saved(agent, tmp_path)
    assert loaded.normaliser.moments.count == agent.normaliser.moments.count == 2048 + 4
    assert loaded.normaliser.clip == 5.0
    assert evaluate(loaded, env, 16).tolist() == evaluate(agent, env, 16).tolist()


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:qrdqn", "sb3:recurrent_ppo", "sb3:ars"])
def test_dict_observations_and_normalised_ones(name):
    env = vector(Mixed, 2)
    ars = name == "sb3:ars"
    for kwargs in ({"normalize_obs": True, "clip_obs": 3.0}, *([] if ars else [{}])):
        agent = agent_for(env, name, **SMALL[name], **kwargs)
        agent.learn(env, 16)
        assert evaluate(agent, env, 2).shape == (2,)
    if ars:
        with pytest.raises(ConfigError) as error:
            agent_for(env, name).learn(env, 16)
        assert str(error.value).startswith("agent 'sb3:ars' takes flat observations, got Dict(")
        assert str(error.value).endswith("Set its normalize_obs = true, which flattens them, or choose another agent.")


def test_ars_plays_an_episode_of_each_env_and_is_linear_unless_it_has_layers(tmp_path):
    env = vector(Identity, 4)
    agent = agent_for(env, "sb3:ars", n_delta=3)
    agent.learn(env, 1)
    assert agent.num_steps == 2 * 3 * 4 * 8  # candidates, envs, steps of an episode
    assert agent.model.n_eval_episodes == 4
    assert type(agent.model.policy).__name__ == "ARSLinearPolicy"
    assert torch.equal(saved(agent, tmp_path).model.weights, agent.model.weights)
    deep = agent_for(env, "sb3:ars", n_delta=1, net_arch=[8])
    assert deep.model.policy.net_arch == [8]


def test_the_transitions_of_dqn_are_saved_with_it_unless_the_user_says_otherwise(tmp_path):
    env = vector(Identity, 4)
    for keep, held in ((True, 16), (False, 0)):
        agent = agent_for(env, "sb3:dqn", learning_starts=10, save_replay_buffer=keep)
        agent.learn(env, 64)
        folder = tmp_path / str(keep)
        assert saved(agent, folder).model.replay_buffer.size() == held
        assert (folder / "replay_buffer.pkl").exists() is keep
    with pytest.raises(ConfigError, match="takes no argument 'save_replay_buffer'"):
        agent_for(env, "sb3:ppo", save_replay_buffer=True)


def test_nothing_is_left_in_the_temp_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = vector(Identity, 2)
    agent_for(env, "sb3:ppo", **SMALL["sb3:ppo"]).learn(env, 16)
    assert list(tmp_path.iterdir()) == []


def test_sb3s_own_tensorboard_log_holds_all_that_it_logs(tmp_path):
    env = vector(Identity, 2)
    agent = agent_for(env, "sb3:ppo", **SMALL["sb3:ppo"], tensorboard_log=str(tmp_path / "log"))
    agent.learn(env, 32)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    assert {"rollout/ep_rew_mean", "time/fps", "train/approx_kl"} <= set(log.Tags()["scalars"])
    assert log.Scalars("rollout/ep_rew_mean")[-1].step == 32


@pytest.mark.parametrize(("envs", "total", "steps"), [(16, 20_000, 128), (1, 1200, 1280), (8, 1_000_000, 256)])
def test_rollouts_fit_the_run_unless_the_user_says_otherwise(envs, total, steps):
    env = vector(Identity, 1)
    for name in ("sb3:trpo", "sb3:recurrent_ppo") if envs == 1 else ("sb3:ppo",):
        assert agent_for(env, name)._defaults(envs, total) == {"n_steps": steps}


@pytest.mark.parametrize("name", SMALL)
def test_it_takes_no_more_steps_than_it_says(name):
    env = env_for(name)
    agent = agent_for(env, name, **SMALL[name])
    for bound in (150, 100):
        steps, before = agent.steps_within(bound, 4), agent.num_steps
        assert 0.8 * bound < steps <= bound
        agent.learn(env, steps)
        if name != "sb3:ars":  # whole populations
            assert agent.num_steps - before == steps


def test_a_saved_model_is_sb3s_own_zip(tmp_path):
    env = vector(Identity, 1)
    agent_for(env, "sb3:a2c").save_files(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert {"data", "policy.pth", "pytorch_variables.pth"} <= set(archive.namelist())


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("sb3:ppo", {"lerning_rate": 1.0}, "takes no argument 'lerning_rate'; did you mean 'learning_rate'?"),
        ("sb3:qrdqn", {"learning_start": 1}, "takes no argument 'learning_start'; did you mean 'learning_starts'?"),
        ("sb3:ars", {"ndelta": 1}, "takes no argument 'ndelta'; did you mean 'n_delta'?"),
        (
            "sb3:recurrent_ppo",
            {"device": "cuda"},
            "takes no argument 'device': networks this small are no faster elsewhere than on the CPU.",
        ),
        (
            "sb3:ppo",
            {"verbose": 1},
            "takes no argument 'verbose': what it logs goes to the metrics, and nothing is printed.",
        ),
    ],
)
def test_arguments_that_do_not_exist_are_named(name, kwargs, said):
    env = vector(Identity, 1)
    with pytest.raises(ConfigError) as error:
        agent_for(env, name, **kwargs)
    assert str(error.value).startswith(f"agent '{name}' {said}")


def test_arguments_that_cannot_be_are_refused():
    env = vector(Identity, 1)
    with pytest.raises(ConfigError) as error:
        agent_for(env, "sb3:ppo", normalize_obs=-1.0)
    assert str(error.value) == "agent 'sb3:ppo': normalize_obs = -1.0; expected false, true or a clip above 0."
    with pytest.raises(ConfigError, match=r"^action space Box"):
        SB3Agent("sb3:ppo", env.single_observation_space, spaces.Box(0.0, 1.0))
    with pytest.raises(ConfigError, match=r"^unknown algorithm 'sb3:pp'; did you mean 'sb3:ppo'\?"):
        SB3Agent("sb3:pp", env.single_observation_space, env.single_action_space)
    assert isinstance(make_agent("sb3:trpo", env.single_observation_space, env.single_action_space), SB3Agent)
