import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces

from instructgym.agents import (
    AGENTS,
    FixedAgent,
    RandomAgent,
    RoundRobinAgent,
    SequenceAgent,
    agent_names,
    make_agent,
    registry,
)
from instructgym.errors import ConfigError

OBS, ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(3)
NAMES = ("deepen", "breadth", "stop")

MINE = """
from instructgym.agents import Agent, RandomAgent
class Mine(Agent):
    def __init__(self, action_names, seed, power=1.0):
        self.got = (action_names, seed, power)
instance = RandomAgent()
number = 3
def factory(obs_space):
    agent = RandomAgent()
    agent.obs_space = obs_space
    return agent
"""


def make(name, **kwargs):
    return make_agent(name, OBS, ACTIONS, kwargs=kwargs, seed=5, action_names=NAMES)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_the_baselines_by_name():
    assert isinstance(make("random"), RandomAgent)
    assert isinstance(make("round_robin"), RoundRobinAgent)
    fixed, sequence = make("fixed:breadth"), make("sequence:stop, deepen")
    assert isinstance(fixed, FixedAgent)
    assert isinstance(sequence, SequenceAgent)
    assert (fixed.actions.tolist(), sequence.actions.tolist()) == ([1], [2, 0])


def test_ppo_by_name_takes_its_config():
    ppo = make("ppo", n_steps=16, net_arch=[8, 8])
    assert (ppo.config.n_steps, ppo.config.net_arch, ppo.seed) == (16, (8, 8), 5)


def test_a_users_class_gets_what_its_constructor_names(mine):
    assert make(f"{mine}:Mine", power=2.0).got == (NAMES, 5, 2.0)
    assert make(f"{mine}:factory").obs_space == OBS
    assert isinstance(make(f"{mine}:instance"), RandomAgent)


def test_installed_agents_are_found(monkeypatch):
    class Point:
        name = "theirs"

        def load(self):
            return RandomAgent

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "instructgym.agents" else [])
    assert isinstance(make("theirs"), RandomAgent)
    assert agent_names() == (*AGENTS, "theirs")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "rnadom",
            {},
            f"unknown agent 'rnadom'; did you mean 'random'? Known: {', '.join(AGENTS)}. One of your own: "
            "'path/to/file.py:NAME'.",
        ),
        (
            "fixed:bredth",
            {},
            "agent 'fixed:bredth': unknown operation 'bredth'; did you mean 'breadth'? Known: deepen, breadth, stop.",
        ),
        (
            "fixed",
            {},
            "agent 'fixed' names no operation; expected 'fixed:OPERATION'. Known: deepen, breadth, stop.",
        ),
        ("fixed:stop,stop", {}, "agent 'fixed:stop,stop' names 2 operations; expected one, as in 'fixed:OPERATION'."),
        ("random", {"seed": 1}, "agent 'random' takes no arguments, but got 'seed'."),
        ("no/such.py:Agent", {}, None),
    ],
)  # fmt: skip
def test_names_that_are_not_known(name, kwargs, message):
    with pytest.raises(ConfigError) as error:
        make(name, **kwargs)
    if message is not None:
        assert str(error.value) == message
    else:
        assert str(error.value).startswith("'no/such.py:Agent': there is no file ")


def test_ppo_names_the_nearest_argument():
    with pytest.raises(ConfigError, match=r"^agent 'ppo' takes no argument 'gama'; did you mean 'gamma'\?"):
        make("ppo", gama=0.9)


def test_a_users_file_that_does_not_fit(mine):
    with pytest.raises(ConfigError, match=r"mine.py has no name 'Mina'; did you mean 'Mine'\?"):
        make(f"{mine}:Mina")
    with pytest.raises(ConfigError) as error:
        make(f"{mine}:number")
    assert str(error.value) == (
        f"agent '{mine}:number' is of type int; expected a subclass or an instance of instructgym.agents.Agent."
    )
    with pytest.raises(ConfigError) as error:
        make(f"{mine}:instance", power=1.0)
    assert str(error.value) == f"agent '{mine}:instance' is an instance and takes no arguments, but got ['power']."
    with pytest.raises(ConfigError, match=r"takes no argument 'powr'; did you mean 'power'\?"):
        make(f"{mine}:Mine", powr=1.0)
    mine.with_name("broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken\.py failed with ZeroDivisionError: division by zero"):
        make(f"{mine.with_name('broken.py')}:Mine")


def test_importing_the_agents_loads_neither_torch_nor_sb3():
    code = (
        "import sys; import instructgym.agents as a; a.make_agent('random', None, None); "
        "print([m for m in ('torch', 'stable_baselines3', 'pandas') if m in sys.modules]); "
        "print(sorted(a.__all__) == sorted(set(a.__all__)), a.PPO.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True PPO"]
