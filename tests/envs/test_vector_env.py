from __future__ import annotations

import asyncio

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from instructgym.envs import InstructionEvolutionEnv, InstructionEvolutionVectorEnv
from instructgym.envs.infos import batch_infos
from instructgym.errors import ConfigError, ConnectionLost, RewardError, UsageError
from instructgym.llm_backends import LLM
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.types import Completion

ID = "instructgym/InstructionEvolution-v0"


def assert_same(one, other, where="batch"):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    elif isinstance(one, np.ndarray):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), where
        if one.dtype == object:
            for index, (left, right) in enumerate(zip(one, other, strict=True)):
                assert_same(left, right, f"{where}[{index}]")
        else:
            np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert one == other, where


@pytest.fixture
def vector(env_options, closing):
    def build(num_envs=4, script=None, **changes):
        return closing(InstructionEvolutionVectorEnv(num_envs, **env_options(script, **changes)))

    return build


@pytest.mark.parametrize("mode", ["flat", "dict", "tokens", "last_operation"])
@pytest.mark.parametrize("limit", [None, 2])
def test_equals_sync_vector_env_step_for_step_on_the_defaults(mode, limit, closing):
    options = {"observation": mode, "with_stop": True, "draws_per_seed": 3, "max_episode_steps": limit}
    sync = closing(
        gymnasium.make_vec(ID, 5, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, **options)
    )
    native = closing(gymnasium.make_vec(ID, 5, "vector_entry_point", **options))
    assert native.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert native.single_observation_space == sync.single_observation_space
    assert_same(native.reset(seed=9), sync.reset(seed=9))
    rng = np.random.default_rng(0)
    for step in range(14):
        actions = rng.integers(7, size=5)
        assert_same(native.step(actions), sync.step(actions), f"step {step}")
        np.testing.assert_array_equal(native.action_masks(), np.stack(sync.call("action_masks")))
    mask = np.array([True, False, True, False, False])
    assert_same(
        native.reset(seed=[1, 2, 3, 4, 5], options={"reset_mask": mask, "seed_id": "code-01"}),
        sync.reset(seed=[1, 2, 3, 4, 5], options={"reset_mask": mask, "seed_id": "code-01"}),
    )
    actions = rng.integers(7, size=5)
    assert_same(native.step(actions), sync.step(actions))


def test_equals_sync_vector_env_where_calls_fail(env_options, closing):
    script = {"deepen": ConnectionLost("gone"), "concretize": Completion("")}
    options = env_options(script, horizon=3)
    native = closing(InstructionEvolutionVectorEnv(3, **options))
    sync = closing(
        SyncVectorEnv([lambda: InstructionEvolutionEnv(**options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    assert_same(native.reset(seed=0), sync.reset(seed=0))
    for actions in ([1, 0, 2], [2, 2, 1], [0, 1, 0], [3, 3, 3]):
        assert_same(native.step(np.array(actions)), sync.step(np.array(actions)), str(actions))


def test_batched_infos_equal_gymnasiums(vector):
    infos = [
        {"a": 1, "s": "x\0", "n": {"p": 1.5}, "m": np.array([1, 0], np.int8)},
        None,
        {"a": 2, "f": 0.5, "b": True, "n": {"p": 2.5, "q": np.float32(3)}, "m": np.array([0, 1], np.int8)},
        {"final_obs": {"x": np.zeros(2)}, "final_info": {"s": "y", "a": 4}},
    ]
    env, expected = vector(4), {}
    for row, info in enumerate(infos):
        if info is not None:
            expected = env._add_info(expected, info, row)
    assert_same(batch_infos(infos), expected)


def test_all_rows_calls_are_in_flight_together(seeds, closing):
    class Counting:
        name = "counting"
        now = most = 0

        async def complete(self, request):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return Completion("Explain it well.")

        async def aclose(self):
            pass

    backend = Counting()
    env = closing(
        InstructionEvolutionVectorEnv(
            8, expert=LLM(backend, "expert", "m"), seeds=seeds, reward=lambda transition: 1.0, elimination=()
        )
    )
    env.reset(seed=0)
    env.step(np.zeros(8, int))
    assert backend.most == 8


def test_states_outcomes_and_transitions_of_the_last_step(vector):
    env = vector(3, {"deepen": ConnectionLost("gone"), "concretize": Completion("")}, horizon=1)
    env.reset(seed=0)
    assert env.last_outcomes == (None, None, None)
    before = env.states
    env.step(np.array([0, 1, 2]))
    kept, failed, eliminated = env.last_transitions
    assert (kept.operation, kept.parent) == ("add_constraints", before[0].instruction)
    assert failed is None
    assert eliminated.elimination.reason == "empty"
    assert [outcome.valid for outcome in env.last_outcomes] == [True, False, True]
    assert [outcome.state.step for outcome in env.last_outcomes] == [1, 0, 1]
    assert [state.step for state in env.states] == [0, 0, 0]


def test_retried_rows_go_on_as_if_nothing_had_failed(env_options, closing):
    def run(fail):
        options = env_options(horizon=3)
        script = options["expert"].backend.script
        env = closing(InstructionEvolutionVectorEnv(3, **options))
        env.reset(seed=5)
        env.step(np.array([0, 0, 0]))
        if fail:
            script["deepen"] = ConnectionLost("gone")
            *_, truncations, infos = env.step(np.array([1, 2, 1]))
            assert truncations.tolist() == [True, False, True]
            assert [info and info for info in infos["final_info"]["valid"]] == [False, False, False]
            *_, truncations, infos = env.retry_rows(np.array([1]), [2])
            assert truncations.tolist() == [True]
            script.clear()
            obs, rewards, terminations, truncations, infos = env.retry_rows(np.array([1, 1]), [2, 0])
            assert obs.shape[0] == len(rewards) == 2
            assert (terminations.tolist(), truncations.tolist()) == ([False, False], [False, False])
            assert infos["env_id"].tolist() == [2, 0]
            assert infos["valid"].tolist() == [True, True]
        else:
            env.step(np.array([1, 2, 1]))
        rest = [env.step(np.array(actions)) for actions in ([2, 3, 4], [0, 0, 0], [1, 2, 3])]
        return tuple(rest)

    assert_same(run(fail=True), run(fail=False))


def test_only_invalid_rows_can_be_retried(vector):
    env = vector(2)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    with pytest.raises(UsageError) as caught:
        env.retry_rows(np.array([0]), [1])
    assert str(caught.value) == "row 1 has no failed step to retry; its last step was valid, or it was reset."


def test_send_and_recv_give_whoever_is_ready(seeds, closing):
    gates: dict[str, asyncio.Event] = {}

    class Gated:
        """Row i starts from seed i and waits for its own gate."""

        name = "gated"

        async def complete(self, request):
            text = request.messages[-1].content
            name = next(word for word in ("slow", "fast", "quick") if word in text)
            if name == "slow":
                await gates.setdefault("slow", asyncio.Event()).wait()
            return Completion(f"Explain {name} things well.")

        async def aclose(self):
            pass

    env = closing(
        InstructionEvolutionVectorEnv(
            3,
            expert=LLM(Gated(), "expert", "m"),
            seeds=["Explain slow things.", "Explain fast things.", "Explain quick things."],
            reward=lambda transition: 1.0,
            elimination=(),
            horizon=2,
        )
    )
    env.reset(seed=0)
    for row in range(3):
        mask = np.arange(3) == row
        env.reset(options={"reset_mask": mask, "seed_id": f"seed-{row}"})
    env.send(np.array([0, 1, 2]))
    obs, rewards, terminations, _, infos = env.recv(min_ready=2)
    assert infos["env_id"].tolist() == [1, 2]
    assert obs.shape == (2, *env.single_observation_space.shape)
    assert infos["operation"].tolist() == ["deepen", "concretize"]
    env.send(np.array([0]), [2])
    *_, infos = env.recv()
    assert infos["env_id"].tolist() == [2]
    assert infos["final_info"]["step"].tolist() == [2]
    assert env.single_observation_space.contains(infos["final_obs"][0])
    with pytest.raises(UsageError) as caught:
        env.step(np.array([0, 0, 0]))
    assert str(caught.value) == "rows [0] are in flight; fetch them with recv() first."
    with pytest.raises(UsageError) as caught:
        env.send(np.array([0]), [0])
    assert str(caught.value) == "rows [0] are in flight; fetch them with recv() first."

    async def open_gate():
        gates["slow"].set()

    env._session.call(open_gate)
    *_, infos = env.recv()
    assert infos["env_id"].tolist() == [0]
    with pytest.raises(UsageError) as caught:
        env.recv()
    assert str(caught.value) == "recv(min_ready=1) with 0 rows in flight; send() as many first."
    assert rewards.tolist() == [1.0, 1.0]
    assert terminations.tolist() == [False, False]


def test_send_and_recv_of_all_rows_equal_a_step(vector):
    one, other = vector(4, horizon=2), vector(4, horizon=2)
    one.reset(seed=3)
    other.reset(seed=3)
    for actions in ([0, 1, 2, 3], [3, 2, 1, 0], [4, 4, 5, 5]):
        expected = one.step(np.array(actions))
        other.send(np.array(actions))
        got = other.recv(min_ready=4)
        assert got[-1].pop("env_id").tolist() == [0, 1, 2, 3]
        assert_same(got, expected)


def test_reset_drops_steps_in_flight(vector):
    env, other = vector(3), vector(3)
    env.reset(seed=0)
    env.send(np.array([0, 0, 0]))
    assert_same(env.reset(seed=1), other.reset(seed=1))
    assert_same(env.step(np.array([0, 1, 2])), other.step(np.array([0, 1, 2])))


def test_an_error_in_one_row_moves_no_row(env_options, closing):
    def reward(transition):
        return float("nan") if transition.operation == "deepen" else 1.0

    options = env_options({"deepen": Completion("Explain it.")}, reward=reward, elimination=(), horizon=1)
    env, other = (closing(InstructionEvolutionVectorEnv(2, **options)) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(RewardError, match="expected one float a transition"):
        env.step(np.array([0, 1]))
    for actions in ([0, 2], [3, 0]):
        assert_same(env.step(np.array(actions)), other.step(np.array(actions)))


def test_an_error_in_one_row_in_flight_is_that_rows_alone(env_options, closing):
    def reward(transition):
        return float("nan") if transition.operation == "deepen" else 1.0

    options = env_options({"deepen": Completion("Explain it.")}, reward=reward, elimination=())
    env, other = (closing(InstructionEvolutionVectorEnv(3, **options)) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=0)
    env.send(np.array([0, 1, 2]))
    with pytest.raises(RewardError, match="expected one float a transition"):
        env.recv(min_ready=3)
    *_, infos = env.recv(min_ready=2)
    assert infos["env_id"].tolist() == [0, 2]
    env.send(np.array([3]), [1])
    assert env.recv()[-1]["env_id"].tolist() == [1]
    other.step(np.array([0, 3, 2]))
    assert_same(env.step(np.array([0, 0, 0])), other.step(np.array([0, 0, 0])))


def test_cancelled_steps_are_as_if_they_had_not_been_sent_and_their_calls_are_not_paid_again(seeds, closing):
    asked, all_asked, answers = [], asyncio.Event(), asyncio.Event()

    class Slow:
        name = "slow"

        async def complete(self, request):
            asked.append(request)
            if len(asked) == 2:
                all_asked.set()
            await answers.wait()
            return Completion("Explain it well.")

        async def aclose(self):
            pass

    env = closing(
        InstructionEvolutionVectorEnv(2, expert=Slow(), seeds=seeds, reward=lambda transition: 1.0, elimination=())
    )
    env.reset(seed=0)
    before = env.states
    env.cancel()  # nothing is in flight
    env.send(np.array([0, 1]))

    env._session.call(all_asked.wait)
    env.cancel()
    assert env.states == before

    async def answer():
        answers.set()

    env._session.call(answer)
    assert env.step(np.array([0, 1]))[-1]["valid"].all()
    assert len(asked) == 2


def test_render_gives_one_text_a_row(vector):
    env = vector(2, render_mode="ansi")
    env.reset(options={"seed_id": "sky"})
    assert env.render() == ("seed sky (science)\n    Explain why the sky is blue to a child.",) * 2


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(3, int), "actions of shape (3,) and type int64; expected 2 whole numbers, one a row."),
        (np.zeros(2), "actions of shape (2,) and type float64; expected 2 whole numbers, one a row."),
    ],
)
def test_wrong_actions_say_what_was_expected(vector, actions, message):
    env = vector(2)
    env.reset(seed=0)
    with pytest.raises(UsageError) as caught:
        env.step(actions)
    assert str(caught.value) == message


def test_wrong_arguments_say_what_was_expected(vector):
    with pytest.raises(ConfigError) as caught:
        vector(0)
    assert str(caught.value) == "num_envs = 0; expected 1 or more."
    env = vector(2)
    with pytest.raises(UsageError) as caught:
        env.step(np.zeros(2, int))
    assert str(caught.value) == "the environment has not been reset, or was closed; call reset() first."
    with pytest.raises(UsageError) as caught:
        env.reset(seed=[1])
    assert str(caught.value) == "1 seeds for 2 rows; pass one a row, or a single number."


def test_closed_with_steps_in_flight_and_opened_again(vector):
    env = vector(2)
    env.reset(seed=0)
    env.send(np.array([0, 0]))
    env.close()
    env.close()
    env.reset(seed=0)
    assert env.step(np.array([0, 0]))[-1]["valid"].all()


class Slow(SimulatedBackend):
    """The simulated backend, but it gives control back before it answers."""

    async def complete(self, request):
        await asyncio.sleep(0)
        return await super().complete(request)


def test_an_expert_that_waits_and_one_that_does_not_lead_to_the_same(closing):
    quick = closing(InstructionEvolutionVectorEnv(6, draws_per_seed=2))
    slow = closing(InstructionEvolutionVectorEnv(6, draws_per_seed=2, expert=Slow()))
    assert_same(quick.reset(seed=3), slow.reset(seed=3))
    assert quick.dynamics.instant
    assert not slow.dynamics.instant
    for step in range(9):
        actions = np.arange(step, step + 6) % 6
        assert_same(quick.step(actions), slow.step(actions))
    for env in (quick, slow):
        (expert,) = [stats for (role, _), stats in env._session._stack.stats().items() if role == "expert"]
        assert (expert.attempts, expert.failed) == (expert.calls, 0)
        assert expert.calls + expert.hits == 54
