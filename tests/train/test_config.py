"""Configs: validated when built, written back, and wrong ones refused in whole sentences."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.train.config import Config, advice, build_config, flatten
from instructgym.train.config_text import config_names, json_schema, load_config, to_toml


def message_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", overrides)
    return str(caught.value)


def test_named_configs_load_and_survive_being_written() -> None:
    assert config_names() == ["quickstart", "teams_rl"]
    for name in config_names():
        config = load_config(name)
        assert config.run.name == name
        assert build_config(tomllib.loads(to_toml(config))) == config


def test_a_path_is_read_where_no_config_has_that_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 7\n")
    assert load_config(path).train.steps == 7


def test_overrides_are_toml_and_plain_words_are_strings() -> None:
    config = load_config(
        "quickstart",
        [
            "train.steps=12",
            "llm.model=gpt-x",
            'env.elimination=["copy", "empty"]',
            "reward.terms.novelty=0.25",
            "agent.kwargs.gamma=0.9",
            "llm.reviewer.model=other",
        ],
    )
    assert (config.train.steps, config.llm.model, config.env.elimination) == (12, "gpt-x", ("copy", "empty"))
    assert config.reward.terms == {"reviewer_equality": 1.0, "novelty": 0.25}
    assert config.agent.kwargs == {**load_config("quickstart").agent.kwargs, "gamma": 0.9}
    assert config.llm.for_role("reviewer").model == "other"
    assert config.llm.for_role("reviewer").temperature == 0.0
    assert config.llm.for_role("expert").model == "gpt-x"


def test_another_agent_leaves_the_arguments_of_the_first_behind() -> None:
    assert load_config("quickstart", ["agent.name=ppo"]).agent == load_config("quickstart").agent
    assert load_config("quickstart", ["agent.name=sb3:a2c"]).agent.kwargs == {}
    swapped = load_config("quickstart", ["agent.kwargs.n_steps=8", "agent.name=sb3:a2c"])
    assert swapped.agent.kwargs == {"n_steps": 8}


def test_an_override_of_one_reviewer_value_keeps_the_others_defaults() -> None:
    settings = build_config({"llm": {"reviewer": {"model": "m"}}}).llm.for_role("reviewer")
    assert (settings.model, settings.temperature, settings.max_tokens) == ("m", 0.0, 256)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evolve.emitt=all", "quickstart: unknown key 'evolve.emitt'; did you mean 'evolve.emit'?"),
        ("evolv.emit=all", "quickstart: unknown key 'evolv'; did you mean 'evolve'?"),
        (
            "train.zzz=1",
            "quickstart: unknown key 'train.zzz'; 'train' has steps, calls, num_envs, logs",
        ),
        (
            "train.steps=many",
            "quickstart: 'train.steps' is 'many'; expected a valid integer, unable to parse string as an integer.",
        ),
        ("train.num_envs=0", "quickstart: 'train.num_envs' is 0; expected greater than or equal to 1."),
        ("evolve.emit=some", "quickstart: 'evolve.emit' is 'some'; expected 'final' or 'all'."),
        (
            "llm.backend=openai",
            "quickstart: 'llm': backend 'openai' has no model for the expert; set llm.model (or llm.expert.model).",
        ),
        (
            "llm.expert.backend=replay",
            "quickstart: 'llm': backend 'replay' has no recording for the expert; set llm.replay_path to a "
            "run's folder, its ledger.sqlite, or what `ledger export` wrote.",
        ),
        (
            "reward.terms={novelty = 0}",
            "quickstart: 'reward': no term has a weight other than 0; name at least one, e.g. "
            "reward.terms.novelty=1.0.",
        ),
        (
            "reward.kwargs.lexical={n = 1}",
            "quickstart: 'reward': kwargs are given for ['lexical'], but the reward is made of ['novelty', "
            "'reviewer_equality', 'validity'].",
        ),
        (
            "reward.terms={novelty = {weight = 2.0, seed_weight = 0.0}}",
            "quickstart: 'reward.terms': 'novelty' is {'weight': 2.0, 'seed_weight': 0.0}; expected a weight. Options "
            "stand in reward.kwargs, rewards that are made of others in reward.define.",
        ),
        (
            'reward.gate={validity = "high"}',
            "quickstart: 'reward.gate': got {'validity': 'high'}; expected true, false, a reward's name or "
            "{name = threshold}.",
        ),
        (
            "reward.gate={validity = 0.5, answerability = 0.5}",
            "quickstart: 'reward.gate': got {'validity': 0.5, 'answerability': 0.5}; expected true, false, a reward's "
            "name or {name = threshold}.",
        ),
        (
            'reward.define.mine={reward = "novelty"}',
            "quickstart: 'reward.define': reward.define.mine has no type; expected a reward's name, e.g. type = "
            '"gate".',
        ),
        ("steps", "override 'steps'; expected section.key=value, e.g. train.steps=5000."),
        ("run.seed.x=1", "override 'run.seed.x=1': 'seed' holds a value (0), not a section."),
    ],
)
def test_wrong_values_are_refused_in_words(override: str, message: str) -> None:
    assert message_of(override) == message


def test_a_price_that_nobody_needs_is_warned_of_and_urls_are_asked_once() -> None:
    endpoint = ("llm.backend=openai", "llm.model=m", 'llm.base_urls=["http://a/v1", "http://a/v1/", "http://b/v1"]')
    prices = 'budget.prices."gpt-4.1"={prompt = 1.0, completion = 2.0}'
    config = load_config("quickstart", [*endpoint, prices])
    assert config.llm.urls == ("http://a/v1", "http://b/v1")
    assert config.budget.prices["gpt-4.1"].completion == 2.0
    assert "budget.prices holds a price of 'gpt-4.1', which no role asks." in advice(config)


def test_every_fault_is_named_at_once() -> None:
    assert message_of("train.steps=-1", "env.horizon=0").count("\n") == 1


def test_an_unknown_config_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quikstart")
    assert str(caught.value) == (
        "no config 'quikstart'; did you mean 'quickstart'? It is neither one of quickstart, teams_rl nor a file that "
        "can be read (No such file or directory)."
    )


def test_broken_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match=rf"^{path}: not valid TOML: .*line 1"):
        load_config(path)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 3  # type: ignore[misc]


def test_no_gain_beside_reviewer_equality_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config("quickstart", ['env.elimination=["no_gain"]'])
    assert caplog.messages == [
        "env.elimination holds 'no_gain' and reward.terms 'reviewer_equality': the reviewer eliminates every rewrite "
        "that the reward would score 0, so the reward of the others is constant; drop one of the two."
    ]


def test_quickstart_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for name in config_names():
        load_config(name)
    assert caplog.messages == []


def test_flatten_gives_every_value_under_its_dotted_key() -> None:
    flat = flatten(Config())
    assert flat["env.horizon"] == 4
    assert flat["reward.terms.novelty"] == 0.15
    assert flat["budget.max_calls"] is None


def test_schema_names_the_sections() -> None:
    assert set(json_schema()["properties"]) == set(Config.model_fields)


def test_teams_rl_is_the_papers_setting() -> None:
    config = load_config("teams_rl")
    assert config.env.action_set == "teams_rl"
    assert (config.env.observation, config.env.horizon, config.env.elimination) == ("last_operation", 6, ("empty",))
    assert (config.env.penalty, config.reward.gate, config.reward.terms) == (0.0, False, {"reviewer_equality": 1.0})
    assert config.reward.kwargs == {"reviewer_equality": {"orders": "forward"}}
    assert config.agent.name == "sb3:trpo"
