"""Stable-Baselines3 and sb3-contrib as agents: the same interface, their own algorithms, arguments and zip files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from instructgym.agents.base import Algorithm, Decision, Progress
from instructgym.agents.draws import derive_seed, first_uniforms, sample_categorical
from instructgym.agents.normaliser import ObservationNormaliser
from instructgym.agents.sb3.algorithms import ALGORITHMS, Look
from instructgym.agents.sb3.arguments import own_arguments
from instructgym.agents.sb3.callbacks import check_callbacks, make_callbacks, named_only
from instructgym.agents.sb3.logs import Recorder
from instructgym.agents.sb3.vec_env import FlatNormalisedVecEnv, SB3VecEnv
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import ConfigError
from instructgym.plugins import nearest

if TYPE_CHECKING:
    from instructgym.agents.registry import Origin

__all__ = ["SB3Agent", "SB3VecEnv"]

_MODEL, _REPLAY = "model.zip", "replay_buffer.pkl"


class SB3Agent(Algorithm):
    """An algorithm of Stable-Baselines3 or sb3-contrib, by name (`ALGORITHMS`).

    `kwargs` are the algorithm's own arguments (``gamma``, ``n_steps``, ``policy_kwargs``, ...) and these of ours:

    - `net_arch`: hidden sizes. ARS is linear without it.
    - `normalize_obs`: running z-scores of the flat observation; the clip, or True for `clip_obs`.
    - `retries` of a failed step.
    - `callbacks`: a list of ``"path/to/file.py:NAME"``, names of SB3's callbacks, tables of `name` and `kwargs`, or
      callback objects (which are no part of a saved agent).
    - `tensorboard_log`: a folder in which SB3's own writer puts what it logs, figures and texts included.
    - `save_replay_buffer` (DQN, QR-DQN; default True): save it with the agent, so that learning goes on with it.

    Some defaults differ from SB3's, to fit short runs: `n_steps` shares the run into rollouts of about 2048 transitions
    over all envs at most. DQN and QR-DQN take a `buffer_size` no larger than the run, one gradient step for every four
    transitions however many envs there are, and twenty target networks a run; QR-DQN explores over a tenth of it. ARS
    evaluates a candidate by an episode of each env. It runs on the CPU, and leaves no files behind.
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
        if name not in ALGORITHMS:
            raise ConfigError(f"unknown algorithm '{name}'; {nearest(name, ALGORITHMS)}")
        self.name = name
        self.obs_space = obs_space
        self.action_space = action_space
        self.kwargs = dict(kwargs or {})
        self.seed = seed
        self.family = ALGORITHMS[name]
        self.algorithm: Any = self.family.load_class()
        num_actions(action_space)
        self._theirs = own_arguments(name, self.family, self.kwargs)
        if "callbacks" in self.kwargs:
            self.kwargs["callbacks"] = check_callbacks(name, self.kwargs["callbacks"])
        self._callbacks: list[Any] | None = None
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
        self._origin: Origin | None = None

    @property
    def model(self) -> Any:
        """The SB3 algorithm; untrained before the first `learn`."""
        if self._model is None:
            self._model = self._build(DummyVecEnv([lambda: _OnlySpaces(self._model_space(), self.action_space)]), 0)
        return self._model

    def steps_within(self, bound: int, num_envs: int) -> int:
        """The largest number of steps up to `bound` that `learn` takes without taking more: whole rollouts.

        ARS takes whole populations, whose length depends on their episodes; for it `bound` in whole steps of the envs.
        """
        return self.family.steps_within(self._theirs, self.model if self.num_steps > 0 else None, bound, num_envs)

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
        legal one (for DQN and ARS, the one of the highest value). RecurrentPPO carries its LSTM's state.
        """
        legal = np.asarray(action_mask, bool)
        look = self._look(obs, legal, state)
        probs = look.probs
        if look.values is None:
            return Decision(probs.argmax(axis=1), state=look.state)
        rows = np.arange(len(probs))
        actions = probs.argmax(axis=1) if deterministic else sample_categorical(probs, first_uniforms(rng))
        actions = np.where(legal[rows, actions], actions, _likeliest(probs, legal))
        tiny = np.finfo(np.float32).tiny
        log_probs = np.log(np.maximum(_legal_share(probs, legal)[rows, actions], tiny), dtype=np.float32)
        return Decision(actions, log_probs, look.values, look.state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        legal = np.asarray(action_mask, bool)
        look = self._look(obs, legal, state)
        probs = look.probs
        if look.values is None:
            return probs.astype(np.float64), look.state
        if deterministic:
            rows, mode = np.arange(len(probs)), probs.argmax(axis=1)
            actions = np.where(legal[rows, mode], mode, _likeliest(probs, legal))
            return np.eye(probs.shape[1])[actions], look.state
        return _legal_share(probs, legal), look.state

    def _look(self, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        policy = self.model.policy
        policy.set_training_mode(False)
        if self.flatten is not None and self.normaliser is not None:
            obs = self.normaliser(self.flatten(obs))
        with torch.no_grad():
            tensor, _ = policy.obs_to_tensor(obs)
            return self.family.look(policy, tensor, legal, state)

    # ---------------------------------------------------------------- learning

    def learn(self, vector_env: Any, total_steps: int, *, progress: Progress | None = None) -> list[dict[str, float]]:
        """See `Algorithm.learn`; DQN reports every few episodes instead of every rollout.

        What SB3 logs is reported, wall-clock values to `progress` alone. A callback may end learning early.
        """
        if total_steps <= 0:
            return []
        if self._callbacks is None:
            self._callbacks = make_callbacks(self.name, self.kwargs.get("callbacks", ()))
        adapter: Any = SB3VecEnv(vector_env, retries=self.retries)
        env: Any = VecMonitor(adapter)
        if self.flatten is not None and self.normaliser is not None:
            env = FlatNormalisedVecEnv(env, self.flatten, self.normaliser, self._model_space())
        self._attach(env, total_steps)
        began = int(self._model.num_timesteps)
        if began:
            # Going on draws other numbers than the start did, and the same ones whether it was saved in between or not.
            self._model.set_random_seed(derive_seed(self.seed, began))
        adapter.seed(derive_seed(self.seed, began))
        recorder, updates = Recorder(progress), self._model._n_updates
        with self._logging(recorder):
            try:
                self._model.learn(
                    total_steps,
                    callback=self._callbacks or None,
                    log_interval=self.family.log_interval(env.num_envs),
                    reset_num_timesteps=False,
                )
            except BaseException:
                if self._model._n_updates > updates:
                    self.num_steps = int(self._model.num_timesteps)
                raise
            self.num_steps = int(self._model.num_timesteps)
            self._report_end(recorder)
        return recorder.rows

    @contextlib.contextmanager
    def _logging(self, recorder: Recorder) -> Iterator[None]:
        folder = self.kwargs.get("tensorboard_log")
        formats = [recorder, *([] if folder is None else [TensorBoardOutputFormat(str(folder))])]
        logger = Logger(folder=None, output_formats=formats)
        self._model.set_logger(logger)
        try:
            yield
        finally:
            logger.close()

    def _report_end(self, recorder: Recorder) -> None:
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
            self.family.read_back(self._model)

    def _build(self, env: Any, total_steps: int) -> Any:
        arguments = {**self._defaults(env.num_envs, total_steps), **self._theirs}
        if "net_arch" in self.kwargs:
            arguments["policy_kwargs"] = {
                **arguments.get("policy_kwargs", {}),
                "net_arch": list(self.kwargs["net_arch"]),
            }
        policy = self.family.policy_for(self._model_space(), arguments.get("policy_kwargs") or {})
        try:
            return self.algorithm(policy, env, seed=self.seed, device="cpu", verbose=0, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"agent '{self.name}' cannot be made with {arguments}: {error}") from error

    def _defaults(self, envs: int, total_steps: int) -> dict[str, Any]:
        return self.family.defaults(self._theirs, envs, total_steps)

    def _model_space(self) -> Any:
        if self.flatten is None or self.normaliser is None:
            return self.obs_space
        return spaces.Box(-self.normaliser.clip, self.normaliser.clip, (self.flatten.dim,), np.float32)

    # -------------------------------------------------------------- checkpoint

    def make_origin(self) -> tuple[str, dict[str, Any], int, Any, Any]:
        """Name, arguments, seed and spaces: what `save_agent` keeps to make this agent again."""
        return self.name, named_only(self.kwargs), self.seed, self.obs_space, self.action_space

    @property
    def origin(self) -> Origin | None:
        """How `make_agent` made it, without callbacks that are Python objects; None if it did not."""
        return self._origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        self._origin = replace(origin, kwargs=named_only(origin.kwargs))

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
        """Write `model.zip`, which ``PPO.load`` (or the like) of plain SB3 reads; DQN's transitions beside it."""
        self.model.save(folder / _MODEL)
        if self._keeps_replay and self.num_steps > 0:
            self.model.save_replay_buffer(folder / _REPLAY)

    def load_files(self, folder: Path) -> None:
        self._model = self.algorithm.load(folder / _MODEL, device="cpu")
        self.family.read_back(self._model)
        if self._keeps_replay and (folder / _REPLAY).is_file():
            self._model.load_replay_buffer(folder / _REPLAY)

    @property
    def _keeps_replay(self) -> bool:
        return self.family.off_policy and bool(self.kwargs.get("save_replay_buffer", True))


def _likeliest(probs: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.asarray(np.where(legal, probs, -1.0).argmax(axis=1), np.int64)


def _legal_share(probs: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What `act` draws from: the mass of illegal actions goes to the likeliest legal one."""
    kept = np.where(legal, probs, 0.0).astype(np.float64)
    kept[np.arange(len(kept)), _likeliest(probs, legal)] += probs.sum(axis=1) - kept.sum(axis=1)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float64)


class _OnlySpaces(gymnasium.Env[Any, Any]):
    """What SB3 needs to build a policy that acts before it has learned."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
