from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import instructgym
from instructgym.registration import register_envs

ROOT = Path(__file__).resolve().parents[2]


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_import_registers_and_loads_nothing_heavy():
    heavy = ["torch", "openai", "pandas", "transformers", "stable_baselines3", "sklearn", "aiohttp", "pydantic"]
    loaded = python(f"""
        import sys, instructgym, gymnasium
        assert "instructgym/InstructionEvolution-v0" in gymnasium.registry
        assert "instructgym/TeaMsRL-v0" in gymnasium.registry
        print([name for name in {heavy} + ["instructgym.envs", "instructgym.rewards"] if name in sys.modules])
    """)
    assert loaded == "[]\n"


def test_the_environments_themselves_load_no_torch():
    loaded = python("""
        import sys, instructgym.envs
        print([name for name in ["torch", "openai", "pandas", "sentence_transformers"] if name in sys.modules])
    """)
    assert loaded == "[]\n"


def test_an_id_with_the_module_needs_no_import():
    said = python("""
        import gymnasium
        env = gymnasium.make("instructgym:instructgym/InstructionEvolution-v0")
        env.reset(seed=0)
        print(env.step(0)[4]["operation"])
        env.close()
    """)
    assert said == "add_constraints\n"


def test_registering_again_does_nothing():
    before = dict(gymnasium.registry)
    register_envs()
    assert dict(gymnasium.registry) == before


def test_version_is_the_projects():
    assert instructgym.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_make_vec_takes_the_native_vector_env_by_default(closing):
    from instructgym.envs import InstructionEvolutionVectorEnv

    envs = closing(gymnasium.make_vec("instructgym/InstructionEvolution-v0", num_envs=3))
    assert isinstance(envs, InstructionEvolutionVectorEnv)
    assert envs.num_envs == 3


def test_teams_rl_follows_the_paper(fake_llm, seeds, closing):
    backend = fake_llm()
    env = closing(gymnasium.make("instructgym/TeaMsRL-v0", expert=backend, seeds=seeds))
    assert env.action_space.n == 6
    assert env.observation_space.shape == (6,)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, np.zeros(6))
    rewards, ends = [], []
    for step in range(6):
        observation, reward, terminated, truncated, info = env.step(step)
        np.testing.assert_array_equal(observation, np.eye(6)[step])
        assert info["elimination"] == ""
        rewards.append(reward)
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 5 + [(True, False)]
    assert set(rewards) == {0.0, 1.0}
    asked = [request for request in backend.requests if request.role == "reviewer"]
    assert len(asked) == 6, "the reviewer is asked once a step, with the text before first"
    assert backend.requests[0].sampling.max_tokens == 2048


@pytest.mark.parametrize("env_id", ["instructgym/InstructionEvolution-v0", "instructgym/TeaMsRL-v0"])
def test_options_of_make_reach_the_env(env_id, closing):
    env = closing(gymnasium.make(env_id, horizon=2, seeds=["Explain it all."]))
    _, info = env.reset(seed=0)
    assert (info["instruction"], info["seed_id"]) == ("Explain it all.", "seed-0")
    env.step(0)
    assert env.step(0)[2]
