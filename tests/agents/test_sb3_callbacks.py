"""A user's own callbacks with the algorithms of Stable-Baselines3."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instructgym.agents import load_agent, make_agent, save_agent
from instructgym.agents.sb3 import SB3Agent
from instructgym.errors import ConfigError

from .toy_envs import Identity, vector

OWN = """
from stable_baselines3.common.callbacks import BaseCallback

class Counts(BaseCallback):
    def __init__(self, every=1):
        super().__init__()
        self.every, self.calls = every, 0

    def _on_step(self):
        self.calls += 1
        self.logger.record("mine/calls", self.calls)
        return self.calls * self.every < 12

counted = Counts()
seen = []

def look(locals, globals):
    seen.append(sorted(set(locals) & {"self", "infos"}))
    return True

class Other:
    pass

number = 3

def wrong():
    pass
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:"


def agent_for(callbacks, name="sb3:a2c", **kwargs):
    env = vector(Identity, 2)
    return env, SB3Agent(
        name,
        env.single_observation_space,
        env.single_action_space,
        kwargs={"callbacks": callbacks, **({"n_steps": 4} if name == "sb3:a2c" else {}), **kwargs},
    )


@pytest.mark.parametrize("kwargs", [{}, {"kwargs": {}}, {"kwargs": {"every": 3}}])
def test_a_class_from_a_file_is_made_and_may_end_learning(own, kwargs):
    env, agent = agent_for([{"name": f"{own}Counts", **kwargs}])
    history = agent.learn(env, 64)
    calls = 12 // (kwargs.get("kwargs") or {}).get("every", 1)
    assert agent.num_steps == calls * 2
    assert history[-1]["mine/calls"] == calls


def test_classes_instances_and_functions_are_taken_together(own):
    env, agent = agent_for([f"{own}look", f"{own}counted"])
    agent.learn(env, 64)
    assert agent.num_steps == 24
    looked = agent._callbacks[0].callback.__globals__["seen"]
    assert looked == [["infos", "self"]] * 12


def test_objects_are_taken_in_python_and_are_no_part_of_a_saved_agent(tmp_path):
    class Mine(BaseCallback):
        def _on_step(self):
            return True

    mine = Mine()
    env = vector(Identity, 2)
    spaces = (env.single_observation_space, env.single_action_space)
    for agent in (
        make_agent("sb3:a2c", *spaces, kwargs={"n_steps": 4, "callbacks": [mine]}),
        SB3Agent("sb3:a2c", *spaces, kwargs={"n_steps": 4, "callbacks": [mine]}),
    ):
        agent.learn(env, 16)
        assert mine.num_timesteps == 16
        save_agent(agent, tmp_path, action_set_hash="h", action_set_names="abcd")
        assert load_agent(tmp_path, expected_action_set_hash="h").kwargs == {"n_steps": 4}


def test_a_saved_agent_acts_without_the_file_of_its_callbacks(own, tmp_path):
    env, agent = agent_for([f"{own}look"])
    agent.learn(env, 16)
    save_agent(agent, tmp_path / "agent", action_set_hash="h", action_set_names="abcd")
    (tmp_path / "own.py").unlink()
    loaded = load_agent(tmp_path / "agent", expected_action_set_hash="h")
    probs, _ = loaded.probabilities(np.arange(2), action_mask=np.ones((2, 4), bool))
    assert probs.shape == (2, 4)
    with pytest.raises(ConfigError, match="there is no file"):
        loaded.learn(env, 16)


def test_callbacks_of_sb3_are_known_by_their_names(tmp_path):
    named = {"name": "CheckpointCallback", "kwargs": {"save_freq": 4, "save_path": str(tmp_path)}}
    env, agent = agent_for([named], name="sb3:dqn", learning_starts=4)
    agent.learn(env, 16)
    assert {path.name for path in tmp_path.iterdir()} == {"rl_model_8_steps.zip", "rl_model_16_steps.zip"}


def test_ars_calls_them_too(own):
    env, agent = agent_for([f"{own}look"], name="sb3:ars", n_delta=1)
    agent.learn(env, 1)
    assert len(agent._callbacks[0].callback.__globals__["seen"]) == 2 * 8
    env, agent = agent_for([f"{own}Counts"], name="sb3:ars", n_delta=1)
    agent.learn(env, 1000)
    assert agent.num_steps == 12 * 2


def test_what_a_callback_logs_arrives_figures_and_texts_in_sb3s_own_log(tmp_path):
    def log(locals, globals):
        locals["self"].logger.record("mine/array", np.array(3.0))
        locals["self"].logger.record("mine/text", "words")
        return True

    env, agent = agent_for([log], tensorboard_log=str(tmp_path))
    history = agent.learn(env, 16)
    assert history[0]["mine/array"] == 3.0
    assert "mine/text" not in history[0]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "mine/text/text_summary" in tags["tensors"]


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ("own.py:A", "callbacks = 'own.py:A'; expected a list."),
        (
            [3],
            "callbacks hold 3; expected 'path/to/file.py:NAME', a callback of Stable-Baselines3 by its class's name, "
            "or a table of name and kwargs, or an object.",
        ),
        (
            [{"name": "own.py:A", "every": 3}],
            "callbacks hold {'name': 'own.py:A', 'every': 3}; expected 'path/to/file.py:NAME', a callback of "
            "Stable-Baselines3 by its class's name, or a table of name and kwargs.",
        ),
    ],
)
def test_what_is_no_list_of_callbacks_is_refused_at_once(callbacks, said):
    with pytest.raises(ConfigError) as error:
        agent_for(callbacks)
    assert str(error.value) == f"agent 'sb3:a2c': {said}"


CALLBACK = (
    "expected a subclass or an instance of stable_baselines3.common.callbacks.BaseCallback, or a function of "
    "(locals, globals) that returns a bool."
)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("Other", {}, f"is the class Other; {CALLBACK}"),
        ("number", {}, f"is a int; {CALLBACK}"),
        ("wrong", {}, f"is a function with the parameters (); {CALLBACK}"),
        ("Counts", {"evry": 3}, "cannot be made: got an unexpected keyword argument 'evry'. Give its kwargs."),
        ("look", {"every": 3}, "is no class and takes no kwargs, got ['every']."),
    ],
)
def test_what_is_no_callback_is_refused_before_learning(own, name, kwargs, said):
    env, agent = agent_for([{"name": f"{own}{name}", "kwargs": kwargs}])
    with pytest.raises(ConfigError) as error:
        agent.learn(env, 16)
    assert str(error.value) == f"agent 'sb3:a2c': callback '{own}{name}' {said}"


def test_an_unknown_name_is_answered_with_the_nearest():
    env, agent = agent_for(["ChekpointCallback"])
    with pytest.raises(ConfigError) as error:
        agent.learn(env, 16)
    assert str(error.value).startswith(
        "agent 'sb3:a2c': unknown callback 'ChekpointCallback'; did you mean 'CheckpointCallback'? Known: "
    )
    assert str(error.value).endswith("One of your own: 'path/to/file.py:NAME'.")
