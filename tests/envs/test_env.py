from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from instructgym.envs import InstructionEvolutionEnv
from instructgym.errors import ConfigError, ConnectionLost, EndpointUnreachable, SeedError, UsageError
from instructgym.rewards import Clip, Reward, WeightedSum
from instructgym.types import Completion, Instruction, Score

MODES = ("flat", "dict", "tokens", "last_operation")
ID = "instructgym/InstructionEvolution-v0"


@pytest.fixture
def make(env_options, closing):
    def build(script=None, **changes):
        return closing(InstructionEvolutionEnv(**env_options(script, **changes)))

    return build


def episode(env, actions, **reset):
    trace = [env.reset(**reset)]
    for action in actions:
        trace.append(env.step(action))
        if trace[-1][2] or trace[-1][3]:
            break
    return trace


@pytest.mark.parametrize("env_id", [ID, "instructgym/TeaMsRL-v0"])
def test_gymnasiums_checker_passes_on_the_defaults(env_id, closing):
    check_env(closing(gymnasium.make(env_id)).unwrapped)


@pytest.mark.parametrize("mode", MODES)
def test_both_checkers_pass_in_every_observation_mode(mode, closing):
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = closing(gymnasium.make(ID, observation=mode, with_stop=True, render_mode="ansi")).unwrapped
    check_env(env)
    sb3_check_env(env, skip_render_check=False)


def test_seeded_episodes_repeat_themselves_with_all_their_infos(make):
    first, second = (episode(make(horizon=5), [0, 5, 1, 2, 3], seed=11) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:-1] == other[1:-1]
        assert one[-1].pop("action_mask").tolist() == other[-1].pop("action_mask").tolist()
        assert one[-1] == other[-1]


def test_other_seeds_start_elsewhere_and_draw_other_rewrites(make):
    env = make()
    starts = {env.reset(seed=seed)[1]["seed_id"] for seed in range(20)}
    assert starts == {"sky", "bread", "rows"}
    texts = set()
    for seed in range(10):
        env.reset(seed=seed, options={"seed_id": "sky"})
        texts.add(env.step(0)[-1]["instruction"])
    assert len(texts) > 2


def test_draws_per_seed_bounds_the_chains(make):
    env = make(draws_per_seed=2)
    draws = {env.reset(seed=seed) and env.state.chain_draw for seed in range(20)}
    assert draws == {0, 1}


def test_info_of_reset_and_step_has_the_same_types(make):
    env = make({"deepen": Completion("Explain why the sky is red.")})
    _, first = env.reset(options={"seed_id": "sky"})
    _, reward, _, _, second = env.step(1)
    assert {key: type(value) for key, value in first.items()} == {
        key: type(value) for key, value in second.items() if not key.startswith("reward/")
    }
    assert second.pop("action_mask").dtype == np.int8
    assert second == {
        "instruction": "Explain why the sky is red.",
        "input": "",
        "parent": "Explain why the sky is blue to a child.",
        "operation": "deepen",
        "elimination": "",
        "failure": "",
        "calls": 1,
        "usage": {"prompt_tokens": 0.0, "completion_tokens": 0.0},
        "valid": True,
        "seed_id": "sky",
        "topic": "science",
        "step": 1,
        "reward/words_added": reward,
    }


def test_eliminated_rewrite_costs_the_penalty_and_goes_on(make):
    env = make({"deepen": Completion("")}, penalty=0.3)
    _, start = env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (-0.3, False, False)
    assert (info["elimination"], info["valid"], info["instruction"]) == ("empty", True, start["instruction"])
    assert not [key for key in info if key.startswith("reward/")]


def test_horizon_terminates(make):
    trace = episode(make(horizon=3), [0, 0, 0, 0], seed=0)
    assert [(step[2], step[3]) for step in trace[1:]] == [(False, False), (False, False), (True, False)]


def test_stop_terminates_and_pays_nothing(make):
    env = make(with_stop=True)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(6)
    assert (reward, terminated, truncated, info["operation"], info["calls"]) == (0.0, True, False, "stop", 0)


def test_backend_failure_is_truncation_not_reward(make):
    env = make({"deepen": ConnectionLost("gone")})
    before, start = env.reset(seed=0)
    after, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["valid"], info["failure"], info["step"]) == (False, "ConnectionLost: gone", 0)
    assert info["instruction"] == start["instruction"]
    np.testing.assert_array_equal(before, after)
    with pytest.raises(UsageError) as caught:
        env.step(0)
    assert str(caught.value) == ("the last step failed and ended the episode; call reset(), or retry() to ask again.")


def test_a_failed_step_can_be_retried_from_its_state(env_options, closing):
    options = env_options({"deepen": ConnectionLost("gone")})
    env = closing(InstructionEvolutionEnv(**options))
    env.reset(seed=0)
    env.step(1)
    options["expert"].backend.script.clear()
    _, _, terminated, truncated, info = env.retry(1)
    assert (terminated, truncated, info["valid"], info["step"]) == (False, False, True, 1)
    with pytest.raises(UsageError) as caught:
        env.retry(1)
    assert str(caught.value) == "retry() repeats a step whose info['valid'] is False; the last one was valid."


def test_missing_reward_is_an_invalid_row(make):
    env = make({"deepen": Completion("Explain it.")}, reward=lambda transition: None)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["valid"], info["failure"]) == (False, "reward missing")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_reward_that_commits_and_saves_nothing_is_given_the_rollout(make, wrapped):
    class Diary(Reward):
        name = "diary"

        def __init__(self):
            self.rollouts = []

        async def score(self, transition):
            return Score(1.0, {"diary": 1.0})

        def commit(self, transitions):
            self.rollouts.append([(each.step, each.operation) for each in transitions])

    diary = Diary()
    assert diary.state_dict() == {}
    env = make(reward=Clip(WeightedSum({"diary": (diary, 1.0)})) if wrapped else diary, horizon=2)
    trace = episode(env, [0, 1], seed=0)
    assert trace[-1][2]
    assert diary.rollouts == []
    names = env.unwrapped.dynamics.action_set.names
    env.unwrapped.end_rollout()
    env.unwrapped.end_rollout()
    assert diary.rollouts == [[(0, names[0]), (1, names[1])], []]


def test_action_masks_follow_the_state(make, only_at_start):
    from instructgym.envs import ActionSet, Rewrite

    env = make(action_set=ActionSet("mine", (Rewrite("deepen", "Deepen it."), only_at_start)))
    _, info = env.reset(seed=0)
    assert env.action_masks().tolist() == [True, True]
    assert env.action_masks().dtype == np.bool_
    assert env.action_space.sample(info["action_mask"]) in (0, 1)
    assert env.step(0)[-1]["action_mask"].tolist() == [1, 0]
    assert env.action_masks().tolist() == [True, False]


def test_reset_evolves_the_users_own_text(make):
    env = make()
    _, info = env.reset(options={"instruction": "Sum the column.", "input": "a\n1\n2"})
    assert (info["instruction"], info["input"], info["seed_id"]) == ("Sum the column.", "a\n1\n2", "user")
    _, info = env.reset(options={"instruction": Instruction("Count them.", "x x")})
    assert (info["instruction"], info["input"]) == ("Count them.", "x x")
    _, info = env.reset(options={"seed_id": "rows"})
    assert info["instruction"] == "Which town is the largest?"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"instrution": "a"}, ConfigError, "unknown reset option 'instrution'; did you mean 'instruction'? Known: "),
        ({"seed_id": "moon"}, SeedError, "there is no seed 'moon' among the 3 of this environment."),
        ({"instruction": " "}, SeedError, "reset option 'instruction' is empty; expected the text of an instruction."),
        (
            {"instruction": "a \ud83d b"},
            SeedError,
            "reset option 'instruction' holds half of a surrogate pair, which is no character; expected text.",
        ),
        ({"input": "a"}, ConfigError, "reset option 'input' has no 'instruction'; pass both."),
        (
            {"instruction": "a", "seed_id": "sky"},
            ConfigError,
            "reset options 'instruction' and 'seed_id' exclude each ",
        ),
    ],
)
def test_wrong_reset_options_say_what_was_expected(make, options, error, message):
    with pytest.raises(error) as caught:
        make().reset(options=options)
    assert str(caught.value).startswith(message)


def test_ansi_shows_the_chain_so_far(make):
    script = {
        "deepen": Completion("Which town is the largest, and why?"),
        "concretize": Completion("which town is the LARGEST, and why"),
    }
    env = make(script, render_mode="ansi", with_stop=True)
    env.reset(options={"seed_id": "rows"})
    for action in (1, 2, 6):
        env.step(action)
    assert env.render() == textwrap.dedent(
        """\
        seed rows (data)
            Which town is the largest?
        BLANK
            town,people
            A,10
            B,20
        1/4 deepen
            Which town is the largest, and why?
        BLANK
            town,people
            A,10
            B,20
        2/4 concretize: eliminated, copy: the parent up to case, spacing and punctuation
        3/4 stop: the instruction stays as it is
        end: stopped"""
    ).replace("BLANK", "    ")


def test_nothing_opens_before_the_first_reset(make):
    env = make()
    for call in (lambda: env.step(0), env.action_masks, lambda: env.state, lambda: env.dynamics):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == "the environment has not been reset, or was closed; call reset() first."
    env.close()


def test_close_twice_and_reset_again(make):
    env = make()
    env.reset(seed=0)
    env.close()
    env.close()
    env.reset(seed=0)
    assert env.step(0)[-1]["valid"]


def test_an_endpoint_that_is_not_there_is_an_error_at_reset(seeds, closing, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    env = closing(InstructionEvolutionEnv(seeds=seeds, expert="openai", model="m", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(EndpointUnreachable):
        env.reset()


def test_ledger_file_holds_the_calls_and_a_second_env_is_answered_from_it(tmp_path, fake_llm, seeds, closing):
    backend = fake_llm()
    path = tmp_path / "ledger.sqlite"
    traces, paid = [], []
    for _ in range(2):
        env = closing(InstructionEvolutionEnv(expert=backend, seeds=seeds, ledger_path=path, horizon=3))
        traces.append([str(step[1:]) for step in episode(env, [0, 1, 2], seed=4)])
        env.close()
        paid.append(len(backend.requests))
    assert paid[0] == paid[1] > 0
    assert traces[0] == traces[1]


def _use_in_child(env, queue):
    try:
        env.step(0)
    except UsageError as error:
        queue.put(str(error))
    env.close()
    fresh = InstructionEvolutionEnv()
    fresh.reset(seed=0)
    queue.put(bool(fresh.step(0)[-1]["valid"]))
    fresh.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_env_of_another_process_says_where_to_create_it(make):
    env = make()
    env.reset(seed=0)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_use_in_child, args=(env, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    message = queue.get()
    assert "create the env inside the worker" in message
    assert str(os.getpid()) in message
    assert queue.get() is True
    assert env.step(0)[-1]["valid"]


def test_a_script_that_never_closes_ends(tmp_path):
    script = f"""
        import gymnasium, instructgym
        env = gymnasium.make("{ID}", ledger_path={str(tmp_path / "ledger.sqlite")!r})
        envs = gymnasium.make_vec("{ID}", num_envs=2, vectorization_mode="vector_entry_point")
        env.reset(seed=0)
        env.step(0)
        envs.reset(seed=0)
        envs.send([0, 1])
        print("done")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)
