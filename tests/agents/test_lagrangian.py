import contextlib

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from instructgym.agents import AGENTS, PPO, AgentInfo, PPOConfig, load_agent, make_agent, save_agent
from instructgym.agents.policy_gradient import PPOLagrangian, PPOLagrangianConfig
from instructgym.agents.policy_gradient.costs import read_costs
from instructgym.agents.policy_gradient.lagrangian import CostRollout, Multiplier
from instructgym.agents.policy_gradient.networks import masked_probs
from instructgym.agents.rollout import Rollout
from instructgym.envs import InstructionEvolutionVectorEnv
from instructgym.errors import ConfigError, UsageError

from .toy_envs import Horizon, Identity, Priced, SendRecv, heavy_tailed, vector

FAST = {"n_steps": 16, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-2, "net_arch": (16,), "gamma": 1.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner_for(env, seed=0, **options):
    config = PPOLagrangianConfig(**{**FAST, "cost": "calls", "cost_limit": 1.5, **options})
    return PPOLagrangian(env.single_observation_space, env.single_action_space, config, seed)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# -------------------------------------------------------------- the constraint


def exact(agent):
    """Mean cost and return an episode of a policy in `Priced`, in closed form."""
    poor, good = masked_probs(agent.network.logits(np.eye(2, dtype=np.float32)), None)[:, 1]
    return 2 * (poor + good), 2 * good + 0.3 * 2 * poor


@pytest.mark.parametrize(("limit", "price"), [(1.5, 1.0), (3.0, 0.3)])
def test_meets_the_limit_within_five_percent_and_loses_no_more_than_the_optimum(limit, price):
    """The optimum under the limit is a mixture at one of the two kinds of steps; the multiplier is the price there."""
    env = Priced(128)
    learner = learner_for(env, cost_limit=limit, lr_schedule="linear", n_epochs=2, batch_size=512)
    history = learner.learn(env, 2048 * 50)
    late = history[-15:]
    cost, reward = exact(learner)
    assert cost == pytest.approx(limit, rel=0.05)
    assert np.mean([row["rollout/ep_cost_mean"] for row in late]) == pytest.approx(limit, rel=0.05)
    assert reward >= Priced.best(cost) - 0.02  # of what its own cost can buy
    assert reward >= Priced.best(limit) - 0.08
    assert np.mean([row["train/lagrange_multiplier"] for row in late]) == pytest.approx(price, rel=0.2)


def test_a_limit_that_binds_nothing_costs_nothing():
    env = Priced(128)
    learner = learner_for(env, cost_limit=4.5, lambda_init=0.3, n_epochs=2)
    history = learner.learn(env, 2048 * 12)
    assert exact(learner)[1] > 2.55  # of 2.6
    assert history[-1]["train/lagrange_multiplier"] == 0.0


def test_a_limit_of_zero_is_kept_as_far_as_a_random_policy_can():
    env = Priced(128)
    learner = learner_for(env, cost_limit=0.0)
    learner.learn(env, 2048 * 15)
    assert exact(learner)[0] < 0.1


def test_with_a_price_of_zero_the_policy_is_that_of_ppo():
    env = Priced(8)
    constrained = learner_for(env, cost_limit=9.0, normalize_advantage=False)
    plain = PPO(
        env.single_observation_space,
        env.single_action_space,
        PPOConfig(**{**FAST, "normalize_advantage": False}),
        0,
    )
    constrained.learn(env, 512), plain.learn(Priced(8), 512)
    assert same(constrained.network.state_dict(), plain.network.state_dict())


# -------------------------------------------------------------- the multiplier


def test_the_multiplier_by_hand():
    ascent = Multiplier(limit=2.0, unit=2.0, start=0.1, integral_gain=0.5, gain=0.0, rise_gain=0.0)
    values = []
    for cost in (3.0, 2.0, 0.0, 0.0, 4.0):
        ascent.update(cost)
        values.append(ascent.value)
    assert values == pytest.approx([0.35, 0.35, 0.0, 0.0, 0.5])

    pid = Multiplier(limit=2.0, unit=2.0, start=0.0, integral_gain=0.5, gain=1.0, rise_gain=2.0)
    values = []
    for cost in (3.0, 4.0, 3.0, 1.0):
        pid.update(cost)
        values.append(pid.value)
    # integral 0.25, 0.75, 1.0, 0.75; error 0.5, 1.0, 0.5, -0.5; rise -, 0.5, none, none
    assert values == pytest.approx([0.75, 2.75, 1.5, 0.25])


def test_cost_advantages_by_hand():
    rollout = CostRollout.empty(3, 1, 1, 2)
    rollout.times[:] = [0, 1, 2]
    rollout.costs[:] = [1.0, 0.0, 2.0]
    rollout.cost_values[:] = [0.5, 1.0, 0.0]
    rollout.next_cost_values[:] = [1.0, 9.0, 4.0]
    rollout.terminated[1] = True
    # delta: 1 + 0.5 * 1 - 0.5 = 1; 0 - 1 = -1 (ended); 2 + 0.5 * 4 - 0 = 4
    assert rollout.cost_advantages(0.5, 0.8) == pytest.approx([1.0 - 0.4, -1.0, 4.0])


def test_what_the_policy_climbs_by_hand():
    env = Priced(1)
    rollout = CostRollout.empty(2, 1, 2, 2)
    rollout.times[:] = [0, 1]
    rollout.costs[:] = [3.0, 0.0]
    rollout.terminated[:] = True
    gained = np.array([1.0, -1.0], np.float32)
    plain = learner_for(env, normalize_advantage=False, lambda_init=0.5)
    assert plain.policy_advantages(rollout, gained) == pytest.approx([(1.0 - 1.5) / 1.5, -1.0 / 1.5])
    scaled = learner_for(env, lambda_init=0.5)
    spread = np.sqrt(1.0 + 0.25 * 2.25)
    assert scaled.policy_advantages(rollout, gained) == pytest.approx([-0.5 / spread, -1.0 / spread])


def test_a_rollout_without_costs_is_refused():
    env = Priced(2)
    with pytest.raises(UsageError) as error:
        learner_for(env).update(Rollout.empty(4, 2, 2, 2))
    assert str(error.value) == "ppo_lagrangian got a Rollout; expected a CostRollout, which has costs."


# ------------------------------------------------------------------- the costs


class Charging(gymnasium.Env):
    """Two or three steps an episode by turns; the info tells number and usage of the step."""

    def __init__(self):
        self.observation_space = spaces.Discrete(2)
        self.action_space = spaces.Discrete(2)
        self.length = 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.length = 0, 5 - self.length
        return 0, {"calls": 100}

    def step(self, action):
        self.number += 1
        info = {"calls": self.number, "usage": {"read": 10.0 * self.number, "written": 1.0}}
        return 1, 1.0, self.number == self.length, False, info


class Breaking(Charging):
    """The second step of an episode of three fails."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        failed = (self.length, self.number) == (3, 2)
        return obs, reward, terminated, failed, {"valid": not failed} if failed else info


def test_an_episode_that_a_failed_call_cut_has_no_cost():
    env = vector(Breaking, 2)
    rollouts = []
    history = learner_for(env, n_steps=8).learn(env, 16, on_rollout_end=rollouts.append)
    costs, valid = rollouts[0].costs * 1.5, rollouts[0].valid
    assert costs[rollouts[0].rows == 0] == pytest.approx([1, 2, 1, 0, 1, 2, 1, 0])
    assert (costs[~valid] == 0).all()
    assert history[0]["rollout/ep_cost_mean"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"calls": 1.0}, [[1, 1], [2, 2], [1, 1], [2, 2], [3, 3]]),
        ({"usage/read": 0.1, "usage/written": 2.0}, [[3, 3], [4, 4], [3, 3], [4, 4], [5, 5]]),
    ],
)
def test_costs_are_those_of_the_step_and_not_of_the_reset_after_it(weights, expected):
    env = vector(Charging, 2)
    env.reset(seed=0)
    costs = []
    for _ in range(5):
        *_, terminated, truncated, infos = env.step(np.zeros(2, int))
        costs.append(read_costs(infos, terminated | truncated, weights).tolist())
    assert costs == expected


def test_a_cost_that_is_not_there_is_an_error_that_says_what_is():
    env = vector(Charging, 2)
    learner = learner_for(env, cost="tokens")
    with pytest.raises(UsageError) as error:
        learner.learn(env, 64)
    assert str(error.value) == (
        "the infos hold no cost 'tokens' for 2 of 2 rows; expected a finite number a step. Numbers there are: calls, "
        "usage/read, usage/written."
    )
    with pytest.raises(UsageError, match=r"no cost 'calls' for 4 of 4 rows; .* Numbers there are: none\."):
        learner_for(vector(Horizon, 4)).learn(vector(Horizon, 4), 64)


def test_a_cost_that_is_no_number_is_an_error_unless_the_call_failed():
    done = np.array([False, False, True])
    infos = {
        "calls": np.array([1.0, np.nan, 7.0]),
        "valid": np.array([True, False, True]),
        "final_info": {"calls": np.array([0.0, 0.0, 2.0]), "_calls": done},
    }
    assert read_costs(infos, done, {"calls": 2.0}).tolist() == [2.0, 0.0, 4.0]
    with pytest.raises(UsageError, match="no cost 'calls' for 1 of 3 rows"):
        read_costs({**infos, "valid": np.ones(3, bool)}, done, {"calls": 2.0})


def test_calls_and_tokens_of_the_environment_are_costs():
    with contextlib.closing(InstructionEvolutionVectorEnv(4, reward="novelty", horizon=3, with_stop=True)) as env:
        calls = learner_for(env, n_steps=6, cost_limit=2.0)
        history = calls.learn(env, 96)
        assert 0.5 < history[-1]["rollout/ep_cost_mean"] <= 3.0
        weights = {"usage/prompt_tokens": 1.0, "usage/completion_tokens": 1.0}
        tokens = learner_for(env, n_steps=6, cost=weights, cost_limit=500.0)
        assert tokens.learn(env, 48)[-1]["rollout/ep_cost_mean"] > 20


# ------------------------------------------------------------------- and as PPO


def test_the_same_seed_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    made_by = "instructgym.agents.policy_gradient.lagrangian:PPOLagrangian"
    monkeypatch.setitem(AGENTS, "ppo_lagrangian", AgentInfo("ppo_lagrangian", "ours", learns=True, made_by=made_by))
    weights = {"calls": 0.5, "usage/read": 0.1}

    def written(folder, seed):
        env = Priced(8)
        learner = make_agent(
            "ppo_lagrangian",
            env.single_observation_space,
            env.single_action_space,
            kwargs={**FAST, "cost": weights, "cost_limit": 1.0},
            seed=seed,
        )
        learner.learn(env, 512)
        save_agent(learner, tmp_path / folder, action_set_hash="00", action_set_names=("a", "b"))
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    first = written("one", 3)
    assert written("two", 3) == first
    assert written("three", 4)["weights.safetensors"] != first["weights.safetensors"]
    loaded = load_agent(tmp_path / "one", expected_action_set_hash="00")
    assert (loaded.config.cost, loaded.config.cost_limit) == (weights, 1.0)
    assert loaded.multiplier.value > 0


def test_stopping_at_a_segments_end_and_going_on_changes_nothing():
    options = {"normalize_obs": True, "normalize_reward": True, "lr_schedule": "linear", "lambda_kd": 0.5}
    undisturbed = learner_for(Priced(8), 3, **options)
    saved = []
    undisturbed.learn(Priced(8), 768, segment_steps=256, on_segment_end=lambda: saved.append(undisturbed.state_dict()))
    assert len(saved) == 2
    for state in saved:
        resumed = learner_for(Priced(8), 3, **options)
        resumed.load_state_dict(state)
        resumed.learn(Priced(8), 768 - resumed.num_steps, segment_steps=256)
        assert same(resumed.state_dict(), undisturbed.state_dict())


def test_asynchronous_collection_counts_the_cost_of_every_episode_once():
    env = SendRecv(Charging, 6, heavy_tailed(0))
    learner = learner_for(env, collect="async", min_ready=1, n_steps=5, n_epochs=1)
    rollouts = []
    learner.learn(env, 300, on_rollout_end=rollouts.append)
    costs = np.zeros((6, 300))
    taken = np.zeros(6, int)
    for rollout in rollouts:
        for row, cost in zip(rollout.rows, rollout.costs * 1.5, strict=True):
            costs[row, taken[row]] = cost
            taken[row] += 1
    for row, count in zip(costs, taken, strict=True):  # 1, 2, then 1, 2, 3, then 1, 2 ...
        assert row[:count] == pytest.approx(np.resize([1, 2, 1, 2, 3], count))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": ""}, "cost = ''; expected the name of a number in the infos, or weights by such names."),
        ({"cost": {}}, "cost = {}; expected the name of a number in the infos, or weights by such names."),
        (
            {"cost": {"calls": "one"}},
            "cost = {'calls': 'one'}; expected the name of a number in the infos, or weights by such names.",
        ),
        ({"cost_limit": None}, "cost_limit = None; expected a finite number of at least 0."),
        ({"cost_limit": float("inf")}, "cost_limit = inf; expected a finite number of at least 0."),
        ({"lambda_lr": -1.0}, "lambda_lr = -1.0; expected a number of at least 0."),
        ({"lambda_kd": "no"}, "lambda_kd = 'no'; expected a number of at least 0."),
        ({"cost_gamma": 2.0}, "cost_gamma = 2.0; expected a number from 0 to 1, or none."),
        ({"clip_range": 0}, "clip_range = 0; expected a number above 0."),
    ],
)
def test_config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigError) as error:
        PPOLagrangianConfig(**{"cost": "calls", "cost_limit": 2.0, **options})
    assert str(error.value) == f"ppo_lagrangian: {message}"


def test_cost_and_limit_have_to_be_given():
    env = vector(Identity, 1)
    with pytest.raises(ConfigError, match=r"^ppo_lagrangian: cost = ''; expected the name"):
        PPOLagrangian(env.single_observation_space, env.single_action_space)
