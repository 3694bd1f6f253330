import json

import numpy as np
import pytest

from instructgym.agents import (
    PPO,
    Agent,
    Decision,
    PPOConfig,
    load_agent,
    make_agent,
    read_saved_agent,
    row_rng,
    save_agent,
)
from instructgym.errors import ActionSetError, ConfigError

from .toy_envs import Mixed, vector

NAMES = ("deepen", "breadth", "concretize")
CONFIG = PPOConfig(n_steps=8, batch_size=16, n_epochs=2, net_arch=(8,), normalize_obs=5.0, normalize_reward=True)


def trained(seed=0):
    env = vector(Mixed, 2)
    ppo = PPO(env.single_observation_space, env.single_action_space, CONFIG, seed)
    ppo.learn(env, 64)
    return ppo


def save(agent, folder):
    save_agent(agent, folder, action_set_hash="0011", action_set_names=NAMES, meta={"run": "ä"})


def test_the_same_training_twice_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save(trained(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["agent.json", "weights.safetensors"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_loaded_agent_acts_learns_and_saves_as_the_one_that_was_saved(tmp_path):
    env = vector(Mixed, 2)
    ppo = trained()
    save(ppo, tmp_path / "one")
    loaded = load_agent(tmp_path / "one", expected_action_set_hash="0011")
    obs, _ = env.reset(seed=0)
    one, two = (
        agent.act(obs, action_mask=np.ones((2, 3), bool), rng=[row_rng(0, row) for row in range(2)])
        for agent in (ppo, loaded)
    )
    assert one.actions.tolist() == two.actions.tolist()
    assert one.value.tolist() == two.value.tolist()
    ppo.learn(env, 32)
    loaded.learn(vector(Mixed, 2), 32)
    save(ppo, tmp_path / "one")
    save(loaded, tmp_path / "two")
    for file in ("agent.json", "weights.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert loaded.config == CONFIG
    saved = read_saved_agent(tmp_path / "two")
    assert (saved.name, saved.action_set_names, saved.meta) == ("ppo", NAMES, {"run": "ä"})


def test_another_action_set_is_refused_by_name(tmp_path):
    save(trained(), tmp_path)
    with pytest.raises(ActionSetError) as error:
        load_agent(tmp_path, expected_action_set_hash="2233", expected_action_set_names=("a", "b"))
    assert str(error.value) == (
        f"the agent in {tmp_path} was saved for action set 0011 (deepen, breadth, concretize), this run has "
        "2233 (a, b). Run with the set that it was saved for, or train an agent for this one."
    )
    assert load_agent(tmp_path, expected_action_set_hash=None).name == "ppo"


@pytest.mark.parametrize("name", ["random", "round_robin", "fixed:breadth", "sequence:breadth,deepen"])
def test_agents_without_weights_are_saved_too(name, tmp_path):
    env = vector(Mixed, 1)
    agent = make_agent(name, env.single_observation_space, env.single_action_space, action_names=NAMES, seed=4)
    save(agent, tmp_path)
    loaded = load_agent(tmp_path, expected_action_set_hash="0011")
    mask = np.ones((3, 3), bool)
    rngs = [[row_rng(0, row) for row in range(3)] for _ in range(2)]
    assert (
        agent.act(None, action_mask=mask, rng=rngs[0]).actions.tolist()
        == loaded.act(None, action_mask=mask, rng=rngs[1]).actions.tolist()
    )


def test_a_users_agent_is_saved_with_its_state(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from instructgym.agents import Agent, Decision\n"
        "class Mine(Agent):\n"
        "    def __init__(self, start): self.table = np.full(2, start)\n"
        "    def state_dict(self): return {'table': self.table, 'note': [1, 'x']}\n"
        "    def load_state_dict(self, state): self.table, self.note = state['table'], state['note']\n"
    )
    env = vector(Mixed, 1)
    agent = make_agent(
        f"{tmp_path / 'mine.py'}:Mine", env.single_observation_space, env.single_action_space, kwargs={"start": 1.0}
    )
    agent.table[1] = 7.0
    save(agent, tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent", expected_action_set_hash="0011")
    assert loaded.table.tolist() == [1.0, 7.0]
    assert loaded.note == [1, "x"]


def test_an_agent_that_nobody_could_make_again_is_refused(tmp_path):
    class Mine(Agent):
        def act(self, obs, **_):
            return Decision(np.zeros(1, np.int64))

    with pytest.raises(ConfigError) as error:
        save(Mine(), tmp_path)
    assert str(error.value) == (
        "an agent of class Mine cannot be saved, for nobody could make it again; make it with "
        "make_agent('path/to/file.py:NAME', ...)."
    )


def test_missing_damaged_and_newer_agents_are_told_apart(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_agent(tmp_path / "no", expected_action_set_hash=None)
    assert str(error.value) == f"{tmp_path / 'no'} holds no saved agent: there is no {tmp_path / 'no' / 'agent.json'}."

    save(trained(), tmp_path)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ConfigError, match=f"^the agent in {tmp_path} is damaged: SafetensorError"):
        load_agent(tmp_path, expected_action_set_hash=None)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"^the agent in {tmp_path} is damaged: FileNotFoundError"):
        load_agent(tmp_path, expected_action_set_hash=None)

    card = json.loads((tmp_path / "agent.json").read_text("utf-8"))
    (tmp_path / "agent.json").write_text(json.dumps(card | {"schema": 9}))
    with pytest.raises(ConfigError, match=r"is of schema 9; this version reads schema 1\."):
        load_agent(tmp_path, expected_action_set_hash=None)
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(ConfigError, match=r"agent\.json is damaged: JSONDecodeError"):
        load_agent(tmp_path, expected_action_set_hash=None)
