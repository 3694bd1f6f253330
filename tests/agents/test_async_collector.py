import contextlib
import itertools

import numpy as np
import pytest
import torch

from instructgym.agents import PPO, PPOConfig, evaluate, make_agent
from instructgym.envs import InstructionEvolutionVectorEnv
from instructgym.errors import BackendError, ConfigError, UsageError

from .toy_envs import Horizon, Identity, Masked, SendRecv, heavy_tailed, vector

FAST = {"n_steps": 16, "batch_size": 64, "n_epochs": 6, "learning_rate": 5e-3, "net_arch": (32,), "gamma": 0.5}
NORMALISED = {"normalize_obs": 5.0, "normalize_reward": True, "ent_coef": 0.01, "lr_schedule": "linear"}
ASYNC = {"rollout/in_flight", "rollout/stale", "rollout/staleness_mean"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ppo_for(env, seed=0, **options):
    config = PPOConfig(**{**FAST, "collect": "async", **options})
    return PPO(env.single_observation_space, env.single_action_space, config, seed)


def at_once(row, n):
    return 1.0


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", [Masked, lambda: Horizon(truncates=True)])
def test_waiting_for_all_is_the_synchronous_collector_to_the_byte(make):
    sync, waiting = vector(make, 4), SendRecv(make, 4, at_once)
    one = ppo_for(sync, **NORMALISED, collect="sync")
    other = ppo_for(waiting, **NORMALISED, min_ready=4, max_staleness=0)
    rollouts, others = [], []
    history = one.learn(sync, 512, on_rollout_end=rollouts.append, segment_steps=192)
    again = other.learn(waiting, 512, on_rollout_end=others.append, segment_steps=192)
    assert len(rollouts) == len(others) == 8
    for rollout, twin in zip(rollouts, others, strict=True):
        arrays = {name: value for name, value in vars(rollout).items() if isinstance(value, np.ndarray)}
        assert all(np.array_equal(value, getattr(twin, name)) for name, value in arrays.items())
    assert same(one.state_dict(), other.state_dict())
    assert [{name: row[name] for name in row.keys() - ASYNC} for row in again] == history


def test_waiting_for_all_rows_of_the_native_env_is_the_synchronous_collector_to_the_byte():
    def weights(**options):
        with contextlib.closing(InstructionEvolutionVectorEnv(4, reward="novelty", horizon=3)) as env:
            ppo = ppo_for(env, n_epochs=2, normalize_obs=True, **options)
            ppo.learn(env, 128)
            return ppo.state_dict()

    assert same(weights(collect="sync"), weights(min_ready=4))


@pytest.mark.parametrize("make", [Identity, Masked])
def test_learns_what_the_synchronous_collector_learns_although_answers_come_in_any_order(make):
    env = SendRecv(make, 8, heavy_tailed(0))
    ppo = ppo_for(env, min_ready=1)
    history = ppo.learn(env, 4096)
    assert evaluate(ppo, vector(make, 8), 32).mean() > 7.5
    assert max(row["rollout/in_flight"] for row in history) >= 4
    assert max(row["rollout/staleness_mean"] for row in history) > 0


class Watched(SendRecv):
    """Notes what each env showed when it was asked to act, and with which weights."""

    def __init__(self, *args):
        super().__init__(*args)
        self.shown, self.weights, self.ppo = [[] for _ in range(self.num_envs)], [], None

    def send(self, actions, rows):
        super().send(actions, rows)
        network = self.ppo.network
        for row in rows:
            self.shown[row].append(self.envs[row].shown)
        while len(self.weights) <= self.ppo.updates:
            self.weights.append(network.state_dict())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_whatever_the_order_of_arrival(seed, max_staleness):
    """Nothing is lost or doubled, ratios are of the policy that chose, the stale is left out, values are of now."""
    order = np.random.default_rng(seed)
    envs, min_ready, n_steps = int(order.integers(2, 7)), int(order.integers(1, 3)), int(order.integers(1, 7))
    slow = set(order.choice(envs, 1))

    def adversary(row, n):
        return 120.0 if row in slow and n % 3 else float(order.choice([0.0, 0.1, 1.0, 7.0]))

    env = Watched(lambda: Masked(length=5), envs, adversary)
    env.ppo = ppo = ppo_for(env, seed, min_ready=min_ready, n_steps=n_steps, n_epochs=1, max_staleness=max_staleness)
    counts, total = np.zeros(envs, int), 150
    versions = []

    def check(rollout):
        network = ppo.network
        assert min(n_steps * envs, total - counts.sum()) <= len(rollout) < n_steps * envs + envs
        for row in range(envs):
            mine = np.flatnonzero(rollout.rows == row)
            assert rollout.times[mine].tolist() == list(range(len(mine)))
            shown = env.shown[row][counts[row] :]
            assert rollout.obs[mine].argmax(axis=1).tolist() == shown[: len(mine)]
            # what follows is the next one's observation, by the network of now
            for place, after in itertools.pairwise(mine):
                if not rollout.terminated[place]:
                    assert rollout.next_values[place] == rollout.values[after]
            counts[row] += len(mine)
        assert rollout.values == pytest.approx(network.values(rollout.obs), abs=1e-6)
        assert np.array_equal(rollout.learned, rollout.valid & (rollout.staleness <= max_staleness))
        advantages = rollout.advantages(0.5, 0.9)
        assert not advantages[~rollout.learned].any()
        chosen_by, now = ppo.updates - rollout.staleness, network.state_dict()
        for version in np.unique(chosen_by):
            network.load_state_dict(env.weights[version])
            those = chosen_by == version
            logits = np.where(rollout.masks[those], network.logits(rollout.obs[those]), -np.inf)
            log_probs = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
            picked = log_probs[np.arange(those.sum()), rollout.actions[those]]
            assert rollout.log_probs[those] == pytest.approx(picked, abs=1e-5)
        network.load_state_dict(now)
        versions.extend(rollout.staleness.tolist())

    history = ppo.learn(env, total, on_rollout_end=check)
    assert counts.sum() == env.sent == ppo.num_steps == total
    assert env.flights == {}
    assert history[-1]["rollout/in_flight"] == 0
    assert sum(row["rollout/stale"] for row in history) == sum(age > max_staleness for age in versions)
    assert max(versions) > max_staleness  # or this would have tested nothing


def test_the_transition_before_a_stale_one_bootstraps_from_the_state_in_which_that_was_chosen():
    # env 0 takes its second step over two updates; env 1 goes on meanwhile
    env = SendRecv(lambda: Masked(length=50), 2, lambda row, n: 9.5 if (row, n) == (0, 2) else 1.0)
    ppo = ppo_for(env, min_ready=1, n_steps=2, n_epochs=1)
    rollouts = []
    history = ppo.learn(env, 24, on_rollout_end=rollouts.append)
    late = next(rollout for rollout in rollouts if not rollout.learned.all())
    (place,) = np.flatnonzero(~late.learned)
    assert (late.rows[place], late.staleness[place], late.valid[place]) == (0, 2, True)
    assert [row["rollout/stale"] for row in history] == [float(rollout is late) for rollout in rollouts]
    before = rollouts[0]
    last = np.flatnonzero(before.rows == 0)[-1]
    delta = before.rewards[last] + 0.5 * before.next_values[last] - before.values[last]
    assert before.advantages(0.5, 0.9)[last] == pytest.approx(delta)
    fresh = ppo_for(env).network  # the first rollout was valued by the initial weights
    assert before.next_values[last] == pytest.approx(fresh.values(late.obs[[place]])[0], abs=1e-6)


def test_an_env_that_does_not_answer_holds_up_nobody_until_the_end():
    env = SendRecv(Identity, 4, lambda row, n: 1e6 if row == 0 else 1.0)
    ppo = ppo_for(env, min_ready=3, n_steps=4, n_epochs=1)
    when = []
    history = ppo.learn(env, 16 * 10, progress=lambda steps, metrics: when.append(env.now))
    assert max(when[:-1]) < 100 < 1e6 <= when[-1]
    assert [row["rollout/in_flight"] for row in history] == [1.0] * (len(history) - 1) + [0.0]
    assert history[-1]["rollout/stale"] == 1
    assert ppo.num_steps == env.sent == 160


def test_a_rollout_of_stale_transitions_only_changes_no_weights():
    # all but env 0 answer after the only other rollout, and that rollout is env 0's alone
    env = SendRecv(Identity, 3, lambda row, n: 1.0 if row == 0 else 50.0)
    ppo = ppo_for(env, min_ready=1, n_steps=1, max_staleness=0)
    seen = []
    history = ppo.learn(env, 5, progress=lambda steps, metrics: seen.append(ppo.network.state_dict()))
    assert [row["rollout/stale"] for row in history] == [0.0, 2.0]
    assert same(seen[0], seen[1])
    assert not any(name.startswith("train/") for name in history[1])
    assert np.isnan(history[1]["rollout/staleness_mean"])
    assert (ppo.updates, ppo.num_steps) == (1, 5)


class Failing(Identity):
    def step(self, action):
        obs, reward, terminated, _, _ = super().step(action)
        failed = self.shown == 0
        return obs, 0.0 if failed else reward, terminated and not failed, failed, {"valid": not failed}


def test_failed_steps_are_left_out_as_in_synchronous_collection():
    env = SendRecv(Failing, 6, heavy_tailed(1))
    ppo = ppo_for(env, min_ready=1)
    rollouts = []
    history = ppo.learn(env, 3072, on_rollout_end=rollouts.append)
    assert all(not rollout.learned[~rollout.valid].any() for rollout in rollouts)
    assert 0.6 < history[-1]["rollout/valid"] < 0.9
    assert history[-1]["rollout/ep_rew_mean"] > 1.5 * history[0]["rollout/ep_rew_mean"]
    with pytest.raises(BackendError, match="transitions of a rollout is valid: every call failed"):
        ppo.learn(SendRecv(lambda: Failing(numbers=1), 2, at_once), 64)


def test_every_step_asked_for_is_taken_and_the_env_can_be_used_again():
    env = SendRecv(Identity, 3, heavy_tailed(2))
    ppo = ppo_for(env, n_steps=5)
    ppo.learn(env, 101)
    assert (ppo.num_steps, env.sent, env.flights) == (101, 101, {})
    ppo.learn(env, 50)
    assert (ppo.num_steps, env.sent, env.flights) == (151, 151, {})
    assert evaluate(ppo, env, 3).shape == (3,)


def test_a_segment_ends_with_nothing_in_flight():
    env = SendRecv(Masked, 4, heavy_tailed(3))
    ppo = ppo_for(env, **NORMALISED)
    saved = []

    def checkpoint():
        assert env.flights == {}
        saved.append(ppo.state_dict())

    ppo.learn(env, 400, segment_steps=150, on_segment_end=checkpoint)
    assert [state["num_steps"] for state in saved] == [150, 300]
    assert [what for what, _ in env.log].count("reset") == 3
    resumed = ppo_for(env, **NORMALISED)
    resumed.load_state_dict(saved[0])
    resumed.learn(env, 250, segment_steps=150)
    # the toy env's clock starts where it stood, so the order is another; the count is not
    assert resumed.num_steps == 400


def test_the_same_order_of_arrival_gives_the_same_weights():
    def weights(seed):
        env = SendRecv(Masked, 4, heavy_tailed(seed))
        ppo = ppo_for(env, **NORMALISED)
        ppo.learn(env, 512)
        return ppo.state_dict()

    assert same(weights(0), weights(0))
    assert not same(weights(0), weights(1))


class Broken(Identity):
    def step(self, action):
        if self.shown == 2 and self.step_number == 5:
            raise ZeroDivisionError("a bug in the env")
        return super().step(action)


def test_what_the_env_raises_is_raised_and_nothing_is_left_in_flight():
    env = SendRecv(Broken, 6, heavy_tailed(0))
    with pytest.raises(ZeroDivisionError, match="a bug in the env"):
        ppo_for(env).learn(env, 1000)
    assert env.flights == {}
    assert env.log[-1][0] == "cancel"


@pytest.mark.parametrize("hook", ["progress", "on_rollout_end"])
def test_what_a_hook_raises_is_raised_and_nothing_is_left_in_flight(hook):
    def interrupt(*_):
        raise KeyboardInterrupt

    env = SendRecv(Identity, 6, heavy_tailed(0))
    with pytest.raises(KeyboardInterrupt):
        ppo_for(env).learn(env, 1000, **{hook: interrupt})
    what, dropped = env.log[-1]
    assert (what, env.flights) == ("cancel", {})
    assert dropped


def test_an_env_that_cannot_be_asked_row_by_row_is_refused_before_it_is_touched():
    env = vector(Identity, 4)
    with pytest.raises(UsageError) as error:
        ppo_for(env).learn(env, 100)
    assert str(error.value) == (
        "vector env SyncVectorEnv has no send(), recv(), cancel(); ppo with collect = 'async' needs them. "
        "Use InstructionEvolutionVectorEnv, or collect = 'sync'."
    )


def test_more_rows_to_wait_for_than_there_are_is_refused():
    env = SendRecv(Identity, 4, at_once)
    with pytest.raises(ConfigError) as error:
        ppo_for(env, min_ready=5).learn(env, 100)
    assert str(error.value) == "ppo: min_ready = 5; expected 1 to 4, the number of envs."
    assert env.log == []


@pytest.mark.parametrize(("envs", "expected"), [(1, 1), (3, 1), (4, 1), (9, 2), (256, 64)])
def test_a_quarter_of_the_envs_is_waited_for_unless_told_otherwise(envs, expected):
    assert PPOConfig(collect="async").ready_of(envs) == expected


def test_asynchronous_collection_is_an_option_of_the_agent_by_name():
    env = SendRecv(Identity, 4, heavy_tailed(0))
    kwargs = {"collect": "async", "min_ready": 2, "max_staleness": 2, "n_steps": 8}
    agent = make_agent("ppo", env.single_observation_space, env.single_action_space, kwargs=kwargs)
    history = agent.learn(env, 64)
    assert history[0].keys() >= ASYNC
