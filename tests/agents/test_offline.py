"""Learning from logged episodes, and judging agents by them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from gymnasium import spaces
from sklearn.kernel_ridge import KernelRidge

from instructgym.agents import (
    AGENTS,
    Agent,
    AgentInfo,
    Decision,
    FixedAgent,
    RandomAgent,
    RoundRobinAgent,
    SequenceAgent,
    evaluate,
    load_agent,
    make_agent,
    row_rng,
    save_agent,
)
from instructgym.agents.offline import (
    DEFAULT_ESTIMATOR,
    ESTIMATORS,
    BehaviourCloning,
    FittedQ,
    LoggedEpisodes,
    off_policy_value,
    off_policy_values,
)
from instructgym.agents.offline.estimators import target_probabilities
from instructgym.agents.offline.regression import ActionRegression
from instructgym.agents.spaces import stack_rows
from instructgym.errors import ConfigError, UsageError

from .toy_envs import Horizon, Identity, Masked, Mixed, vector


def logged(make, episodes, policy=None, seed=0):
    """`episodes` of a policy (uniform by default) in a toy env, as logs."""
    env, policy = make(), policy or RandomAgent()
    actions = int(env.action_space.n)
    columns = {name: [] for name in ("obs", "next_obs", "actions", "rewards", "terminated", "masks", "next_masks")}
    log_probs, episode_of, steps = [], [], []
    for episode in range(episodes):
        obs, info = env.reset(seed=seed * 10_000 + episode)
        done, step, state = False, 0, None
        while not done:
            mask = np.asarray(info.get("action_mask", np.ones(actions)), bool)
            decision = policy.act(
                stack_rows(env.observation_space, [obs]),
                action_mask=mask[None],
                rng=[row_rng(seed, episode, 0, step)],
                state=state,
            )
            state, action = decision.state, int(decision.actions[0])
            after, reward, terminated, truncated, info = env.step(action)
            found = (obs, after, action, reward, terminated, mask, info.get("action_mask", np.ones(actions)))
            for column, value in zip(columns.values(), found, strict=True):
                column.append(value)
            log_probs.append(np.nan if decision.log_prob is None else float(decision.log_prob[0]))
            episode_of.append(episode)
            steps.append(step)
            obs, step, done = after, step + 1, terminated or truncated
    return LoggedEpisodes(
        obs_space=env.observation_space,
        obs=stack_rows(env.observation_space, columns["obs"]),
        next_obs=stack_rows(env.observation_space, columns["next_obs"]),
        actions=np.array(columns["actions"], np.int64),
        rewards=np.array(columns["rewards"], np.float64),
        terminated=np.array(columns["terminated"], bool),
        masks=np.array(columns["masks"], bool),
        next_masks=np.array(columns["next_masks"], bool),
        log_probs=np.array(log_probs),
        episodes=np.array(episode_of),
        steps=np.array(steps),
    )


def learner(kind, make, seed=0, **kwargs):
    env = make()
    return kind(env.observation_space, env.action_space, seed, **kwargs)


class Soft(Agent):
    """Action 0 with probability p, the others alike."""

    name = "soft"

    def __init__(self, p):
        self.p = p

    def probabilities(self, obs, *, action_mask, state=None, deterministic=False):
        rows, actions = action_mask.shape
        probs = np.full((rows, actions), (1 - self.p) / (actions - 1))
        probs[:, 0] = self.p
        return probs, state


# ---------------------------------------------------------------------------------------------------------- learning


def test_fitted_q_learns_among_legal_actions_from_uniform_choices():
    agent = learner(FittedQ, Masked, gamma=0.5)
    metrics = agent.learn_from(logged(Masked, 60))
    assert evaluate(agent, vector(Masked, 4), 16).mean() > 7.9  # the env raises if an illegal action is taken
    assert metrics["train/iterations"] == 8.0
    assert metrics["train/transitions"] == 480.0


def test_fitted_q_sees_beyond_the_next_reward():
    agent = learner(FittedQ, Horizon)
    agent.learn_from(logged(Horizon, 200))
    assert evaluate(agent, vector(Horizon, 4), 8).mean() == pytest.approx(1.1)


def test_fitted_q_bootstraps_where_an_episode_was_cut_off_and_not_where_it_ended():
    """Two states; action 1 pays nothing and leads from the first to the second, where action 0 pays 1."""
    eye = np.eye(2, dtype=np.float32)
    logs = LoggedEpisodes(
        obs_space=spaces.Box(0.0, 1.0, (2,), np.float32),
        obs=np.concatenate([np.tile(eye[[0, 0, 1, 1]], (25, 1))]),
        next_obs=np.concatenate([np.tile(eye[[0, 1, 1, 1]], (25, 1))]),
        actions=np.tile([0, 1, 0, 1], 25),
        rewards=np.tile([0.4, 0.0, 1.0, 0.0], 25),
        terminated=np.tile([True, False, True, True], 25),
        masks=np.ones((100, 2), bool),
        next_masks=np.ones((100, 2), bool),
        log_probs=np.full(100, np.log(0.5)),
        episodes=np.arange(100),
        steps=np.zeros(100, np.int64),
    )
    agent = FittedQ(logs.obs_space, spaces.Discrete(2), gamma=1.0, iterations=2)
    agent.learn_from(logs)
    assert agent.q_values(eye).round(2).tolist() == [[0.4, 1.0], [1.0, 0.0]]


def test_fitted_q_does_not_choose_what_was_never_logged():
    logs = logged(Identity, 40)
    agent = learner(FittedQ, Identity)
    agent.learn_from(logs.rows(np.isin(logs.episodes, logs.episodes[logs.actions == 3], invert=True)))
    agent.learn_from(one_step(logs, logs.actions != 3))
    masks = np.ones((4, 4), bool)
    masks[0] = [False, False, False, True]
    probs, _ = agent.probabilities(np.arange(4), action_mask=masks)
    assert probs[0].tolist() == [0, 0, 0, 1]  # nothing else is legal there
    assert (probs[1:, 3] == 0).all()


def one_step(logs, keep):
    """The rows that `keep` names as episodes of one step each."""
    rows = np.flatnonzero(keep)
    columns = ("actions", "rewards", "masks", "next_masks", "log_probs", "obs", "next_obs")
    return LoggedEpisodes(
        obs_space=logs.obs_space,
        terminated=np.ones(len(rows), bool),
        episodes=np.arange(len(rows)),
        steps=np.zeros(len(rows), np.int64),
        **{name: getattr(logs, name)[rows] for name in columns},
    )


def test_fitted_q_with_a_temperature_draws_what_its_probabilities_say():
    agent = learner(FittedQ, Identity, temperature=0.5)
    agent.learn_from(logged(Identity, 30))
    obs, masks = np.full(4000, 2), np.ones((4000, 4), bool)
    probs, _ = agent.probabilities(obs, action_mask=masks)
    decision = agent.act(obs, action_mask=masks, rng=[row_rng(0, row) for row in range(4000)])
    assert np.bincount(decision.actions, minlength=4) / 4000 == pytest.approx(probs[0], abs=0.03)
    assert decision.log_prob == pytest.approx(np.log(probs[np.arange(4000), decision.actions]), abs=1e-6)
    greedy = agent.act(obs[:1], action_mask=masks[:1], rng=[row_rng(0, 0)], deterministic=True)
    assert (greedy.actions.tolist(), greedy.log_prob.tolist()) == ([2], [0.0])


def test_cloning_imitates_what_was_chosen_in_what_was_seen():
    teacher = learner(FittedQ, Mixed)
    teacher.learn_from(logged(Mixed, 60))
    agent = learner(BehaviourCloning, Mixed)
    metrics = agent.learn_from(logged(Mixed, 60, teacher, seed=1))
    assert metrics["train/accuracy"] == 1.0
    assert evaluate(agent, vector(Mixed, 4), 16).mean() > 3.8


def test_cloning_of_the_best_episodes_beats_cloning_of_all():
    logs = logged(lambda: Identity(numbers=2, length=2), 200)
    returns = []
    for best in (1.0, 0.25):
        agent = learner(BehaviourCloning, lambda: Identity(numbers=2, length=2), best=best)
        agent.learn_from(logs)
        env = vector(lambda: Identity(numbers=2, length=2), 4)
        returns.append(evaluate(agent, env, 200, deterministic=False).mean())
    assert returns[0] < 1.2
    assert returns[1] > 1.5


def test_cloning_never_takes_an_illegal_action_and_does_not_imitate_one():
    logs = logged(Masked, 20)
    spoiled = LoggedEpisodes(**{**vars(logs), "masks": np.where(np.eye(4, dtype=bool)[logs.actions], False, True)})
    agent = learner(BehaviourCloning, Masked)
    with pytest.raises(UsageError) as error:
        agent.learn_from(spoiled)
    assert str(error.value) == "behaviour_cloning: the logs hold no legal choice; expected at least one."
    agent.learn_from(logs)
    evaluate(agent, vector(Masked, 4), 16, deterministic=False)  # the env raises if one is taken


@pytest.mark.parametrize("kind", [BehaviourCloning, FittedQ])
def test_the_same_logs_and_seed_give_the_same_bytes_and_a_loaded_agent_goes_on_as_if_never_saved(
    kind, tmp_path, monkeypatch
):
    monkeypatch.setitem(AGENTS, kind.name, AgentInfo(kind.name, "", made_by=f"{kind.__module__}:{kind.__name__}"))
    env, logs, more = Identity(), logged(Identity, 20), logged(Identity, 20, seed=1)

    def made(batches):
        agent = make_agent(kind.name, env.observation_space, env.action_space, seed=3)
        for batch in batches:
            agent.learn_from(batch)
        return agent

    def written(agent, name):
        save_agent(agent, tmp_path / name, action_set_hash="h", action_set_names=["a", "b", "c", "d"])
        return {file.name: file.read_bytes() for file in sorted((tmp_path / name).iterdir())}

    first = written(made([logs]), "first")
    assert first == written(made([logs]), "second")
    assert first != written(made([more]), "other")
    loaded = load_agent(tmp_path / "first", expected_action_set_hash="h")
    obs, masks = np.arange(4), np.ones((4, 4), bool)
    probs, again = (agent.probabilities(obs, action_mask=masks)[0] for agent in (made([logs]), loaded))
    assert np.array_equal(probs, again)
    loaded.learn_from(more)
    assert written(loaded, "gone on") == written(made([logs, more]), "undisturbed")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FittedQ, {"gamma": 1.5}, "fitted_q: gamma = 1.5; expected a number from 0 to 1."),
        (FittedQ, {"iterations": 0}, "fitted_q: iterations = 0; expected a whole number of at least 1, or none."),
        (FittedQ, {"degree": 7}, "fitted_q: degree = 7; expected 1, 2 or 3."),
        (FittedQ, {"temperature": -1}, "fitted_q: temperature = -1; expected a number of at least 0."),
        (BehaviourCloning, {"best": 0}, "behaviour_cloning: best = 0; expected a share above 0, at most 1."),
        (BehaviourCloning, {"net_arch": [0]}, "behaviour_cloning: net_arch = (0,); expected sizes of at least 1."),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kind, options, message):
    with pytest.raises(ConfigError) as error:
        learner(kind, Identity, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", [BehaviourCloning, FittedQ])
def test_acting_before_learning_is_refused(kind):
    with pytest.raises(UsageError) as error:
        learner(kind, Identity).act(np.arange(2), action_mask=np.ones((2, 4), bool), rng=[])
    expected = "has learned nothing yet; call learn_from(batch), or load a saved agent."
    assert str(error.value) == f"{kind.name} {expected}"


# -------------------------------------------------------------------------------------------------------- regression


def test_the_regression_is_kernel_ridge_and_its_error_that_of_leaving_each_row_out():
    rng = np.random.default_rng(0)
    features, actions = rng.normal(size=(40, 3)), np.repeat([0, 1], 20)
    targets = features[:, 0] * features[:, 1] + rng.normal(size=40) * 0.1
    model = ActionRegression(features, actions, 3).fit(targets)
    scaled = ((features - model.centre) / model.scale).astype(np.float32).astype(np.float64)

    def fitted(rows, asked, mean):
        ridge = KernelRidge(alpha=model.penalty, kernel=lambda a, b: (1 + a @ b) ** 2 - 1)
        ridge.fit(scaled[rows], targets[rows] - mean)
        return ridge.predict(scaled[asked]) + mean

    predicted = model.predict(features)
    for action in (0, 1):
        rows = np.flatnonzero(actions == action)
        assert predicted[:, action] == pytest.approx(fitted(rows, slice(None), targets[rows].mean()), abs=1e-8)
    assert predicted[:, 2] == pytest.approx(np.full(40, targets.mean()))
    assert model.seen.tolist() == [True, True, False]
    errors = []
    for row in range(40):
        alike = np.flatnonzero(actions == actions[row])
        left = fitted(alike[alike != row], [row], targets[alike].mean())
        errors.append(float(left[0] - targets[row]) ** 2)
    assert model.error == pytest.approx(np.mean(errors) / targets.var(), rel=1e-6)
    assert model.error < 0.5  # a product of two features, seen by degree 2


def test_few_centres_predict_almost_as_all_do():
    rng = np.random.default_rng(1)
    features, actions = rng.normal(size=(300, 4)), np.zeros(300, np.int64)
    targets = features[:, 0] + features[:, 1] ** 2
    whole = ActionRegression(features, actions, 1).fit(targets)
    few = ActionRegression(features, actions, 1, landmarks=60).fit(targets)
    assert len(few.weights) == 60
    assert few.predict(features)[:, 0] == pytest.approx(whole.predict(features)[:, 0], abs=0.1)


# -------------------------------------------------------------------------------------------------------- estimators


def by_hand():
    """Three episodes of two steps, two actions chosen with 1/2; the target takes action 0 with 3/4."""
    return LoggedEpisodes(
        obs_space=spaces.Discrete(2),
        obs=np.array([0, 1, 0, 1, 0, 1]),
        next_obs=np.array([1, 1, 1, 1, 1, 1]),
        actions=np.array([0, 0, 0, 1, 1, 1]),
        rewards=np.array([1.0, 2.0, 1.0, 0.0, 0.0, 4.0]),
        terminated=np.array([False, True] * 3),
        masks=np.ones((6, 2), bool),
        next_masks=np.ones((6, 2), bool),
        log_probs=np.full(6, np.log(0.5)),
        episodes=np.repeat([0, 1, 2], 2),
        steps=np.tile([0, 1], 3),
    )


def test_importance_sampling_equals_the_hand_computed_case():
    found = off_policy_values(Soft(0.75), by_hand(), estimators=("pdis", "weighted_pdis"), gamma=0.5)
    # ratios: 1.5 for action 0, 0.5 for action 1; weights of step 0: 1.5 1.5 0.5, of step 1: 2.25 0.75 0.25
    assert found["pdis"].value == pytest.approx((1.5 + 1.5 + 0.5 * (2.25 * 2 + 0.25 * 4)) / 3)
    assert found["weighted_pdis"].value == pytest.approx(3.0 / 3.5 + 0.5 * (2.25 * 2 + 0.25 * 4) / 3.25)
    assert found["pdis"].effective_sample_size == pytest.approx(3.25**2 / (2.25**2 + 0.75**2 + 0.25**2))
    assert (found["pdis"].episodes, found["pdis"].clusters) == (3, 3)


def test_the_policy_that_was_logged_is_worth_what_it_earned():
    logs = logged(Identity, 40)
    _, returns = logs.returns()
    found = off_policy_values(RandomAgent(), logs)
    assert found["pdis"].value == pytest.approx(returns.mean())
    assert found["weighted_pdis"].value == pytest.approx(returns.mean())
    # The model knows which numbers the logs happened to be lucky with: nearer to the true 8 / 4.
    assert found["doubly_robust"].value == pytest.approx(2.0, abs=0.5 * abs(returns.mean() - 2.0))
    assert found["pdis"].effective_sample_size == pytest.approx(40)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "fitted"])
def test_the_interval_holds_the_truth_and_shrinks_with_more_logs(name):
    """`Identity` under the soft policy: 1 where 0 is shown (p), else (1 - p) / 3, whichever number is shown."""
    truth = 3 * 0.25
    held, widths = 0, []
    for seed in range(8):
        logs = logged(lambda: Identity(length=3), 40, seed=seed)
        estimate = off_policy_value(Soft(0.4), logs, estimator=name)
        low, high = estimate.interval
        held += low <= truth <= high
        widths.append(high - low)
    assert held >= 7
    more = off_policy_value(Soft(0.4), logged(lambda: Identity(length=3), 320, seed=99), estimator=name)
    assert more.interval[1] - more.interval[0] < 0.6 * np.mean(widths)


def test_a_model_makes_doubly_robust_narrower_than_importance_sampling():
    logs = logged(Identity, 100)
    found = off_policy_values(Soft(0.5), logs)

    def width(name):
        return found[name].interval[1] - found[name].interval[0]

    assert width("doubly_robust") < 0.6 * width("pdis")


def test_episodes_of_one_cluster_count_as_one_draw():
    logs = logged(Identity, 40)
    doubled = LoggedEpisodes.joined([logs, logs])
    paired = LoggedEpisodes(**{**vars(doubled), "clusters": doubled.episodes % 40})
    alone, twice, pairs = (
        off_policy_value(Soft(0.3), each, estimator="weighted_pdis") for each in (logs, doubled, paired)
    )
    assert pairs.clusters == 40
    assert twice.interval[1] - twice.interval[0] < 0.8 * (alone.interval[1] - alone.interval[0])
    assert pairs.interval[1] - pairs.interval[0] == pytest.approx(alone.interval[1] - alone.interval[0], rel=0.05)


def test_a_policy_that_the_logs_hardly_know_is_not_trusted(caplog):
    with caplog.at_level(logging.WARNING):
        estimate = off_policy_value(FixedAgent(1), logged(Identity, 30))
    assert not estimate.trustworthy
    assert caplog.messages == [
        "off-policy evaluation of 'fixed': an effective sample size of 0.0, from 30 episodes. The logged policy hardly "
        "ever chose as this one does; the interval means little. Log more chains, or a policy nearer to it."
    ]
    assert off_policy_value(RandomAgent(), logged(Identity, 30)).trustworthy


def test_an_agents_state_is_carried_along_episodes_of_different_lengths():
    logs = logged(Horizon, 20)
    probs = target_probabilities(SequenceAgent([0, 1]), logs)
    assert len(set(np.bincount(logs.episodes))) > 1
    assert probs.argmax(axis=1).tolist() == (logs.steps % 2).tolist()


def test_what_cannot_be_estimated_is_said():
    logs = logged(Identity, 4)

    def message(error, agent, given, **options):
        with pytest.raises(error) as caught:
            off_policy_value(agent, given, **options)
        return str(caught.value)

    assert message(ConfigError, Soft(0.5), logs, estimator="dubly_robust") == (
        "unknown estimator 'dubly_robust'; did you mean 'doubly_robust'? Known: pdis, weighted_pdis, doubly_robust, "
        "weighted_doubly_robust, fitted."
    )
    assert message(UsageError, Agent(), logs) == (
        "agent 'agent' (Agent) does not say with which probability it chooses; expected a method probabilities(obs, *, "
        "action_mask, state, deterministic), without which logs cannot evaluate it."
    )
    unknown = LoggedEpisodes(**{**vars(logs), "log_probs": np.where(logs.steps == 0, np.nan, logs.log_probs)})
    assert message(UsageError, Soft(0.5), unknown) == (
        "off-policy evaluation: of 4 of 32 logged choices the probability is not known; expected it of all. Log with a "
        "policy that draws and says its probabilities, such as 'random'."
    )
    cut_off = LoggedEpisodes(**{**vars(logs), "terminated": np.zeros(len(logs), bool)})
    assert message(UsageError, Soft(0.5), cut_off) == (
        "off-policy evaluation: the logs hold no complete episode; expected at least two."
    )
    one = LoggedEpisodes(**{**vars(logs), "clusters": np.zeros(len(logs), np.int64)})
    assert message(UsageError, Soft(0.5), one) == (
        "off-policy evaluation: all episodes are of one cluster; an interval needs two or more."
    )
    positive = LoggedEpisodes(**{**vars(logs), "log_probs": np.full(len(logs), 0.5)})
    assert message(UsageError, Soft(0.5), positive) == (
        "off-policy evaluation: a logged choice has log-probability 0.5; expected at most 0."
    )
    assert DEFAULT_ESTIMATOR in ESTIMATORS


# --------------------------------------------------------------------------------------- probabilities of baselines


@pytest.mark.parametrize("agent", [RandomAgent(), FixedAgent(2), SequenceAgent([2, 0]), RoundRobinAgent()])
def test_baselines_choose_as_often_as_they_say(agent):
    masks = np.tile(np.array([[1, 0, 1, 1]], bool), (4000, 1))
    state = said = None
    for step in range(2):
        probs, said = agent.probabilities(None, action_mask=masks, state=said)
        decision: Decision = agent.act(
            None, action_mask=masks, rng=[row_rng(0, row, 0, step) for row in range(4000)], state=state
        )
        state = decision.state
        assert np.bincount(decision.actions, minlength=4) / 4000 == pytest.approx(probs[0], abs=0.03)
        assert np.array_equal(state, said) or state is said is None


# -------------------------------------------------------------------------------------------------------------- logs


def test_logs_are_joined_cut_and_counted():
    logs = logged(Mixed, 5)
    joined = LoggedEpisodes.joined([logs, logs.rows(logs.episodes >= 3)])
    assert (joined.num_episodes, len(joined), joined.horizon, joined.num_actions) == (7, 28, 4, 3)
    assert joined.knows_behaviour
    assert joined.flat().shape == (28, 9)
    cut = logs.rows(np.arange(len(logs)) < len(logs) - 1)
    assert cut.complete().num_episodes == 4
    assert logs.returns()[1].tolist() == [float(logs.rewards[logs.episodes == e].sum()) for e in range(5)]


def test_logs_that_contradict_themselves_are_refused():
    logs = by_hand()
    for change, message in (
        ({"rewards": np.zeros(3)}, "logged episodes: rewards has 3 rows; expected 6, one an action."),
        (
            {"actions": np.array([0, 0, 0, 1, 1, 2])},
            "logged episodes: actions from 0 to 2; expected 0 to 1, as many as the masks have columns.",
        ),
        (
            {"rewards": np.full(6, np.nan)},
            "logged episodes: a reward is not a number; leave out the steps that have none.",
        ),
        (
            {"steps": np.array([0, 1, 0, 1, 1, 0])},
            "logged episodes: rows out of order; expected (episode, step), the steps 0, 1, 2, ...",
        ),
    ):
        with pytest.raises(UsageError) as error:
            LoggedEpisodes(**{**vars(logs), **change})
        assert str(error.value) == message
    with pytest.raises(UsageError) as error:
        LoggedEpisodes.joined([])
    assert str(error.value) == "no logged episodes to join; expected at least one log."
    with pytest.raises(UsageError) as error:
        LoggedEpisodes.joined([logs, logged(Identity, 2)])
    assert str(error.value) == "logged episodes of different observation spaces or numbers of actions."
