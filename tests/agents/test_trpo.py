from copy import deepcopy

import gymnasium
import numpy as np
import pytest
import torch

from instructgym.agents import AGENTS, AgentInfo, evaluate, load_agent, make_agent, row_rng, save_agent
from instructgym.agents.policy_gradient import TRPO, PPOConfig, TRPOConfig
from instructgym.agents.policy_gradient.networks import masked_log_softmax, masked_probs
from instructgym.agents.policy_gradient.parameters import FlatParameters
from instructgym.agents.policy_gradient.trust_region import FisherProduct, conjugate_gradient, mean_kl
from instructgym.errors import ConfigError, UsageError

from .toy_envs import SAME_STEP, Horizon, Identity, Masked, Mixed, Scripted, SendRecv, heavy_tailed, vector

FAST = {"n_steps": 32, "net_arch": (16,), "gamma": 0.5, "target_kl": 0.05, "learning_rate": 5e-3}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trpo_for(env, seed=0, **options):
    return TRPO(env.single_observation_space, env.single_action_space, TRPOConfig(**{**FAST, **options}), seed)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def first_rollout(trpo, env, steps):
    rollouts = []

    def keep(rollout):
        rollouts.append(deepcopy(rollout))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trpo.learn(env, steps, on_rollout_end=keep)
    return rollouts[0]


# ------------------------------------------------------------------ numerics


def test_conjugate_gradient_solves_what_numpy_solves():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    matrix = root @ root.T + np.eye(12)
    target = rng.normal(size=12)
    solved = conjugate_gradient(lambda v: torch.from_numpy(matrix) @ v, torch.from_numpy(target), 40)
    assert solved.numpy() == pytest.approx(np.linalg.solve(matrix, target), rel=1e-4)


def test_conjugate_gradient_needs_as_many_steps_as_there_are_eigenvalues():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64))
    target = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    asked = []
    solved = conjugate_gradient(lambda v: (asked.append(0), matrix @ v)[1], target, 50)
    assert solved.tolist() == pytest.approx([1.0, 2.0, 3.0, 1.0, 1.25])
    assert len(asked) == 2


def test_conjugate_gradient_of_nothing_is_nothing():
    def never(vector):
        raise AssertionError("asked for a product")

    assert conjugate_gradient(never, torch.zeros(3), 10).tolist() == [0.0, 0.0, 0.0]


def test_the_fisher_product_is_the_second_derivative_of_the_kl():
    """Against central differences of the KL's gradient along v, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (6,), (3, 6), (3,)]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    obs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(20, 3, generator=generator) < 0.7
    mask[:, 1] = True

    def logits_of(parameters):
        w1, b1, w2, b2 = parameters
        return torch.tanh(obs @ w1.T + b1) @ w2.T + b2

    old = masked_log_softmax(logits_of(weights), mask)

    def kl_gradient(shift):
        moved = [(weight + part).requires_grad_() for weight, part in zip(weights, shift, strict=True)]
        new = masked_log_softmax(logits_of(moved), mask)
        kl = (old.exp() * torch.where(mask, old - new, 0.0)).sum(dim=1).mean()
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(kl, moved)])

    at = [weight.clone().requires_grad_() for weight in weights]
    logits = logits_of(at)
    product = FisherProduct(logits, masked_log_softmax(logits, mask).detach().exp(), at, damping=0.3)
    size = sum(weight.numel() for weight in weights)
    for number in range(3):
        vector = torch.randn(size, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        parts = torch.split(vector, [weight.numel() for weight in weights])
        shift = [1e-4 * part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
        ahead, behind = kl_gradient(shift), kl_gradient([-part for part in shift])
        expected = (ahead - behind) / 2e-4 + 0.3 * vector
        assert product(vector).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_the_mean_kl_by_hand():
    old = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    new = np.array([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]], np.float32)
    by_hand = (0.5 * np.log(2.0) + 0.5 * np.log(2 / 3) + np.log(2.0)) / 2
    assert mean_kl(old, new) == pytest.approx(by_hand)
    assert mean_kl(old, old) == 0.0
    assert mean_kl(np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)) == np.inf


# ------------------------------------------------------------------ the step


@pytest.mark.parametrize("target_kl", [0.001, 0.05])
@pytest.mark.parametrize("make", [Identity, Masked])
def test_a_step_keeps_the_kl_limit_and_improves_the_surrogate(make, target_kl):
    env = vector(make, 8)
    trpo = trpo_for(env, target_kl=target_kl, normalize_advantage=False)
    for _ in range(5):
        rollout = first_rollout(trpo, env, 256)
        advantages = rollout.advantages(0.5, 0.97)
        masks = rollout.masks
        old = masked_probs(trpo.network.logits(rollout.obs), masks)
        metrics = trpo.update(rollout)
        new = masked_probs(trpo.network.logits(rollout.obs), masks)
        picked = np.arange(len(rollout)), rollout.actions
        kl = (
            np.where(old > 0, old * np.log(np.where(old > 0, old / np.where(new > 0, new, 1), 1)), 0).sum(axis=1).mean()
        )
        before = advantages.mean()
        after = (new[picked] / old[picked] * advantages).mean()
        assert metrics["train/is_line_search_success"] == 1.0
        assert 0.3 * target_kl < kl <= target_kl * (1 + 1e-5)
        assert metrics["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-3)
        assert after > before
        assert metrics["train/policy_objective"] == pytest.approx(after, abs=1e-5)
        trpo.num_steps += len(rollout)


def policy_of(trpo):
    return {name: value for name, value in trpo.network.state_dict().items() if name.startswith("policy")}


def test_a_vanishing_gradient_leaves_the_policy_where_it_is():
    env = vector(Identity, 8)
    trpo = trpo_for(env, normalize_advantage=False)
    rollout = first_rollout(trpo, env, 256)
    rollout.rewards[:], rollout.values[:], rollout.next_values[:] = 0.0, 0.0, 0.0
    before = policy_of(trpo)
    metrics = trpo.update(rollout)
    assert same(policy_of(trpo), before)
    assert metrics["train/is_line_search_success"] == metrics["train/kl_divergence_loss"] == 0.0
    assert metrics["train/policy_objective"] == 0.0


def test_a_line_search_that_finds_nothing_restores_the_policy_to_the_bit(monkeypatch):
    env = vector(Identity, 8)
    trpo = trpo_for(env)
    rollout = first_rollout(trpo, env, 256)
    before = policy_of(trpo)
    monkeypatch.setattr("instructgym.agents.policy_gradient.trpo.mean_kl", lambda old, new: 1.0)
    metrics = trpo.update(rollout)
    assert metrics["train/is_line_search_success"] == 0.0
    assert same(policy_of(trpo), before)


def test_the_value_regression_leaves_the_policy_and_its_penalty_pulls_at_the_value_only():
    env = vector(Identity, 8)
    free, pulled = (trpo_for(env, value_l2=value_l2) for value_l2 in (0.0, 1.0))
    rollout = first_rollout(free, env, 256)
    first_rollout(pulled, env, 256)
    free.update(deepcopy(rollout)), pulled.update(deepcopy(rollout))
    assert same(policy_of(free), policy_of(pulled))
    sizes = [
        sum(float((value**2).sum()) for name, value in trpo.network.state_dict().items() if name.startswith("value"))
        for trpo in (free, pulled)
    ]
    assert sizes[1] < 0.9 * sizes[0]


class Shared(FlatParameters):
    """A network whose policy and value have a layer in common."""

    def __init__(self, obs_dim, actions):
        super().__init__({"body": (8, obs_dim), "policy": (actions, 8), "value": (1, 8)})
        self.flat.normal_(generator=torch.Generator().manual_seed(0))

    def forward(self, obs):
        hidden = torch.tanh(obs @ self.parameters["body"].T)
        return hidden @ self.parameters["policy"].T, (hidden @ self.parameters["value"].T).squeeze(1)

    def logits(self, obs):
        return self.forward(torch.from_numpy(obs))[0].detach().numpy()

    def values(self, obs):
        return self.forward(torch.from_numpy(obs))[1].detach().numpy()


def test_a_network_whose_policy_and_value_share_parameters_is_refused():
    env = vector(Identity, 2)
    trpo = trpo_for(env)
    trpo.network = Shared(trpo.flatten.dim, trpo.actions)
    with pytest.raises(ConfigError) as error:
        trpo.learn(env, 64)
    assert str(error.value) == (
        "trpo: policy and value of the network share parameters; expected them apart, for the value is fitted outside "
        "of the trust region. Use ppo with this network."
    )


# ------------------------------------------------------------------- learning


@pytest.mark.parametrize("make", [Identity, Masked, Mixed])
def test_learns_what_pays_among_legal_actions(make):
    env = vector(make, 8)  # Masked raises if an illegal action is taken
    trpo = trpo_for(env)
    history = trpo.learn(env, 6144)
    best = 4 if make is Mixed else 8
    assert evaluate(trpo, env, 32).mean() > 0.95 * best
    assert max(row["train/kl_divergence_loss"] for row in history) <= 0.05 * (1 + 1e-5)


def test_learns_a_horizon_that_is_in_the_observation():
    env = vector(Horizon, 8)
    trpo = trpo_for(env, gamma=0.99)
    trpo.learn(env, 8192)
    assert evaluate(trpo, env, 8).mean() == pytest.approx(1.1)


def test_learns_to_balance_the_pole():
    env = gymnasium.make_vec("CartPole-v1", 8, vectorization_mode="sync", vector_kwargs={"autoreset_mode": SAME_STEP})
    trpo = TRPO(env.single_observation_space, env.single_action_space, TRPOConfig(n_steps=64, n_critic_updates=5))
    history = trpo.learn(env, 8192)
    assert history[0]["rollout/ep_rew_mean"] < 40
    assert evaluate(trpo, env, 4, seed=1).mean() > 100


def test_the_same_seed_twice_gives_the_same_bytes_and_another_seed_others(tmp_path, monkeypatch):
    made_by = "instructgym.agents.policy_gradient.trpo:TRPO"
    monkeypatch.setitem(AGENTS, "trpo", AgentInfo("trpo", "ours", learns=True, made_by=made_by))

    def written(folder, seed):
        env = vector(Masked, 4)
        trpo = make_agent(
            "trpo",
            env.single_observation_space,
            env.single_action_space,
            kwargs={**FAST, "normalize_obs": True},
            seed=seed,
        )
        trpo.learn(env, 512)
        save_agent(trpo, tmp_path / folder, action_set_hash="00", action_set_names=("a", "b", "c", "d"))
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    first = written("one", 3)
    assert sorted(first) == ["agent.json", "weights.safetensors"]
    assert written("two", 3) == first
    assert written("three", 4)["weights.safetensors"] != first["weights.safetensors"]
    loaded = load_agent(tmp_path / "one", expected_action_set_hash="00")
    assert (loaded.name, loaded.config.target_kl, loaded.num_steps) == ("trpo", 0.05, 512)


def test_stopping_at_a_segments_end_and_going_on_changes_nothing():
    options = {"normalize_obs": True, "normalize_reward": True, "lr_schedule": "linear"}
    env = vector(Masked, 4)
    undisturbed = trpo_for(env, 3, **options)
    saved = []
    undisturbed.learn(env, 768, segment_steps=256, on_segment_end=lambda: saved.append(undisturbed.state_dict()))
    assert len(saved) == 2
    for state in saved:
        env = vector(Masked, 4)
        resumed = trpo_for(env, 3, **options)
        resumed.load_state_dict(state)
        resumed.learn(env, 768 - resumed.num_steps, segment_steps=256)
        assert same(resumed.state_dict(), undisturbed.state_dict())


def test_acting_row_by_row_equals_what_the_rollout_drew():
    env = vector(Masked, 4)
    trpo = trpo_for(env, 5)
    rollout = first_rollout(trpo, env, 128)
    for t in range(8):
        now = rollout.times == t
        decision = trpo.act(
            rollout.obs[now].argmax(axis=1),
            action_mask=rollout.masks[now],
            rng=[row_rng(5, row, 1, t) for row in rollout.rows[now].tolist()],
        )
        assert decision.actions.tolist() == rollout.actions[now].tolist()


def test_what_an_invalid_row_holds_does_not_reach_the_weights():
    env = Scripted(["go go", "go fail", "end go", "go go"])
    rollout = first_rollout(trpo_for(env), env, 64)

    def updated(change):
        learner = trpo_for(env)
        copy = deepcopy(rollout)
        change(copy)
        learner.update(copy)
        return learner.state_dict()

    def spoil(copy):
        for array in (copy.obs, copy.rewards, copy.log_probs, copy.next_values):
            array[~copy.valid] = 77.0

    def spoil_a_valid_one(copy):
        copy.rewards[0] = 77.0

    untouched = updated(lambda copy: None)
    assert not rollout.valid.all()
    assert same(updated(spoil), untouched)
    assert not same(updated(spoil_a_valid_one), untouched)


def test_it_collects_asynchronously_too():
    env = SendRecv(Masked, 8, heavy_tailed(0))
    trpo = trpo_for(env, collect="async", min_ready=2)
    trpo.learn(env, 3072)
    assert evaluate(trpo, vector(Masked, 8), 32).mean() > 6.5


def test_metrics_have_the_names_of_sb3_contrib():
    env = vector(Identity, 2)
    history = trpo_for(env).learn(env, 64)
    assert sorted(history[-1]) == [
        "rollout/ep_len_mean",
        "rollout/ep_rew_mean",
        "rollout/valid",
        "time/total_timesteps",
        "train/explained_variance",
        "train/is_line_search_success",
        "train/kl_divergence_loss",
        "train/learning_rate",
        "train/n_updates",
        "train/policy_objective",
        "train/value_loss",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_kl": 0}, "trpo: target_kl = 0; expected a number above 0."),
        ({"target_kl": None}, "trpo: target_kl = None; expected a number above 0."),
        ({"cg_max_steps": 0}, "trpo: cg_max_steps = 0; expected a whole number of at least 1."),
        ({"cg_damping": 0}, "trpo: cg_damping = 0; expected a number above 0."),
        (
            {"line_search_shrinking_factor": 1.0},
            "trpo: line_search_shrinking_factor = 1.0; expected a number between 0 and 1.",
        ),
        ({"line_search_max_iter": 2.5}, "trpo: line_search_max_iter = 2.5; expected a whole number of at least 1."),
        ({"value_l2": -1e-3}, "trpo: value_l2 = -0.001; expected a number of at least 0."),
        ({"n_steps": 0}, "trpo: n_steps = 0; expected a whole number of at least 1."),
    ],
)
def test_config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigError) as error:
        TRPOConfig(**options)
    assert str(error.value) == message


def test_options_by_name_make_the_config():
    env = vector(Identity, 2)
    spaces = env.single_observation_space, env.single_action_space
    assert TRPO(*spaces, seed=3, cg_max_steps=4).config == TRPOConfig(cg_max_steps=4)
    with pytest.raises(
        ConfigError, match=r"^agent 'trpo' takes no argument 'cg_max_step'; did you mean 'cg_max_steps'"
    ):
        TRPO(*spaces, cg_max_step=4)
    with pytest.raises(UsageError) as error:
        TRPO(*spaces, TRPOConfig(), cg_max_steps=4)
    assert str(error.value) == "trpo got a config and the options ['cg_max_steps']; pass one or the other."
    with pytest.raises(ConfigError, match=r"^trpo: config = PPOConfig\(.*\); expected a TRPOConfig\.$"):
        TRPO(*spaces, PPOConfig())
