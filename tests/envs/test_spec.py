from __future__ import annotations

import dataclasses

import pytest

from instructgym.envs import RULES as KNOWN_RULES
from instructgym.envs import EnvConfig
from instructgym.errors import ActionSetError, ConfigError

RULES = ", ".join(KNOWN_RULES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizont": 3}, "unknown option 'horizont' of the environment; did you mean 'horizon'? Known: action_set, "),
        ({"horizon": 0}, "horizon = 0; expected a whole number of 1 or more."),
        ({"horizon": True}, "horizon = True; expected a whole number of 1 or more."),
        ({"draws_per_seed": 0}, "draws_per_seed = 0; expected a whole number of 1 or more."),
        ({"penalty": -0.5}, "penalty = -0.5; expected a finite number of 0 or more: an eliminated rewrite earns its "),
        ({"observation": "flatt"}, "unknown observation 'flatt'; did you mean 'flat'? Known: flat, dict, features, "),
        ({"expert": "simulatd"}, "unknown expert 'simulatd'; did you mean 'simulated'? Known: simulated, openai."),
        ({"expert": 3}, "expert is of type int; expected simulated or openai, an LLMBackend or an LLM."),
        ({"expert": "openai"}, "expert = 'openai' has no model; pass model='...', and base_url if it is elsewhere."),
        ({"elimination": ["coppy"]}, f"unknown elimination rule 'coppy'; did you mean 'copy'? Known: {RULES}."),
        ({"elimination": "copy"}, f"elimination = 'copy'; expected 'default', EliminationRules, or names of {RULES}."),
        ({"reward": {"noveltyy": 1.0}}, "unknown reward 'noveltyy'; did you mean 'novelty'? Known: "),
        ({"reward": 3}, "got 3 as a reward; expected a Reward or a function of a transition."),
        ({"encoder": ""}, "encoder = ''; expected a name such as 'hashing', or an Encoder."),
    ],
)
def test_wrong_options_say_what_was_expected(options, message):
    with pytest.raises(ConfigError) as caught:
        EnvConfig.from_options(options)
    assert str(caught.value).startswith(message)


def test_unknown_action_set_is_found_at_construction():
    with pytest.raises(ActionSetError, match="did you mean 'core'"):
        EnvConfig(action_set="cor")


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EnvConfig().horizon = 5


def test_reward_by_name_is_that_reward_alone():
    assert EnvConfig(reward="novelty").reward_spec == {"novelty": 1.0}
