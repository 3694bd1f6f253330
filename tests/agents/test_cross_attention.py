import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from instructgym.agents import PPO, Task, evaluate, load_agent, make_agent, save_agent
from instructgym.agents.policy_gradient.cross_attention import ObservationParts
from instructgym.errors import ActionSetError, ConfigError

from .toy_envs import vector

SEVEN = np.array([[np.cos(angle), np.sin(angle)] for angle in np.linspace(0, 2 * np.pi, 8)[:7]], np.float32)
SIX = np.delete(SEVEN, 3, axis=0)
OPTIONS = {
    "network": "cross_attention",
    "net_arch": (32,),
    "attention_size": 32,
    "n_steps": 64,
    "batch_size": 128,
    "learning_rate": 5e-3,
    "gamma": 0.5,
    "ent_coef": 0.01,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Directions(gymnasium.Env):
    """A direction is shown; what is chosen pays the cosine to it, and nothing if it was chosen the step before."""

    def __init__(self, features):
        self.features = features
        actions = len(features)
        self.action_space = spaces.Discrete(actions)
        self.observation_space = spaces.Dict(
            {"direction": spaces.Box(-1.0, 1.0, (2,), np.float32), "last": spaces.Discrete(actions + 1)}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last, self.steps = len(self.features), 0
        return self._show(), {}

    def step(self, action):
        reward = float(self.features[action] @ self.shown) * (action != self.last)
        self.last = int(action)
        self.steps += 1
        return self._show(), reward, self.steps == 6, False, {}

    def _show(self):
        angle = self.np_random.uniform(0, 2 * np.pi)
        self.shown = np.array([np.cos(angle), np.sin(angle)], np.float32)
        return {"direction": self.shown, "last": np.int64(self.last)}


def directions(features, envs=8):
    return vector(lambda: Directions(features), envs)


def agent_for(features, seed=0, **options):
    env = directions(features)
    agent = make_agent(
        "ppo",
        env.single_observation_space,
        env.single_action_space,
        kwargs={**OPTIONS, **options},
        seed=seed,
        action_features=features,
    )
    return agent, env


def task_of(features):
    env = directions(features, 1)
    return Task(env.single_observation_space, env.single_action_space, tuple("abcdefg"[: len(features)]), features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    for name, features in (("six", SIX), ("seven", SEVEN)):
        agent, env = agent_for(features)
        agent.learn(env, 6_144)
        save_agent(agent, folder / name, action_set_hash=name, action_set_names=tuple("abcdefg"[: len(features)]))
    return folder


def test_a_policy_trained_on_six_operations_uses_a_seventh_where_it_pays(saved):
    full = load_agent(saved / "seven", expected_action_set_hash="seven")
    moved = load_agent(saved / "six", expected_action_set_hash="seven", task=task_of(SEVEN))
    env = directions(SEVEN)
    reached, possible = (evaluate(agent, env, 64, seed=5).mean() for agent in (moved, full))
    assert possible > 4.5
    assert reached >= 0.9 * possible
    angles = np.linspace(0, 2 * np.pi, 57)[:56]
    shown = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    obs = {"direction": shown, "last": np.full(56, 7)}
    chosen = moved.act(obs, action_mask=np.ones((56, 7), bool), rng=[None] * 56, deterministic=True).actions
    best = (shown @ SEVEN.T).argmax(axis=1)
    assert (chosen[best == 3] == 3).mean() > 0.7
    assert (chosen[best != 3] == 3).mean() < 0.1


def test_without_a_task_another_action_set_is_refused(saved):
    with pytest.raises(ActionSetError) as caught:
        load_agent(saved / "six", expected_action_set_hash="seven", expected_action_set_names=tuple("abcdefg"))
    assert str(caught.value) == (
        f"the agent in {saved / 'six'} was saved for action set six (a, b, c, d, e, f), this run has seven "
        "(a, b, c, d, e, f, g). Run with the set that it was saved for, or train an agent for this one."
    )


def test_a_moved_agent_learns_on_and_is_saved_for_its_new_set(saved, tmp_path):
    moved = load_agent(saved / "six", expected_action_set_hash="seven", task=task_of(SEVEN))
    moved.learn(directions(SEVEN), 1_024)
    save_agent(moved, tmp_path, action_set_hash="seven", action_set_names=tuple("abcdefg"))
    again = load_agent(tmp_path, expected_action_set_hash="seven")
    obs = {"direction": SEVEN, "last": np.full(7, 7)}
    one, other = (agent.probabilities(obs, action_mask=np.ones((7, 7), bool))[0] for agent in (moved, again))
    assert np.array_equal(one, other)


def test_the_order_of_the_operations_means_nothing(saved):
    order = np.array([5, 2, 6, 0, 3, 1, 4])
    agents = [
        load_agent(saved / "six", expected_action_set_hash="seven", task=task_of(features))
        for features in (SEVEN, SEVEN[order])
    ]
    last = np.arange(7)
    obs = [{"direction": SEVEN, "last": last}, {"direction": SEVEN, "last": np.argsort(order)[last]}]
    plain, turned = (
        agent.probabilities(seen, action_mask=np.ones((7, 7), bool))[0] for agent, seen in zip(agents, obs, strict=True)
    )
    assert turned == pytest.approx(plain[:, order], abs=1e-6)


def test_equal_seeds_give_equal_weights():
    states = []
    for seed in (0, 0, 1):
        agent, env = agent_for(SIX, seed)
        agent.learn(env, 512)
        states.append(agent.state_dict())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    assert not np.array_equal(states[0]["network.query.weight"], states[2]["network.query.weight"])


def test_trpo_learns_with_it():
    env = directions(SIX)
    options = {name: value for name, value in OPTIONS.items() if name not in ("ent_coef", "learning_rate")}
    agent = make_agent(
        "trpo", env.single_observation_space, env.single_action_space, kwargs=options, action_features=SIX
    )
    history = agent.learn(env, 4_096)
    assert history[-1]["rollout/ep_rew_mean"] > history[0]["rollout/ep_rew_mean"] + 1


def test_parts_of_the_state_are_told_from_those_of_the_operations():
    space = spaces.Dict(
        {
            "counts": spaces.Box(0, 1, (3,)),
            "embedding": spaces.Box(-1, 1, (4,)),
            "last": spaces.Discrete(4),
            "surface": spaces.MultiBinary(2),
            "used": spaces.MultiBinary(3),
        }
    )
    parts = ObservationParts.of(space, 3)
    assert parts.own == (slice(0, 3), slice(7, 10), slice(13, 16))
    assert parts.state == (slice(3, 7), slice(11, 13))


@pytest.mark.parametrize(
    ("space", "features", "options", "message"),
    [
        (
            spaces.Box(0, 1, (4,)),
            SIX,
            {},
            "network 'cross_attention' got an observation Box; expected a Dict, whose parts say what is of the state "
            "and what of an operation. In a run: env.observation = 'dict'.",
        ),
        (
            spaces.Dict({"used": spaces.MultiBinary(6)}),
            SIX,
            {},
            "network 'cross_attention': no part of the observation is of the state; expected one.",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (4,))}),
            None,
            {},
            "ppo: network = 'cross_attention' knows its operations by their features, got none; pass action_features, "
            "float32 (6, E).",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (4,))}),
            SEVEN,
            {},
            "ppo: action_features of shape (7, 2); expected (6, E).",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (4,))}),
            SIX,
            {"normalize_obs": True},
            "ppo: normalize_obs = True; expected false, since network = 'cross_attention' has a column an operation.",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (4,))}),
            SIX,
            {"attention_size": 6},
            "ppo: attention_size = 6; expected a multiple of 4 above 0.",
        ),
    ],
)
def test_what_it_cannot_work_with_is_refused_in_words(space, features, options, message):
    with pytest.raises(ConfigError) as caught:
        PPO(space, spaces.Discrete(6), network="cross_attention", action_features=features, **options)
    assert str(caught.value) == message
