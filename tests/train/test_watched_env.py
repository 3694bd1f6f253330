from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from instructgym.agents import PPO, PPOConfig
from instructgym.envs.spec import EnvConfig
from instructgym.errors import BudgetExhausted, ConnectionLost
from instructgym.llm_backends import LLM
from instructgym.rewards import Reward
from instructgym.train.accounting import CountingBackend
from instructgym.train.watched_env import WatchedVectorEnv
from instructgym.types import Completion, Request, Score, Transition


class Expert:
    """Answers after 0 to 4 turns of the loop; after `after` requests it raises `fails`, if that is given."""

    name = "expert"

    def __init__(self, fails: Exception | None = None, after: int = 0) -> None:
        self.fails, self.after = fails, after
        self.asked = self.answering = 0

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        number = self.asked
        if self.fails is not None and number > self.after:
            raise self.fails
        self.answering += 1
        try:
            for _ in range(number % 5):
                await asyncio.sleep(0)
        finally:
            self.answering -= 1
        return Completion(f"Explain it, version {number}.")

    async def aclose(self) -> None:
        pass


class Memory(Reward):
    name = "memory"

    def __init__(self) -> None:
        self.commits: list[list[Transition]] = []
        self.threads: set[str] = set()

    async def score(self, transition: Transition) -> Score:
        return Score(float(len(self.commits)))

    def commit(self, transitions: Sequence[Transition]) -> None:
        self.commits.append(list(transitions))
        self.threads.add(threading.current_thread().name)

    def state_dict(self) -> dict[str, int]:
        return {"commits": len(self.commits)}


@contextlib.contextmanager
def watched(expert: Expert, reward: Reward, rows: int = 3, horizon: int = 4) -> Iterator[WatchedVectorEnv]:
    counting = CountingBackend(expert)
    llm = LLM(counting, role="expert", model="fake")
    config = EnvConfig(expert=llm, seeds=["Explain it."], reward=reward, elimination=(), horizon=horizon)
    with contextlib.closing(WatchedVectorEnv(rows, config, counting)) as env:
        env.reset(seed=0)
        yield env


def test_the_memory_takes_what_was_received_in_order_of_env_and_step() -> None:
    reward = Memory()
    with watched(Expert(), reward) as env:
        env.send(np.array([0, 1, 2]))
        taken: list[list[Transition]] = [[], [], []]

        def receive() -> None:
            rows = env.recv()[-1]["env_id"].tolist()
            for row in rows:
                transition = env.last_transitions[row]
                assert transition is not None
                taken[row].append(transition)
            env.send(np.zeros(len(rows), int), rows)

        for _ in range(7):
            receive()
        env.end_rollout()
        assert reward.commits == [[*taken[0], *taken[1], *taken[2]]]
        taken = [[], [], []]
        for _ in range(4):
            receive()
        env.end_rollout()
        assert reward.commits[1] == [*taken[0], *taken[1], *taken[2]]


def test_the_memory_is_written_where_steps_in_flight_read_it() -> None:
    reward = Memory()
    with watched(Expert(), reward) as env:
        env.step(np.zeros(3, int))
        env.end_rollout()
    assert reward.threads == {"instructgym-portal"}


def test_what_ends_the_run_is_raised_by_recv() -> None:
    spent = BudgetExhausted("the budget of 3 calls is spent")
    with watched(Expert(spent, after=3), Memory()) as env:
        env.send(np.zeros(3, int))
        env.recv(3)
        env.send(np.zeros(3, int))
        with pytest.raises(BudgetExhausted, match="the budget of 3 calls is spent"):
            env.recv()


def test_a_failure_that_ends_nothing_is_an_invalid_row() -> None:
    with watched(Expert(ConnectionLost("gone")), Memory()) as env:
        env.send(np.zeros(3, int))
        *_, truncated, infos = env.recv(3)
        assert truncated.all()
        assert not any(info for info in infos["final_info"]["valid"])


def test_asynchronous_training_ends_with_what_ends_the_run_and_leaves_nothing_in_flight() -> None:
    expert = Expert(BudgetExhausted("the budget of 40 calls is spent"), after=40)
    with watched(expert, Memory()) as env:
        config = PPOConfig(n_steps=8, n_epochs=1, batch_size=8, net_arch=(8,), collect="async")
        ppo = PPO(env.single_observation_space, env.single_action_space, config)
        with pytest.raises(BudgetExhausted, match="the budget of 40 calls is spent"):
            ppo.learn(env, 1000, progress=lambda steps, metrics: env.end_rollout())
        assert expert.answering == 0
        assert 0 < ppo.num_steps <= 40


def test_asynchronous_training_feeds_the_memory_every_valid_step_once() -> None:
    reward = Memory()
    with watched(Expert(), reward) as env:
        config = PPOConfig(n_steps=8, n_epochs=1, batch_size=8, net_arch=(8,), collect="async", min_ready=1)
        ppo = PPO(env.single_observation_space, env.single_action_space, config)
        ppo.learn(env, 100, progress=lambda steps, metrics: env.end_rollout())
        committed = [transition for commit in reward.commits for transition in commit]
        assert len(committed) == 100
        assert len({transition.reply for transition in committed}) == 100
