"""Instructors that are language models, in whole runs: what they read, who answers them, what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructgym.agents import Agent, Decision, RandomAgent, load_agent
from instructgym.agents.language_model import LMInstructor, PromptedInstructor
from instructgym.envs.operations import ActionSet
from instructgym.errors import AuthenticationFailed, BudgetExhausted, ConfigError, ServerError
from instructgym.llm_backends.budget import Budget
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.server import SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.llm_backends.tokenizing import ByteTokenizer
from instructgym.train.chains import ChainJob, run_chains
from instructgym.train.config import LLM_ROLES
from instructgym.train.config_text import load_config
from instructgym.train.connection import budget_of
from instructgym.train.pipeline import dry_run, run
from instructgym.train.policies import build_agent
from instructgym.train.runtime import Runtime
from instructgym.train.transports import Transports, instructor_models
from instructgym.types import Instruction, Message, Request, Sampling, Seed
from tests.agents.language_toys import BERT, save_model, save_tokenizer
from tests.train.conftest import small_config

TABLE = {**BERT, "max_position_embeddings": 600}
LM = (
    "agent.name=lm",
    "agent.kwargs="
    + json.dumps({"model": TABLE, "n_steps": 4, "batch_size": 8, "n_epochs": 2, "device": "cpu"}).replace(
        '": ', '" = '
    ),
    "train.steps=32",
    "env.observation=tokens",
    "env.observation_length=512",
)


def llm_rows(folder: Path) -> dict[str, int]:
    """Paid calls by role, as the ledger has them."""
    counts: dict[str, int] = {}
    store = SqliteStore(folder / "ledger.sqlite", read_only=True)
    try:
        for (role, _, _), tally in store.tallies().items():
            counts[role] = counts.get(role, 0) + tally.calls
    finally:
        store.close()
    return counts


# --- whole runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, seeds_file: Path) -> tuple[Path, dict[str, Any]]:
    """A run that trained a language model, compared it with a chat model, and evolved with the chat model."""
    out = tmp_path_factory.mktemp("lm") / "run"
    policies = 'evaluate.policies=["trained", "random", "llm:simulated"]'
    result = run(small_config(seeds_file, *LM, policies, "evolve.policy=llm:simulated"), out)
    assert result.exit_code == 0
    return out, dict(result.summary)


def test_a_run_trains_a_language_model_and_asks_a_chat_model(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    agent = load_agent(out / "agent", expected_action_set_hash=None)
    assert isinstance(agent, LMInstructor)
    assert (agent.num_steps, agent.action_names[0]) == (32, "add_constraints")
    table = summary["evaluation"]["policies"]
    asked = table["llm:simulated"]["choosing"]
    assert asked["choices"] == table["llm:simulated"]["transitions"]
    assert asked["replies"] == asked["choices"] + asked["unreadable_replies"]
    assert "choosing" not in table["random"]
    # What was asked to choose is in the tokens, and no expert call.
    assert table["llm:simulated"]["prompt_tokens"] > 2 * table["random"]["prompt_tokens"]
    assert table["llm:simulated"]["expert_calls"] == table["random"]["expert_calls"]
    assert summary["evolve"]["choosing"]["choices"] == summary["evolve"]["transitions"]
    rows = {(row["stage"], row["role"]): row["calls"] for row in summary["queries"]["rows"]}
    assert rows["evaluate", "instructor"] == asked["replies"]
    assert rows["evolve", "instructor"] == summary["evolve"]["choosing"]["replies"]
    assert ("train", "instructor") not in rows
    assert 0 < llm_rows(out)["instructor"] <= rows["evaluate", "instructor"] + rows["evolve", "instructor"]
    assert summary["models"]["instructor"] == "llm:simulated"


def test_the_same_run_twice_gives_the_same_bytes(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, seeds_file: Path
) -> None:
    out, _ = finished
    policies = 'evaluate.policies=["trained", "random", "llm:simulated"]'
    run(small_config(seeds_file, *LM, policies, "evolve.policy=llm:simulated"), tmp_path / "again")
    for name in ("agent/weights.safetensors", "agent/agent.json", "stages/evaluation.json", "lineage.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_flat_learner_and_a_chat_model_stand_side_by_side(tmp_path: Path, seeds_file: Path) -> None:
    policies = 'evaluate.policies=["trained", "llm:simulated"]'
    result = run(small_config(seeds_file, policies), tmp_path / "run", stages=("train", "evaluate"))
    table = result.summary["evaluation"]["policies"]
    assert table["trained"]["chains"] == table["llm:simulated"]["chains"]
    assert table["llm:simulated"]["choosing"]["cut_instructions"] == 0


def test_a_saved_chat_model_is_asked_again(tmp_path: Path, seeds_file: Path) -> None:
    config = small_config(seeds_file, "agent.name=llm:simulated", "agent.kwargs={}", 'evaluate.policies=["trained"]')
    result = run(config, tmp_path / "first", stages=("train", "evaluate"))
    row = result.summary["evaluation"]["policies"]["trained"]
    assert row["choosing"]["choices"] == row["transitions"]
    folder = str(tmp_path / "first" / "agent")
    other = small_config(seeds_file, f"evaluate.policies=[{json.dumps(folder)}]")
    assert instructor_models(other) == ("simulated",)
    again = run(other, tmp_path / "second", stages=("evaluate",))
    assert again.summary["evaluation"]["policies"][folder]["choosing"] == row["choosing"]


def test_the_instructor_has_an_endpoint_and_a_budget_of_its_own(
    tmp_path: Path, seeds_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with SimulatedServer(SimulatedBackend()).in_thread() as server:
        config = small_config(
            seeds_file,
            'evaluate.policies=["llm:simulated"]',
            "evolve.policy=random",
            "llm.instructor.backend=openai",
            f"llm.instructor.base_url={server.base_url}",
            "budget.instructor.max_calls=3",
        )
        with pytest.raises(BudgetExhausted) as caught:
            run(config, tmp_path / "run", stages=("evaluate",))
        assert "budget of role 'instructor'" in str(caught.value)
        assert server.stats()["requests"] == 3
        assert llm_rows(tmp_path / "run")["instructor"] == 3
        more = config.model_copy(update={"budget": small_config(seeds_file).budget})
        result = run(more, tmp_path / "run", stages=("evaluate",))
        asked = result.summary["evaluation"]["policies"]["llm:simulated"]["choosing"]
        # Equal questions of the same chain are paid once; nothing is paid again.
        assert server.stats()["requests"] <= asked["replies"]
        assert server.stats()["repeated_answers"] == 0


def test_a_dry_run_counts_what_the_instructor_is_asked(seeds_file: Path) -> None:
    config = small_config(
        seeds_file, 'evaluate.policies=["llm:simulated", "random"]', "evolve.policy=llm:simulated", "train.steps=8"
    )
    rows = {(row.stage, row.role): row for row in dry_run(config).rows}
    assert ("train", "instructor") not in rows
    asked = rows["evaluate", "instructor"]
    assert asked.model == "simulated"
    # One question a step, and now and then a second one; the expert is asked by both policies.
    assert asked.calls == pytest.approx(rows["evaluate", "expert"].calls / 2, rel=0.2)
    assert rows["evolve", "instructor"].calls == pytest.approx(rows["evolve", "expert"].calls, rel=0.2)
    assert asked.prompt_tokens > asked.calls * 100


# --- what an agent reads ----------------------------------------------------------------------------------------------
def test_an_agent_gets_the_observation_that_it_reads(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "model", TABLE))
    save_tokenizer(tmp_path / "model")
    runtime = Runtime(load_config("quickstart", ["env.horizon=3"]))
    try:
        facts, texts = runtime.observer_for(RandomAgent()), runtime.observer_before("llm:simulated", {})
        assert (facts.mode, texts.mode) == ("features", "tokens")
        assert runtime.observer is facts
        assert texts.space["ids"].shape == (2048,)
        model = build_agent("lm", runtime, {"model": folder, "device": "cpu"}, 0)
        assert isinstance(model, LMInstructor)
        own = runtime.observer_for(model)
        assert own is runtime.observer_before("lm", {"model": folder})
        assert own.space == model.obs_space
        assert (own.space["ids"].shape, int(own.space["ids"].high.max())) == ((512,), 38)
        chat = build_agent("llm:simulated", runtime, {}, 0)
        assert isinstance(chat, PromptedInstructor)
        assert runtime.observer_for(chat) is texts
        options = runtime.observation_options("llm:simulated", {})
        assert isinstance(options.pop("tokenizer"), ByteTokenizer)
        assert options == {"observation": "tokens", "observation_length": 2048}
        assert runtime.observation_options("ppo", {})["observation"] == "features"
        assert runtime.observation_options("ppo", {})["tokenizer"] is None
        assert chat.action_descriptions[1] == runtime.action_set.operations[1].description
    finally:
        runtime.close()


def test_a_run_says_the_tokenizer_and_the_length_of_its_own_tokens(tmp_path: Path) -> None:
    folder = str(save_tokenizer(tmp_path))
    overrides = ["env.observation=tokens", f"env.tokenizer={json.dumps(folder)}", "env.observation_length=9"]
    runtime = Runtime(load_config("quickstart", overrides))
    try:
        assert runtime.observer.space["ids"].shape == (9,)
        assert int(runtime.observer.space["ids"].high.max()) == 38
        assert runtime.observer_before("llm:simulated", {}).space["ids"].shape == (9,)
        assert int(runtime.observer_before("llm:simulated", {}).space["ids"].high.max()) == 256
    finally:
        runtime.close()


def test_an_unknown_tokenizer_is_said(tmp_path: Path) -> None:
    runtime = Runtime(load_config("quickstart", ["env.observation=tokens", f"env.tokenizer={tmp_path / 'none'}"]))
    with pytest.raises(ConfigError) as caught:
        _ = runtime.observer
    assert str(caught.value) == (
        f"there is no folder {tmp_path / 'none'}; expected a folder with a model, or a name such as 'org/model'"
    )


# --- who answers ------------------------------------------------------------------------------------------------------
def transports(*overrides: str) -> Transports:
    return Transports(load_config("quickstart", overrides), Limits())


def test_nobody_is_opened_for_an_instructor_that_no_policy_asks() -> None:
    assert "instructor" not in transports()._transports
    own = ("llm.instructor.backend=openai", "llm.instructor.base_url=http://127.0.0.1:9/v1")
    assert transports(*own).pools == []
    asked = transports(*own, 'evaluate.policies=["llm:m", "llm:n"]')
    assert len(asked.pools) == 1
    assert asked.name == "simulated+openai"


async def test_models_in_this_process_are_opened_one_by_one(tmp_path: Path) -> None:
    folders = [save_model(tmp_path / name, {"model_type": "llama", **_TINY}, causal=True) for name in ("a", "b")]
    for folder in folders:
        save_tokenizer(folder)
    names = json.dumps([f"llm:{folder}" for folder in folders])
    found = transports("llm.instructor.backend=transformers", f"evaluate.policies={names}")
    try:
        for folder in folders:
            sampling = Sampling(temperature=0.0, max_tokens=4)
            request = Request("instructor", str(folder), (Message("user", "Write a map ."),), sampling, "test/1")
            assert (await found.complete(request)).usage is not None
        assert not found.instant
    finally:
        await found.aclose()


_TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_models_that_a_config_asks_are_those_of_its_policies() -> None:
    config = load_config(
        "quickstart",
        ['evaluate.policies=["llm:a/b:c", "random", "llm:a/b:c"]', "evolve.policy=llm:d", "agent.name=llm:e"],
    )
    assert instructor_models(config) == ("e", "d", "a/b:c")
    assert instructor_models(load_config("quickstart")) == ()


def test_settings_and_budget_of_the_instructor() -> None:
    config = load_config(
        "quickstart",
        [
            "llm.temperature=0.3",
            "llm.instructor.temperature=1.0",
            "budget.instructor.max_tokens=9",
            "llm.max_tokens=99",
        ],
    )
    settings = config.llm.for_role("instructor")
    assert (settings.temperature, settings.max_tokens) == (1.0, 512)
    assert budget_of(config.budget, LLM_ROLES).roles == {"instructor": Budget(max_tokens=9)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["llm.instructor.model=m"],
            "quickstart: 'llm.instructor.model': the instructor's model is what its policy's name says: llm:MODEL",
        ),
    ],
)
def test_configs_that_make_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", overrides)
    assert message in str(caught.value)


def test_a_models_name_is_no_name_of_the_simulator(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, 'evaluate.policies=["llm:gpt-9"]')
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path / "run", stages=("evaluate",))
    assert str(caught.value) == (
        "policy 'llm:gpt-9' asks a model, and the backend of the instructor is 'simulated'; set llm.instructor.backend "
        "(or llm.backend), or call the policy 'llm:simulated'."
    )


# --- calls that fail --------------------------------------------------------------------------------------------------
class Failing(Agent):
    """Chooses the first operation, and cannot be asked at the second step."""

    observes = False

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def aact(self, obs: Any, *, state: Any = None, **_: Any) -> Decision:
        if state:
            raise self.error
        return Decision(np.zeros(1, np.int64), state=1)


async def chain_of(policy: Agent) -> Any:
    from instructgym.envs import Dynamics, EliminationRules, Observer, load_action_set
    from instructgym.llm_backends.base import LLM
    from instructgym.rewards.composition import as_reward

    actions: ActionSet = load_action_set("core")
    llm = LLM(SimulatedBackend(), "expert", "simulated-1")
    dynamics = Dynamics(
        expert=llm,
        action_set=actions,
        reward=as_reward(lambda transition: 1.0),
        elimination=EliminationRules((), encoder=None, reviewer=llm, changes_topic=actions),
        horizon=3,
        penalty=0.1,
    )
    job = ChainJob(0, Seed("s", Instruction("Explain why the sky is blue.")), 0, policy, "failing")
    observer = Observer("last_operation", actions, 3)
    (chain,) = await run_chains([job], dynamics=dynamics, observer=observer, run_seed=0, width=1)
    return chain


async def test_a_chain_whose_choice_fails_keeps_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    chain = await chain_of(Failing(ServerError("HTTP 503")))
    assert chain.incomplete
    assert [step.transition.operation for step in chain.steps] == ["add_constraints"]
    assert caplog.messages == ["chain 0 of failing ends: nothing was chosen (HTTP 503)"]


async def test_what_makes_every_further_call_pointless_ends_the_run() -> None:
    with pytest.raises(AuthenticationFailed):
        await chain_of(Failing(AuthenticationFailed("no key")))
