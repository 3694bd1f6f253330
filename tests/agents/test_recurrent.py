from copy import deepcopy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from instructgym.agents import PPO, TRPO, PPOConfig, PPOLagrangian, evaluate, load_agent, save_agent
from instructgym.agents.policy_gradient.gru import RecurrentActorCritic
from instructgym.agents.policy_gradient.minibatches import Rows, Sequences
from instructgym.agents.rollout import Rollout
from instructgym.errors import ConfigError

from .toy_envs import Identity, Mixed, SendRecv, vector

GRU = {
    "network": "gru",
    "memory_size": 16,
    "net_arch": (16,),
    "n_steps": 32,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "n_epochs": 6,
    "gamma": 0.9,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recall(gymnasium.Env):
    """A number from 1 to 3 is shown at the start; naming it pays 1 three steps later, when 0 is shown."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.steps = int(self.np_random.integers(3)), 0
        return self.number + 1, {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 4
        return 0, float(over and action == self.number), over, False, {}


def agent_for(env, seed=0, make=PPO, **options):
    return make(env.single_observation_space, env.single_action_space, seed=seed, **{**GRU, **options})


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_what_was_seen_at_the_start_is_remembered_to_the_end():
    env = vector(Recall, 8)
    gru, mlp = agent_for(env), agent_for(env, network="mlp")
    for agent in (gru, mlp):
        agent.learn(env, 8_192)
    assert evaluate(gru, env, 48, seed=1).mean() > 0.95
    assert evaluate(mlp, env, 48, seed=1).mean() < 0.6


def test_the_network_says_the_same_in_numpy_in_torch_and_unrolled():
    network = RecurrentActorCritic(5, 3, (8,), 6, seed=0)
    network.flat.add_(0.02)
    obs = np.random.default_rng(0).normal(size=(4, 7, 5)).astype(np.float32)
    memory = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    logits, values = network.unroll(torch.from_numpy(obs), torch.from_numpy(memory))
    for time in range(7):
        seen = np.concatenate([obs[:, time], memory], axis=1)
        assert network.logits(seen) == pytest.approx(logits[:, time].detach().numpy(), abs=1e-5)
        assert network.values(seen) == pytest.approx(values[:, time].detach().numpy(), abs=1e-5)
        single = network.forward(torch.from_numpy(seen))
        assert single[0].detach().numpy() == pytest.approx(network.logits(seen), abs=1e-5)
        memory = network.next_memory(seen)


def test_the_cell_is_that_of_torch():
    network = RecurrentActorCritic(5, 3, (), 6, seed=3)
    network.flat.add_(0.05)
    cell = torch.nn.GRUCell(5, 6)
    names = {
        "weight_ih": "input.weight",
        "bias_ih": "input.bias",
        "weight_hh": "memory.weight",
        "bias_hh": "memory.bias",
    }
    with torch.no_grad():
        for theirs, ours in names.items():
            getattr(cell, theirs).copy_(network.parameters[f"gru.{ours}"])
    seen = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    expected = cell(torch.from_numpy(seen[:, :5]), torch.from_numpy(seen[:, 5:])).detach().numpy()
    assert network.next_memory(seen) == pytest.approx(expected, abs=1e-6)


def rollout_of(times, done):
    """One row a transition of len(times) envs, `done` after these (env, time); the observation is its number."""
    pairs = [(env, time) for time in range(max(times)) for env in range(len(times)) if time < times[env]]
    rollout = Rollout.empty(len(pairs), len(times), 1, 2, memory=1)
    for number, (env, time) in enumerate(pairs):
        rollout.rows[number], rollout.times[number] = env, time
        rollout.obs[number] = (number, 100 + number)
        rollout.actions[number] = number % 2
        rollout.terminated[number] = (env, time) in done
    return rollout, pairs


class Sums:
    """A network without weights: the memory is the sum of what was seen, and so is every output."""

    memory = 1

    def unroll(self, obs, memory):
        sums = memory[:, None, 0] + obs[..., 0].cumsum(dim=1)
        return sums[..., None].expand(-1, -1, 2), sums


def test_sequences_hold_each_learned_transition_once_and_start_from_the_memory_of_then():
    rollout, pairs = rollout_of((5, 3), {(0, 1), (1, 2)})
    rollout.learned[pairs.index((0, 3))] = False
    numbers = np.arange(len(pairs), dtype=np.float32)
    batches = Sequences(Sums(), rollout, [numbers], length=2)
    found = {}
    for batch in batches.epoch(torch.arange, 3):
        for value, column, action in zip(batch.values, batch.columns[:, 0], batch.actions, strict=True):
            found[pairs[int(column)]] = float(value)
            assert int(action) == int(column) % 2
    # numbers: (0,0) 0, (1,0) 1, (0,1) 2, (1,1) 3, (0,2) 4, (1,2) 5, (0,3) 6, (0,4) 7; memory before: 100 more
    assert found == {
        (0, 0): 100 + 0,
        (0, 1): 100 + 0 + 2,
        (0, 2): 104 + 4,
        (0, 4): 107 + 7,  # a piece of its own: the one before it was full
        (1, 0): 101 + 1,
        (1, 1): 101 + 1 + 3,
        (1, 2): 105 + 5,
    }


def test_minibatches_have_about_the_size_that_was_asked_for():
    rollout, _ = rollout_of((6,) * 10, set())
    sizes = [len(batch.actions) for batch in Sequences(Sums(), rollout, [rollout.rewards], 3).epoch(torch.arange, 12)]
    assert sizes == [12] * 5


def test_rows_and_sequences_of_one_step_give_the_same_loss():
    env = vector(Identity, 4)
    agent = agent_for(env, sequence_length=1)
    seen = []
    agent.learn(env, 128, on_rollout_end=seen.append)
    rollout = seen[0]
    columns = [rollout.log_probs, rollout.rewards, rollout.values]
    one, other = (
        next(iter(kind.epoch(torch.arange, len(rollout))))
        for kind in (Rows(agent.network, rollout, columns), Sequences(agent.network, rollout, columns, 1))
    )
    by_row = {tuple(row.tolist()): float(value) for row, value in zip(one.columns, one.values.detach(), strict=True)}
    by_piece = {
        tuple(row.tolist()): float(value) for row, value in zip(other.columns, other.values.detach(), strict=True)
    }
    assert by_row == pytest.approx(by_piece, abs=1e-6)


def test_the_memory_of_a_rollout_is_what_acting_had_and_0_where_an_episode_starts():
    env = vector(Recall, 3)
    agent = agent_for(env)
    seen = []
    agent.learn(env, 96, on_rollout_end=lambda rollout: seen.append(deepcopy(rollout)))
    rollout = seen[0]
    memory = rollout.grid(rollout.obs[:, agent.flatten.dim :])
    assert (memory[0::4] == 0).all()
    assert (memory[1::4] != 0).any(axis=2).all()


def test_equal_seeds_give_equal_bytes_and_stopping_changes_nothing(tmp_path):
    def learned(stop):
        env = vector(Mixed, 4)
        agent = agent_for(env, normalize_obs=5.0, normalize_reward=True)
        if stop:
            agent.learn(env, 256)
            save_agent(agent, tmp_path, action_set_hash="0", action_set_names=("a", "b", "c"))
            agent = load_agent(tmp_path, expected_action_set_hash="0")
            agent.schedule_end = 512
            agent.learn(vector(Mixed, 4), 256)
        else:
            agent.schedule_end = 512
            agent.learn(env, 512, segment_steps=256)
        return agent.state_dict()

    assert same(learned(False), learned(False))
    assert same(learned(False), learned(True))


def test_all_envs_awaited_is_the_synchronous_collector():
    def learned(**options):
        env = SendRecv(Recall, 4, lambda row, sent: 0.0)
        agent = agent_for(env, **options)
        agent.learn(env, 256)
        return agent.state_dict()

    assert same(learned(), learned(collect="async", min_ready=4))


def test_ppo_lagrangian_takes_it_and_trpo_refuses_it():
    env = vector(Identity, 2)
    agent = agent_for(env, make=PPOLagrangian, cost="calls", cost_limit=1.0)
    assert agent.cost_critic.values(np.zeros((2, 4 + 16), np.float32)).shape == (2,)
    with pytest.raises(ConfigError) as caught:
        TRPO(env.single_observation_space, env.single_action_space, network="gru")
    assert str(caught.value) == (
        "trpo: network = 'gru'; expected 'mlp' or 'cross_attention': its step does not go through time."
    )


def test_wrong_options_are_refused_in_words():
    with pytest.raises(ConfigError) as caught:
        PPOConfig(network="lstm")
    assert str(caught.value) == "ppo: network = 'lstm'; expected 'mlp', 'gru' or 'cross_attention'."
    with pytest.raises(ConfigError) as caught:
        PPOConfig(network="gru", memory_size=0)
    assert str(caught.value) == "ppo: memory_size = 0; expected a whole number of at least 1."
