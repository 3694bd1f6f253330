"""Planners pay for what they try, and the tree knows every sequence."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from instructgym.envs.dynamics import Dynamics
from instructgym.envs.loading import load_action_set
from instructgym.errors import AuthenticationFailed, BackendError, ConfigError, ServerError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.train.chains import ChainJob, run_chains
from instructgym.train.config_text import load_config
from instructgym.train.planning import (
    Greedy,
    Planned,
    Planner,
    Search,
    check_tree_size,
    grow_tree,
    planner_named,
    tree_nodes,
)
from instructgym.train.policy_bench.oracle import BareRuntime
from instructgym.types import Completion, Instruction, Request, Seed

SEED = Seed("bridge", Instruction("Explain how a suspension bridge carries its load."), "engineering")


def dynamics_of(*overrides: str) -> Dynamics:
    runtime = BareRuntime(load_config("quickstart", ["env.action_set=core", "env.horizon=2", *overrides]))
    return runtime.dynamics("test", runtime.reward_for("test"))


def test_greedy_takes_the_best_of_all_rewrites_and_pays_for_each() -> None:
    dynamics = dynamics_of()
    state = dynamics.start(SEED, 3)

    async def compare() -> tuple[Planned, list[float | None]]:
        rewards = [(await dynamics.step(state, action)).reward for action in range(4)]
        return await Greedy().step(dynamics, state), rewards

    planned, rewards = asyncio.run(compare())
    assert planned.outcome.reward == max(reward for reward in rewards if reward is not None)
    assert planned.calls + planned.outcome.calls == 4
    assert planned.reviewer_calls > 0
    assert planned.usage.prompt_tokens > 3 * planned.outcome.usage.prompt_tokens / 2


def test_a_chain_counts_what_its_planner_asked() -> None:
    runtime = BareRuntime(load_config("quickstart", ["env.action_set=core", "env.horizon=2"]))
    dynamics = runtime.dynamics("test", runtime.reward_for("test"))
    jobs = [ChainJob(0, SEED, 0, Greedy(), "greedy"), ChainJob(1, SEED, 1, Greedy(), "greedy")]
    chains = asyncio.run(run_chains(jobs, dynamics=dynamics, observer=runtime.observer, run_seed=0, width=2))
    assert [chain.calls for chain in chains] == [8, 8]  # 2 steps, 4 operations each
    assert all(step.tokens[0] > 0 and step.reviewer_calls >= 0 for chain in chains for step in chain.steps)


def test_the_tree_holds_what_playing_each_sequence_brings() -> None:
    dynamics = dynamics_of()

    async def play(path: tuple[int, ...]) -> float:
        state, total = dynamics.start(SEED, 5), 0.0
        for action in path:
            outcome = await dynamics.step(state, action)
            total += outcome.reward or 0.0
            state = outcome.state
        return total

    tree = asyncio.run(grow_tree(dynamics, dynamics.start(SEED, 0), 5))
    played = np.array([asyncio.run(play(path)) for path in itertools.product(range(4), repeat=2)]).reshape(4, 4)
    np.testing.assert_allclose(tree.returns, played)
    assert tree.optimum == pytest.approx(played.max())
    assert tree.uniform == pytest.approx(played.mean())
    assert tree.calls == tree_nodes(4, 2) == 20


def test_stop_ends_a_branch_and_the_uniform_value_stops_there_too() -> None:
    dynamics = dynamics_of("env.with_stop=true")
    stop = dynamics.action_set.index("stop")
    tree = asyncio.run(grow_tree(dynamics, dynamics.start(SEED, 0), 0))
    assert tree.calls == 4 + 4 * 4  # nothing below stop
    assert (tree.returns[stop] == 0.0).all()
    below = tree.rewards[1].copy()
    below[stop] = 0.0
    assert tree.uniform == pytest.approx((tree.rewards[0] + below.mean(axis=1)).mean())


def test_search_plans_with_draws_that_no_chain_has() -> None:
    dynamics = dynamics_of()
    samples: set[int] = set()
    backend = SimulatedBackend()

    class Recording:
        name = "recording"

        async def complete(self, request: Request) -> Completion:
            if request.role == "expert":
                samples.add(request.sample[0])
            return await backend.complete(request)

        async def aclose(self) -> None: ...

    dynamics.expert = LLM(Recording(), "expert", "simulated")
    planned = asyncio.run(Search(samples=2).step(dynamics, dynamics.start(SEED, 7)))
    assert planned.calls == 2 * tree_nodes(4, 2)
    assert samples == {7, (1 << 30) + 7 * 3 * 2, (1 << 30) + 7 * 3 * 2 + 1}


def test_a_plan_with_a_failed_call_goes_on_or_ends_as_the_failure_says() -> None:
    dynamics = dynamics_of()
    backend = SimulatedBackend()
    failure: list[BackendError] = [ServerError("503 from the endpoint", status=503)]

    class Failing:
        name = "failing"
        calls = 0

        async def complete(self, request: Request) -> Completion:
            self.calls += 1
            if self.calls == 1:
                raise failure[0]
            return await backend.complete(request)

        async def aclose(self) -> None: ...

    dynamics.expert = LLM(Failing(), "expert", "simulated")
    planned = asyncio.run(Greedy().step(dynamics, dynamics.start(SEED, 0)))
    assert planned.outcome.valid
    assert planned.calls + planned.outcome.calls == 3
    dynamics.expert = LLM(Failing(), "expert", "simulated")
    with pytest.raises(ServerError, match=r"^503 from the endpoint$"):
        asyncio.run(grow_tree(dynamics, dynamics.start(SEED, 0), 0))
    failure[0] = AuthenticationFailed("401: the key is refused", status=401)
    dynamics.expert = LLM(Failing(), "expert", "simulated")
    with pytest.raises(AuthenticationFailed, match=r"^401: the key is refused$"):
        asyncio.run(Greedy().step(dynamics, dynamics.start(SEED, 0)))


def test_planners_by_name() -> None:
    core = load_action_set("core")
    assert isinstance(planner_named("greedy", core, 4), Greedy)
    found = planner_named("search:3", core, 4)
    assert isinstance(found, Search)
    assert found.samples == 3
    assert planner_named("random", core, 4) is None
    with pytest.raises(ConfigError) as caught:
        planner_named("search:few", core, 4)
    assert str(caught.value) == "policy 'search:few'; expected a number of draws after the colon, as in 'search:4'."
    with pytest.raises(ConfigError) as caught:
        check_tree_size(6, 10)
    assert str(caught.value) == (
        "all sequences of 6 operations over 10 steps are 72,559,410 steps; expected at most 20,000. Lower env.horizon, "
        "or choose a smaller action set."
    )
    with pytest.raises(ConfigError, match=r"^policy 'search:0': expected a number of draws of at least 1.$"):
        planner_named("search:0", core, 4)


def test_a_planner_without_a_step_says_so() -> None:
    dynamics = dynamics_of()
    with pytest.raises(TypeError, match=r"^Planner does not define step\(\)$"):
        asyncio.run(Planner().step(dynamics, dynamics.start(SEED, 0)))
