from copy import deepcopy

import numpy as np
import pytest
import torch
from gymnasium import spaces

from instructgym.agents import PPO, PPOConfig, evaluate, row_rng
from instructgym.agents.policy_gradient.minibatches import Minibatch
from instructgym.errors import BackendError, ConfigError, UsageError

from .toy_envs import Horizon, Identity, Masked, Mixed, Scripted, vector

FAST = {"n_steps": 16, "batch_size": 64, "n_epochs": 6, "learning_rate": 5e-3, "net_arch": (32,), "gamma": 0.5}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learned(env, steps, seed=0, **options):
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**{**FAST, **options}), seed)
    return ppo, ppo.learn(env, steps)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", [{}, {"normalize_obs": 5.0, "normalize_reward": True, "ent_coef": 0.01}])
def test_learns_identity(options):
    env = vector(Identity, 8)
    ppo, history = learned(env, 4096, **options)
    assert evaluate(ppo, env, 32).mean() > 7.5
    assert history[0]["rollout/ep_rew_mean"] < 4 < history[-1]["rollout/ep_rew_mean"]


def test_learns_among_legal_actions_and_never_takes_another():
    env = vector(Masked, 8)  # it raises if an illegal action is taken
    ppo, _ = learned(env, 4096)
    assert evaluate(ppo, env, 32).mean() > 7.5
    assert evaluate(ppo, env, 32, deterministic=False).mean() > 6.5


def test_learns_from_a_dict_of_discrete_bits_and_box():
    env = vector(Mixed, 8)
    ppo, _ = learned(env, 2048)
    assert evaluate(ppo, env, 32).mean() > 3.8


def test_a_horizon_in_the_observation_is_learned_as_termination_and_not_as_truncation():
    """As truncation the value of a state that is never trained enters, and `stop` looks worse than it is."""
    options = {"gamma": 0.99, "n_steps": 32}
    as_termination, _ = learned(vector(Horizon, 8), 8192, **options)
    as_truncation, _ = learned(vector(lambda: Horizon(truncates=True), 8), 8192, **options)
    assert evaluate(as_termination, vector(Horizon, 8), 8).mean() == pytest.approx(1.1)
    assert evaluate(as_truncation, vector(Horizon, 8), 8).mean() == pytest.approx(0.8)


def test_the_same_seed_twice_gives_the_same_weights_and_history():
    first, history = learned(vector(Masked, 4), 512, normalize_obs=True, ent_coef=0.01)
    second, again = learned(vector(Masked, 4), 512, normalize_obs=True, ent_coef=0.01)
    other, _ = learned(vector(Masked, 4), 512, seed=1, normalize_obs=True, ent_coef=0.01)
    assert same(first.state_dict(), second.state_dict())
    assert history == again
    assert not same(first.state_dict(), other.state_dict())


def test_stopping_at_a_segments_end_and_going_on_changes_nothing():
    options = PPOConfig(**FAST, normalize_obs=True, normalize_reward=True, lr_schedule="linear")

    def fresh():
        env = vector(Masked, 4)
        return env, PPO(env.single_observation_space, env.single_action_space, options, 3)

    env, undisturbed = fresh()
    saved = []
    undisturbed.learn(env, 768, segment_steps=256, on_segment_end=lambda: saved.append(undisturbed.state_dict()))
    assert len(saved) == 2
    for state in saved:
        env, resumed = fresh()
        resumed.load_state_dict(state)
        resumed.learn(env, 768 - resumed.num_steps, segment_steps=256)
        assert same(resumed.state_dict(), undisturbed.state_dict())


def test_acting_row_by_row_equals_what_the_rollout_drew():
    """`act` with `row_rng` and the vectorised draws of `learn` are one mechanism."""
    env = vector(Masked, 4)
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**FAST), 5)
    rollouts = []
    with pytest.raises(InterruptedError):
        ppo.learn(env, 64, on_rollout_end=lambda rollout: (rollouts.append(rollout), stop()))
    rollout = rollouts[0]
    for t in range(8):  # the length of an episode; episodes are counted from 1
        now = rollout.times == t
        decision = ppo.act(
            rollout.obs[now].argmax(axis=1),
            action_mask=rollout.masks[now],
            rng=[row_rng(5, env_index, 1, t) for env_index in rollout.rows[now].tolist()],
        )
        assert decision.actions.tolist() == rollout.actions[now].tolist()
        assert decision.log_prob == pytest.approx(rollout.log_probs[now], abs=1e-6)
        assert decision.value == pytest.approx(rollout.values[now], abs=1e-6)


def stop():
    raise InterruptedError


def collect(script, **options):
    env = Scripted(script)
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**{**FAST, "n_steps": 4, **options}))
    rollouts = []
    history = ppo.learn(env, 4 * env.num_envs, on_rollout_end=rollouts.append)
    return ppo, rollouts[0], history


def test_the_rollout_holds_the_values_of_what_truly_followed():
    ppo, rollout, history = collect(["go go go", "cut end fail", "go go go", "go go go"])

    def value(row, step, resets):
        return ppo_values[(row, step, resets)]

    fresh = PPO(ppo.obs_space, ppo.action_space, ppo.config)
    states = [(row, step, resets) for row in range(3) for step in range(4) for resets in range(2)]
    ppo_values = dict(zip(states, fresh.network.values(np.array(states, np.float32)), strict=True))
    # row 0 is truncated at its second step: the final observation is (0, 2, 0), not the reset (0, 0, 1)
    next_values, valid = rollout.grid(rollout.next_values), rollout.grid(rollout.valid)
    assert next_values[:, 0] == pytest.approx(
        [value(0, 1, 0), value(0, 2, 0), value(0, 1, 1), value(0, 2, 1)], abs=1e-6
    )
    assert rollout.grid(rollout.terminated)[:, 1].tolist() == [False, True, False, False]
    # row 2's call fails in the state (2, 1, 0): the row before bootstraps from that state's value
    assert valid[:, 2].tolist() == [True, False, True, True]
    assert next_values[0, 2] == pytest.approx(value(2, 1, 0), abs=1e-6)
    assert rollout.grid(rollout.masks)[:, 0].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert len(rollout.infos) == 4
    assert history[0]["rollout/valid"] == pytest.approx(11 / 12)
    # the episode that the failed call cut is not reported: 1 + 2 by rows 0 and 1
    assert history[0]["rollout/ep_rew_mean"] == 3.0


def test_what_an_invalid_row_holds_does_not_reach_the_weights():
    ppo, rollout, _ = collect(["go go", "go fail", "end go", "go go"], n_epochs=2)

    def updated(change):
        learner = PPO(ppo.obs_space, ppo.action_space, ppo.config)
        copy = deepcopy(rollout)
        change(copy)
        learner.update(copy)
        return learner.state_dict()

    def spoil(copy):
        failed = np.flatnonzero(~copy.valid)
        assert (copy.rows[failed].tolist(), copy.times[failed].tolist()) == ([1], [1])
        for array in (copy.obs, copy.rewards, copy.log_probs, copy.next_values):
            array[failed] = 77.0
        copy.actions[failed] = 2 - copy.actions[failed]

    def spoil_a_valid_one(copy):
        copy.rewards[0] = 77.0

    untouched = updated(lambda copy: None)
    assert same(updated(spoil), untouched)
    assert not same(updated(spoil_a_valid_one), untouched)


def test_a_rollout_of_failures_only_stops_learning_and_keeps_the_weights():
    env = Scripted(["fail fail"])
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**FAST))
    before = ppo.network.state_dict()
    with pytest.raises(BackendError) as error:
        ppo.learn(env, 100)
    assert str(error.value) == (
        "none of the 32 transitions of a rollout is valid: every call failed. The agent's weights are as they were "
        "before it."
    )
    assert same(ppo.network.state_dict(), before)
    assert ppo.num_steps == 0


def test_the_loss_equals_one_written_with_torch_distributions():
    config = PPOConfig(ent_coef=0.1, normalize_advantage=False)
    ppo = PPO(Scripted(["go"]).single_observation_space, Scripted(["go"]).single_action_space, config)
    rng = np.random.default_rng(0)
    rows, width = 40, ppo.flatten.dim
    obs = rng.normal(size=(rows, width)).astype(np.float32)
    mask = torch.tensor(rng.random((rows, 3)) < 0.6)
    mask[:, 0] = True
    actions = torch.tensor([int(rng.choice(np.flatnonzero(row))) for row in mask.numpy()])
    old, advantages, returns = (torch.tensor(rng.normal(size=rows), dtype=torch.float32) for _ in range(3))
    old = old * 0.2 - 1.0
    logits, values = ppo.network.forward(torch.from_numpy(obs))
    batch = Minibatch(logits, values, actions, mask, torch.stack([old, advantages, returns], dim=1))
    loss, facts = ppo._loss(batch, report=True)

    distribution = torch.distributions.Categorical(logits=logits.masked_fill(~mask, -1e9))
    ratio = (distribution.log_prob(actions) - old).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    expected = -surrogate + 0.5 * ((values - returns) ** 2).mean() - 0.1 * distribution.entropy().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(facts["entropy_loss"]) == pytest.approx(-float(distribution.entropy().mean().detach()), rel=1e-5)


def zeroed(ppo):
    """Weights of 0: uniform logits, and the value 0 of whatever is shown."""
    ppo.network.load_state_dict({name: np.zeros_like(value) for name, value in ppo.network.state_dict().items()})
    return ppo


def test_the_value_loss_is_clipped_around_the_values_of_the_rollout():
    env = Scripted(["go"])
    config = PPOConfig(clip_range_vf=0.2, vf_coef=2.0, normalize_advantage=False)
    ppo = zeroed(PPO(env.single_observation_space, env.single_action_space, config))
    # columns: old log-probability, advantage, return, old value; the new values are 0
    columns = torch.tensor(
        [
            [-np.log(3.0), 0.0, 1.0, 0.5],  # 0 - 0.5 is cut to -0.2: 0.3, an error of 0.7
            [-np.log(3.0), 0.0, -1.0, 0.1],  # within: 0, an error of 1
            [-np.log(3.0), 0.0, 0.5, -0.4],  # 0 + 0.4 is cut to 0.2: -0.2, an error of 0.7
        ],
        dtype=torch.float32,
    )
    logits, values = ppo.network.forward(torch.zeros(3, ppo.flatten.dim))
    loss, facts = ppo._loss(Minibatch(logits, values, torch.tensor([0, 1, 2]), None, columns), report=True)
    assert float(facts["value_loss"]) == pytest.approx((0.49 + 1.0 + 0.49) / 3)
    assert float(loss.detach()) == pytest.approx(2.0 * (0.49 + 1.0 + 0.49) / 3, abs=1e-6)


def test_a_wide_clip_of_the_value_changes_nothing_and_a_narrow_one_does():
    free, wide, narrow = (
        learned(vector(Identity, 4), 256, clip_range_vf=clip)[0].network.state_dict() for clip in (None, 1e6, 0.01)
    )
    for name, value in free.items():
        assert wide[name] == pytest.approx(value, abs=1e-4)
    assert not same(free, narrow)


def test_the_entropy_bonus_falls_over_the_call_of_learn():
    _, history = learned(vector(Identity, 8), 512, ent_coef=0.1, ent_schedule="linear", ent_coef_final=0.02)
    assert [row["train/ent_coef"] for row in history] == pytest.approx([0.1, 0.08, 0.06, 0.04])
    _, history = learned(vector(Identity, 8), 256, ent_coef=0.1, ent_schedule="linear")
    assert [row["train/ent_coef"] for row in history] == pytest.approx([0.1, 0.05])


def test_the_loss_holds_the_entropy_bonus_of_the_schedule():
    env = Scripted(["go"])
    config = PPOConfig(ent_coef=0.1, ent_schedule="linear", ent_coef_final=0.5, normalize_advantage=False)
    ppo = zeroed(PPO(env.single_observation_space, env.single_action_space, config))
    logits, values = ppo.network.forward(torch.zeros(1, ppo.flatten.dim))
    batch = Minibatch(logits, values, torch.tensor([0]), None, torch.tensor([[-np.log(3.0), 0.0, 0.0]]).float())
    losses = []
    for ppo.num_steps in (0, 50, 100):
        ppo.schedule_end = 100
        losses.append(float(ppo._loss(batch, report=False)[0].detach()))
    assert losses == pytest.approx([-0.1 * np.log(3.0), -0.3 * np.log(3.0), -0.5 * np.log(3.0)])


def test_target_kl_stops_an_update_early():
    env = vector(Identity, 8)
    options = {"learning_rate": 0.05, "n_epochs": 10}
    _, free = learned(env, 512, **options)
    _, bound = learned(env, 512, target_kl=0.01, **options)
    assert bound[-1]["train/n_updates"] < free[-1]["train/n_updates"] == 4 * 10 * 2


def test_the_linear_schedule_falls_over_the_call_of_learn():
    _, history = learned(vector(Identity, 8), 512, lr_schedule="linear")
    assert [row["train/learning_rate"] for row in history] == pytest.approx([5e-3, 3.75e-3, 2.5e-3, 1.25e-3])


def test_metrics_have_the_names_of_stable_baselines3():
    env = vector(Identity, 2)
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**FAST))
    told = []
    history = ppo.learn(env, 40, progress=lambda steps, metrics: told.append((steps, metrics)))
    assert told == [(32, history[0]), (40, history[1])]  # no step more than asked for
    assert sorted(history[-1]) == [
        "rollout/ep_len_mean",
        "rollout/ep_rew_mean",
        "rollout/valid",
        "time/total_timesteps",
        "train/approx_kl",
        "train/clip_fraction",
        "train/entropy_loss",
        "train/explained_variance",
        "train/learning_rate",
        "train/loss",
        "train/n_updates",
        "train/policy_gradient_loss",
        "train/value_loss",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "ppo: n_steps = 0; expected a whole number of at least 1."),
        ({"gamma": 1.5}, "ppo: gamma = 1.5; expected a number from 0 to 1."),
        ({"learning_rate": "fast"}, "ppo: learning_rate = 'fast'; expected a number above 0."),
        ({"lr_schedule": "cosine"}, "ppo: lr_schedule = 'cosine'; expected 'constant' or 'linear'."),
        ({"net_arch": (64, 0)}, "ppo: net_arch = (64, 0); expected sizes of at least 1."),
        ({"normalize_obs": -5.0}, "ppo: normalize_obs = -5.0; expected false, true or a clip above 0."),
        ({"target_kl": 0}, "ppo: target_kl = 0; expected a number above 0, or none."),
        ({"clip_range_vf": 0}, "ppo: clip_range_vf = 0; expected a number above 0, or none."),
        ({"ent_schedule": "cosine"}, "ppo: ent_schedule = 'cosine'; expected 'constant' or 'linear'."),
        (
            {"ent_coef_final": 0.1},
            "ppo: ent_coef_final = 0.1; expected none, since ent_schedule = 'constant' stays.",
        ),
        (
            {"ent_schedule": "linear", "ent_coef_final": -0.1},
            "ppo: ent_coef_final = -0.1; expected a number of at least 0, or none.",
        ),
        ({"collect": "threads"}, "ppo: collect = 'threads'; expected 'sync' or 'async'."),
        ({"min_ready": 4}, "ppo: min_ready = 4; expected none, since collect = 'sync' waits for all envs."),
        (
            {"collect": "async", "min_ready": 0},
            "ppo: min_ready = 0; expected a whole number of at least 1, or none.",
        ),
        ({"max_staleness": -1}, "ppo: max_staleness = -1; expected a whole number of at least 0."),
    ],
)
def test_config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigError) as error:
        PPOConfig(**options)
    assert str(error.value) == message


def test_the_autoreset_mode_is_checked_before_anything_is_done():
    class NextStep(Scripted):
        def __init__(self):
            super().__init__(["go"])
            self.metadata = {}

    ppo = PPO(NextStep().single_observation_space, NextStep().single_action_space)
    with pytest.raises(UsageError, match="vector env of autoreset mode None; expected SameStep"):
        ppo.learn(NextStep(), 10)


def test_probabilities_are_those_of_its_choices():
    agent = PPO(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4), seed=2)
    obs, mask = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.ones((5, 4), bool)
    mask[:, 2] = False
    probs, _ = agent.probabilities(obs, action_mask=mask)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (probs[:, 2] == 0).all()
    chosen = agent.act(obs, action_mask=mask, rng=[row_rng(0, row) for row in range(5)])
    np.testing.assert_allclose(np.exp(chosen.log_prob), probs[np.arange(5), chosen.actions], rtol=1e-6)
    mode, _ = agent.probabilities(obs, action_mask=mask, deterministic=True)
    np.testing.assert_array_equal(mode, np.eye(4)[probs.argmax(axis=1)])
