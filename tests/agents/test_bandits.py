"""Bandits: what they learn, and that they learn it the same way twice."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from instructgym.agents import load_agent, make_agent, save_agent
from instructgym.agents.bandits import UCB1, EpsilonGreedy, LinearThompson, LinUCB, Thompson
from instructgym.agents.evaluation import evaluate
from instructgym.errors import BackendError, ConfigError

from .toy_envs import Identity, Masked, vector

SEEING = (LinUCB, LinearThompson)
BLIND = (EpsilonGreedy, UCB1, Thompson)


class Arms(gymnasium.Env):
    """Four arms that pay 1 with these probabilities, one pull an episode; an arm of -1 fails outside of the agent."""

    def __init__(self, *chances: float) -> None:
        self.chances = chances
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(len(chances))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"valid": True}

    def step(self, action):
        chance = self.chances[action]
        reward = float(self.np_random.random() < chance)
        return np.zeros(1, np.float32), reward, True, False, {"valid": chance >= 0}


def arms(*chances, envs=4):
    return vector(lambda: Arms(*chances), envs)


def made(cls, env, seed=0, **options):
    return cls(env.single_observation_space, env.single_action_space, seed, **options)


@pytest.mark.parametrize("cls", BLIND + SEEING)
def test_the_best_arm_is_found_and_mostly_pulled(cls):
    env = arms(0.2, 0.8, 0.4, 0.1)
    agent = made(cls, env)
    history = agent.learn(env, 1024)
    assert agent.act(np.zeros((3, 1)), action_mask=np.ones((3, 4), bool), rng=[]).actions.tolist() == [1, 1, 1]
    assert history[-1]["rollout/reward_mean"] > 0.6
    assert [row["time/total_timesteps"] for row in history] == [256, 512, 768, 1024]
    assert agent.num_steps == 1024


@pytest.mark.parametrize("cls", SEEING)
def test_a_context_is_seen(cls):
    env = vector(Identity, 4)
    agent = made(cls, env)
    agent.learn(env, 400)
    assert evaluate(agent, vector(Identity, 4), 8).tolist() == [8.0] * 8


@pytest.mark.parametrize("cls", BLIND + SEEING)
def test_an_illegal_action_is_never_taken(cls):
    env = vector(Masked, 4)
    agent = made(cls, env)
    agent.learn(env, 320)  # the env asserts it
    mask = np.array([[True, False, False, True], [False, True, False, False]])
    actions = agent.act(np.array([0, 2]), action_mask=mask, rng=[]).actions
    assert mask[[0, 1], actions].all()
    probabilities, _ = agent.probabilities(np.array([0, 2]), action_mask=mask)
    np.testing.assert_array_equal(probabilities, np.eye(4)[actions])


@pytest.mark.parametrize("cls", BLIND + SEEING)
def test_same_seed_same_bytes_and_stopping_changes_nothing(cls, tmp_path):
    def trained(stop):
        env = vector(Identity, 4)
        agent = make_agent(cls.name, env.single_observation_space, env.single_action_space, seed=3)
        agent.learn(env, 300)
        if stop:
            save_agent(agent, tmp_path / "stopped", action_set_hash="", action_set_names=())
            agent = load_agent(tmp_path / "stopped", expected_action_set_hash=None)
        agent.learn(vector(Identity, 4), 300)
        return agent

    for name, stop in (("one", False), ("two", False), ("three", True)):
        save_agent(trained(stop), tmp_path / name, action_set_hash="", action_set_names=())
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "three")]
    assert files[0] == files[1] == files[2]


def test_ridge_regression_is_kept_up_to_date_exactly():
    rng = np.random.default_rng(0)
    space = spaces.Box(-1, 1, (5,), np.float32)
    agent = LinUCB(space, spaces.Discrete(2), alpha=2.0, ridge=0.5)
    obs, actions, rewards = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(2, size=60), rng.normal(size=60)
    for part in np.split(np.arange(60), 4):
        agent.take(agent.contexts(obs[part], len(part)), actions[part], rewards[part])
    contexts = agent.contexts(obs, 60)
    for action in range(2):
        own = contexts[actions == action]
        gram = own.T @ own + 0.5 * np.eye(6)
        weights = np.linalg.solve(gram, own.T @ rewards[actions == action])
        deviations = np.sqrt(np.einsum("nd,de,ne->n", contexts, np.linalg.inv(gram), contexts))
        np.testing.assert_allclose(agent.means(contexts)[:, action], contexts @ weights)
        np.testing.assert_allclose(
            agent.explore(contexts, np.zeros((60, 2)), np.zeros(60))[:, action], contexts @ weights + 2 * deviations
        )


def test_thompson_draws_around_the_mean_as_wide_as_little_is_known():
    space = spaces.Box(-1, 1, (1,), np.float32)
    agent = LinearThompson(space, spaces.Discrete(1), scale=0.5, ridge=4.0)
    contexts = agent.contexts(np.full((3, 1), 1.0, np.float32), 3)
    worth = agent.explore(contexts, np.array([[0.5], [0.8413447460685429], [0.0]]), np.zeros(3))
    # x' A^-1 x = 2 / 4, so a deviation is 0.5 sqrt(0.5); a draw of 0 is finite.
    np.testing.assert_allclose(worth[:2, 0], [0.0, 0.5 * np.sqrt(0.5)], atol=1e-12)
    assert np.isfinite(worth[2, 0])


def test_upper_confidence_bounds_by_hand():
    agent = UCB1(spaces.Box(0, 1, (1,)), spaces.Discrete(3), c=2.0)
    nothing = np.zeros((1, 0))
    agent.take(np.zeros((4, 0)), np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 1.0, 3.0]))
    # Means 0.5 and 2, squares 0.5 + 2 over 2 degrees of freedom; the third was never tried.
    width = 2.0 * np.sqrt(1.25) * np.sqrt(2.0 * np.log(4) / 2)
    worth = agent.explore(nothing, np.zeros((1, 3)), np.zeros(1))
    np.testing.assert_allclose(worth, [[0.5 + width, 2.0 + width, np.inf]])


def test_epsilon_is_how_often_anything_is_tried():
    agent = EpsilonGreedy(spaces.Box(0, 1, (1,)), spaces.Discrete(3), epsilon=0.25)
    agent.take(np.zeros((3, 0)), np.arange(3), np.array([0.0, 5.0, 1.0]))
    draws, roll = np.array([[0.1, 0.2, 0.3]] * 2), np.array([0.2, 0.3])
    assert agent.explore(np.zeros((2, 0)), draws, roll).argmax(axis=1).tolist() == [2, 1]


def test_failed_steps_teach_nothing_and_nothing_else_is_an_error():
    agent = made(UCB1, arms(0.5, -1))
    agent.learn(arms(0.5, -1), 256)
    assert agent.state_dict()["counts"][1] == 0
    with pytest.raises(BackendError, match=r"^none of the last 256 transitions is valid: every call failed\.$"):
        made(UCB1, arms(-1, -1)).learn(arms(-1, -1), 256)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linucb", {"alpha": -1}, "agent 'linucb': alpha = -1; expected a number of 0 or more."),
        ("linucb", {"ridge": 0}, "agent 'linucb': ridge = 0; expected a number of 1e-06 or more."),
        ("epsilon_greedy", {"epsilon": 2}, "agent 'epsilon_greedy': epsilon = 2; expected a number from 0 to 1."),
        ("thompson", {"scale": "x"}, "agent 'thompson': scale = 'x'; expected a number of 0 or more."),
        ("ucb1", {"d": 1}, "agent 'ucb1' takes no argument 'd'; known: c."),
    ],
)
def test_bad_options_are_refused_with_words(name, options, message):
    with pytest.raises(ConfigError) as error:
        make_agent(name, spaces.Box(0, 1, (1,)), spaces.Discrete(2), kwargs=options)
    assert str(error.value) == message
