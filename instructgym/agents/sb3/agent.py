"""Stable-Baselines3 and sb3-contrib as agents: the same interface, their own algorithms, arguments and zip files."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.checking import check_kwargs
from instructgym.agents.draws import derive_seed, first_uniforms, sample_categorical
from instructgym.agents.normaliser import ObservationNormaliser
from instructgym.agents.sb3.vec_env import FlatNormalisedVecEnv, SB3VecEnv
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import ConfigError
from instructgym.plugins import nearest

__all__ = ["SB3Agent", "SB3VecEnv"]

_ALGORITHMS = {
    "sb3:ppo": ("stable_baselines3", "PPO"),
    "sb3:a2c": ("stable_baselines3", "A2C"),
    "sb3:dqn": ("stable_baselines3", "DQN"),
    "sb3:maskable_ppo": ("sb3_contrib", "MaskablePPO"),
    "sb3:trpo": ("sb3_contrib", "TRPO"),
}
_OURS = ("net_arch", "normalize_obs", "clip_obs", "retries")
_NOT_THEIRS = ("self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
_WALL_CLOCK = ("time/fps", "time/time_elapsed")
_MODEL = "model.zip"


class SB3Agent(Algorithm):
    """An algorithm of Stable-Baselines3, by name.

    `kwargs` are the algorithm's own arguments (``gamma``, ``n_steps``, ``policy_kwargs``, ...) and four of ours:
    `net_arch` (hidden sizes), `normalize_obs` (running z-scores of the flat observation: the clip, or True for
    `clip_obs`), `clip_obs` and `retries` of a failed step. Two defaults differ from SB3's, to fit short runs:
    `n_steps` shares the run into rollouts of about 2048 transitions over all envs at most, and DQN's
    `buffer_size` is no larger than the run. It runs on the CPU, and leaves no files behind.
    """

    def __init__(
        self,
        name: str,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if name not in _ALGORITHMS:
            raise ConfigError(f"unknown algorithm '{name}'; {nearest(name, _ALGORITHMS)}")
        self.name = name
        self.obs_space = obs_space
        self.action_space = action_space
        self.kwargs = dict(kwargs or {})
        self.seed = seed
        module, class_name = _ALGORITHMS[name]
        self.algorithm: Any = getattr(import_module(module), class_name)
        num_actions(action_space)
        theirs = [key for key in inspect.signature(self.algorithm).parameters if key not in _NOT_THEIRS]
        check_kwargs(f"agent '{name}'", self.kwargs, [*theirs, *_OURS])
        self._theirs = {key: value for key, value in self.kwargs.items() if key not in _OURS}
        self._accepts = set(theirs)
        self.retries = int(self.kwargs.get("retries", 3))
        self.flatten: Flattener | None = None
        self.normaliser: ObservationNormaliser | None = None
        clip = self.kwargs.get("normalize_obs", False)
        if clip is True:
            clip = self.kwargs.get("clip_obs", 10.0)
        if clip is not False:
            if isinstance(clip, str) or not clip > 0:
                raise ConfigError(f"agent '{name}': normalize_obs = {clip!r}; expected false, true or a clip above 0.")
            self.flatten = Flattener(obs_space)
            self.normaliser = ObservationNormaliser(self.flatten.dim, float(clip))
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The SB3 algorithm; untrained before the first `learn`."""
        if self._model is None:
            self._model = self._build(DummyVecEnv([lambda: _OnlySpaces(self._model_space(), self.action_space)]), 0)
        return self._model

    # ------------------------------------------------------------------ acting

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        """See `Agent.act`. Only MaskablePPO knows masks; of the others an illegal choice gives way to the likeliest
        legal one (for DQN, the one of the highest value).
        """
        legal = np.asarray(action_mask, bool)
        probs, values = self._look(obs, legal)
        if values is None:
            return Decision(probs.argmax(axis=1), state=state)
        rows = np.arange(len(probs))
        actions = probs.argmax(axis=1) if deterministic else sample_categorical(probs, first_uniforms(rng))
        actions = np.where(legal[rows, actions], actions, _likeliest(probs, legal))
        tiny = np.finfo(np.float32).tiny
        log_probs = np.log(np.maximum(_legal_share(probs, legal)[rows, actions], tiny), dtype=np.float32)
        return Decision(actions, log_probs, values, state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        legal = np.asarray(action_mask, bool)
        probs, values = self._look(obs, legal)
        if values is None:
            return probs.astype(np.float64), state
        if deterministic:
            rows, mode = np.arange(len(probs)), probs.argmax(axis=1)
            actions = np.where(legal[rows, mode], mode, _likeliest(probs, legal))
            return np.eye(probs.shape[1])[actions], state
        return _legal_share(probs, legal), state

    def _look(
        self, obs: Any, legal: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:  # -> (N, A), (N,)
        """The policy's own probabilities, and its values; DQN has 1 for its best legal action, and no values."""
        policy = self.model.policy
        policy.set_training_mode(False)
        if self.flatten is not None and self.normaliser is not None:
            obs = self.normaliser(self.flatten(obs))
        with torch.no_grad():
            tensor, _ = policy.obs_to_tensor(obs)
            if self.name == "sb3:dqn":
                best = np.where(legal, policy.q_net(tensor).numpy(), -np.inf).argmax(axis=1)
                return np.eye(legal.shape[1], dtype=np.float32)[best], None
            masks = {"action_masks": legal} if self.name == "sb3:maskable_ppo" else {}
            probs = policy.get_distribution(tensor, **masks).distribution.probs.numpy()
            return probs, policy.predict_values(tensor).numpy()[:, 0].astype(np.float32)

    # ---------------------------------------------------------------- learning

    def learn(self, vector_env: Any, total_steps: int, *, progress: Progress | None = None) -> list[dict[str, float]]:
        """See `Algorithm.learn`; DQN reports every fourth episode instead of every rollout."""
        if total_steps <= 0:
            return []
        adapter: Any = SB3VecEnv(vector_env, retries=self.retries)
        env: Any = VecMonitor(adapter)
        if self.flatten is not None and self.normaliser is not None:
            env = FlatNormalisedVecEnv(env, self.flatten, self.normaliser, self._model_space())
        self._attach(env, total_steps)
        recorder = _Recorder(progress)
        self._model.set_logger(Logger(folder=None, output_formats=[recorder]))
        adapter.seed(derive_seed(self.seed, self.num_steps))
        self._model.learn(total_steps, reset_num_timesteps=False)
        self.num_steps = int(self._model.num_timesteps)
        self._report_end(recorder)
        return recorder.rows

    def _report_end(self, recorder: _Recorder) -> None:
        """One more row: SB3 logs before it trains, so the last update would be missing."""
        logger = self._model.logger
        for name, value in recorder.rows[-1].items() if recorder.rows else ():
            if name not in logger.name_to_value:
                logger.record(name, value)
        if self._model.ep_info_buffer:
            for key, short in (("rollout/ep_rew_mean", "r"), ("rollout/ep_len_mean", "l")):
                logger.record(key, float(np.mean([episode[short] for episode in self._model.ep_info_buffer])))
        logger.record("time/total_timesteps", self.num_steps)
        logger.dump(self.num_steps)

    def _attach(self, env: Any, total_steps: int) -> None:
        """Give the model this env; one of another number of rows needs the model to be loaded anew."""
        if self._model is None or self.num_steps == 0:
            self._model = self._build(env, total_steps)
        elif self._model.n_envs == env.num_envs:
            self._model.set_env(env)
        else:
            saved = io.BytesIO()
            self._model.save(saved)
            saved.seek(0)
            self._model = self.algorithm.load(saved, env=env, device="cpu")

    def _build(self, env: Any, total_steps: int) -> Any:
        arguments = {**self._defaults(env.num_envs, total_steps), **self._theirs}
        if "net_arch" in self.kwargs:
            arguments["policy_kwargs"] = {
                **arguments.get("policy_kwargs", {}),
                "net_arch": list(self.kwargs["net_arch"]),
            }
        policy = "MultiInputPolicy" if isinstance(self._model_space(), spaces.Dict) else "MlpPolicy"
        try:
            return self.algorithm(policy, env, seed=self.seed, device="cpu", verbose=0, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"agent '{self.name}' cannot be made with {arguments}: {error}") from error

    def _defaults(self, envs: int, total_steps: int) -> dict[str, Any]:
        if self.name == "sb3:dqn":
            return {"buffer_size": min(1_000_000, max(total_steps, 1_000))}
        if "batch_size" not in self._accepts:
            return {}
        default_batch = inspect.signature(self.algorithm).parameters["batch_size"].default
        batch = int(self._theirs.get("batch_size", default_batch))
        rollouts = max(1, math.ceil(total_steps / 2048))
        # A whole number of minibatches (SB3 warns otherwise), rounded up so that no rollout is for the last few steps.
        unit = batch // math.gcd(batch, envs)
        return {"n_steps": max(1, math.ceil(total_steps / (rollouts * envs * unit))) * unit}

    def _model_space(self) -> Any:
        if self.flatten is None or self.normaliser is None:
            return self.obs_space
        return spaces.Box(-self.normaliser.clip, self.normaliser.clip, (self.flatten.dim,), np.float32)

    # -------------------------------------------------------------- checkpoint

    def make_origin(self) -> tuple[str, dict[str, Any], int, Any, Any]:
        """Name, arguments, seed and spaces: what `save_agent` keeps to make this agent again."""
        return self.name, self.kwargs, self.seed, self.obs_space, self.action_space

    def state_dict(self) -> dict[str, Any]:
        """The counter and the normaliser; the model itself is a file of SB3's (`save_files`)."""
        state: dict[str, Any] = {"num_steps": self.num_steps}
        if self.normaliser is not None:
            state |= {f"obs.{name}": value for name, value in self.normaliser.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps = int(state["num_steps"])
        if self.normaliser is not None:
            self.normaliser.load_state_dict({name: state[f"obs.{name}"] for name in ("count", "mean", "m2")})

    def save_files(self, folder: Path) -> None:
        """Write `model.zip`, which ``PPO.load`` (or the like) of plain SB3 reads."""
        self.model.save(folder / _MODEL)

    def load_files(self, folder: Path) -> None:
        self._model = self.algorithm.load(folder / _MODEL, device="cpu")


def _likeliest(probs: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.asarray(np.where(legal, probs, -1.0).argmax(axis=1), np.int64)


def _legal_share(probs: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What `act` draws from: the mass of illegal actions goes to the likeliest legal one."""
    kept = np.where(legal, probs, 0.0).astype(np.float64)
    kept[np.arange(len(kept)), _likeliest(probs, legal)] += probs.sum(axis=1) - kept.sum(axis=1)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float64)


class _Recorder(KVWriter):
    """SB3's log as dicts of floats. Wall-clock values are left out: equal runs have equal histories."""

    def __init__(self, progress: Progress | None) -> None:
        self.rows: list[dict[str, float]] = []
        self.progress = progress

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        row = {
            name: float(value)
            for name, value in sorted(key_values.items())
            if name not in _WALL_CLOCK and isinstance(value, (int, float, np.number))
        }
        if not row:
            return
        self.rows.append(row)
        if self.progress is not None:
            self.progress(step, row)

    def close(self) -> None:
        pass


class _OnlySpaces(gymnasium.Env[Any, Any]):
    """What SB3 needs to build a policy that acts before it has learned."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
