"""Small problems with known answers, and a vector env whose every row is scripted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

SAME_STEP = AutoresetMode.SAME_STEP


def vector(make: Callable[[], gymnasium.Env[Any, Any]], envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([make] * envs, autoreset_mode=SAME_STEP)


class Identity(gymnasium.Env[Any, Any]):
    """Reward 1 for naming the number that is shown; `length` numbers an episode."""

    def __init__(self, numbers: int = 4, length: int = 8) -> None:
        self.observation_space = spaces.Discrete(numbers)
        self.action_space = spaces.Discrete(numbers)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.shown)
        self.step_number += 1
        return self._show(), reward, self.step_number >= self.length, False, {}

    def _show(self) -> int:
        self.shown = int(self.np_random.integers(self.action_space.n))
        return self.shown


class Masked(Identity):
    """As `Identity`, but the number shown is the one illegal action, and the action after it in the circle pays."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = super().reset(seed=seed)
        return obs, self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action != self.shown, "an illegal action was taken"
        reward = float(action == (self.shown + 1) % self.action_space.n)
        self.step_number += 1
        return self._show(), reward, self.step_number >= self.length, False, self._info()

    def _info(self) -> dict[str, Any]:
        mask = np.ones(self.action_space.n, np.int8)
        mask[self.shown] = 0
        return {"action_mask": mask}


class Horizon(gymnasium.Env[Any, Any]):
    """Four steps; action 0 pays 0.2, action 1 ends the episode and pays 0.5. The best return is 3 x 0.2 + 0.5 = 1.1.

    The step stands in the observation. With `truncates`, the horizon is reported as truncation.
    """

    def __init__(self, truncates: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (5,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.truncates = truncates

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        at_end = self.step_number == 4
        terminated = bool(action == 1) or (at_end and not self.truncates)
        return self._obs(), 0.5 if action == 1 else 0.2, terminated, at_end and not terminated, {}

    def _obs(self) -> Any:
        obs = np.zeros(5, np.float32)
        obs[self.step_number] = 1.0
        return obs


class Priced(VectorEnv[Any, Any, Any]):
    """Four steps, each good or poor by the toss of a coin; action 1 costs 1 and pays 1 where it is good, else 0.3.

    A knapsack: two of four steps are good, so under a limit L on an episode's mean cost the best policy buys good steps
    first, and its mean return is ``min(L, 2) + 0.3 min((L - 2)+, 2)`` (`best`).
    """

    def __init__(self, envs: int) -> None:
        self.num_envs = envs
        self.metadata = {"autoreset_mode": SAME_STEP}
        self.single_observation_space = spaces.Discrete(2)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, envs)
        self.action_space = batch_space(self.single_action_space, envs)

    @staticmethod
    def best(limit: float) -> float:
        return min(limit, 2.0) + 0.3 * min(max(limit - 2.0, 0.0), 2.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.rng, self.step_number = np.random.default_rng(seed), 0
        self.good = self.rng.integers(2, size=self.num_envs)
        return self.good, {}

    def step(self, actions: Any) -> Any:
        rewards = np.where(self.good == 1, 1.0, 0.3) * actions
        self.step_number = (self.step_number + 1) % 4
        done = np.full(self.num_envs, self.step_number == 0)
        every = np.ones(self.num_envs, bool)
        usage = {"read": 10.0 * actions, "_read": every, "written": 2.0 * actions, "_written": every}
        info = {"calls": np.asarray(actions), "_calls": every, "usage": usage, "_usage": every}
        self.good = self.rng.integers(2, size=self.num_envs)
        infos = {"final_info": info, "_final_info": every} if done.all() else info
        return self.good, rewards, done, np.zeros(self.num_envs, bool), infos


class SendRecv(SyncVectorEnv):
    """With send, recv and cancel: each step takes ``latency(row, n)`` on a clock of its own, n steps sent before it.

    Nothing here depends on time, so what is collected repeats itself. `log` holds (what, rows) of each call.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]], envs: int, latency: Callable[[int, int], float]
    ) -> None:
        super().__init__([make] * envs, autoreset_mode=SAME_STEP)
        self.latency = latency
        self.now = 0.0
        self.sent = 0
        self.flights: dict[int, tuple[float, Any]] = {}
        self.log: list[tuple[str, list[int]]] = []

    def reset(self, **options: Any) -> Any:
        self.flights.clear()
        self.log.append(("reset", list(range(self.num_envs))))
        return super().reset(**options)

    def send(self, actions: Any, rows: Sequence[int]) -> None:
        self.log.append(("send", list(rows)))
        for row, action in zip(rows, actions, strict=True):
            assert row not in self.flights, f"row {row} was sent twice"
            self.flights[row] = (self.now + self.latency(row, self.sent), action)
            self.sent += 1

    def recv(self, min_ready: int) -> Any:
        assert 1 <= min_ready <= len(self.flights)
        self.now = max(self.now, sorted(at for at, _ in self.flights.values())[min_ready - 1])
        rows = sorted(row for row, (at, _) in self.flights.items() if at <= self.now)
        self.log.append(("recv", rows))
        infos: dict[str, Any] = {}
        obs, rewards = [], np.zeros(len(rows))
        terminated, truncated = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        for place, row in enumerate(rows):
            env = self.envs[row]
            seen, rewards[place], terminated[place], truncated[place], info = env.step(self.flights.pop(row)[1])
            if terminated[place] or truncated[place]:
                infos = self._add_info(infos, {"final_obs": seen, "final_info": info}, row)
                seen, info = env.reset()
            infos = self._add_info(infos, info, row)
            obs.append(seen)
        return np.stack(obs), rewards, terminated, truncated, {**_of_rows(infos, rows), "env_id": np.array(rows)}

    def cancel(self) -> None:
        self.log.append(("cancel", sorted(self.flights)))
        self.flights.clear()


def _of_rows(infos: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: _of_rows(value, rows) if isinstance(value, dict) else value[rows] for name, value in infos.items()}


def heavy_tailed(seed: int) -> Callable[[int, int], float]:
    """Lognormal latencies with sigma 1, as those of LLMs."""
    return lambda row, n: float(np.exp(np.random.default_rng([seed, row, n]).normal()))


class Mixed(Identity):
    """`Identity` behind a Dict observation of every kind that can be flattened."""

    def __init__(self) -> None:
        super().__init__(numbers=3, length=4)
        self.observation_space = spaces.Dict(
            {
                "shown": spaces.Discrete(3),
                "bits": spaces.MultiBinary(2),
                "box": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
            }
        )

    def _show(self) -> Any:
        number = super()._show()
        bits = np.array([number & 1, number >> 1], np.int8)
        return {"shown": np.int64(number), "bits": bits, "box": np.full((2, 2), number / 2, np.float32)}


class Scripted(VectorEnv[Any, Any, Any]):
    """Each step plays one script line: per row a word out of go, end (terminated), cut (truncated), fail (invalid).

    The observation is (row, steps since the reset, resets, the mood that `retry_rows` leaves); reward = steps. A failed
    row is truncated and reset at once, as everything that ended; `retry_rows` plays the next line of `retries` for the
    rows that failed, from where they failed.
    """

    def __init__(self, script: Sequence[str], retries: Sequence[str] = (), actions: int = 3) -> None:
        self.num_envs = len(script[0].split())
        self.metadata = {"autoreset_mode": SAME_STEP}
        self.single_observation_space = spaces.Box(-1.0, 100.0, (3,), np.float32)
        self.single_action_space = spaces.Discrete(actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.script, self.retries = list(script), list(retries)
        self.asked: list[tuple[list[int], list[int]]] = []
        self.seeds: list[int | None] = []
        self.line = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.steps, self.resets = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        return self._obs(range(self.num_envs)), {"action_mask": self._masks(range(self.num_envs))}

    def step(self, actions: Any) -> Any:
        words = self.script[self.line % len(self.script)].split()
        self.line += 1
        self.failed_at = self.steps.copy()
        return self._play(range(self.num_envs), words)

    def _obs(self, rows: Any) -> Any:
        return np.array([(row, self.steps[row], self.resets[row]) for row in rows], np.float32)

    def _masks(self, rows: Any) -> Any:
        """Action 2 is illegal at each episode's first step."""
        return np.array([(1, 1, int(self.steps[row] > 0)) for row in rows], np.int8)

    def _play(self, rows: Any, words: Sequence[str]) -> Any:
        count = len(words)
        rewards = np.zeros(count)
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        final_obs, final_valid = np.full(count, None, object), np.zeros(count, bool)
        failure = np.full(count, "", object)
        for place, (row, word) in enumerate(zip(rows, words, strict=True)):
            if word != "fail":
                self.steps[row] += 1
                rewards[place] = self.steps[row]
            else:
                failure[place] = f"call {self.line} of row {row} was lost"
            terminated[place], truncated[place] = word == "end", word in ("cut", "fail")
            if word != "go":
                final_obs[place] = self._obs([row])[0]
                final_valid[place] = word != "fail"
                self.steps[row] = 0
                self.resets[row] += 1
        done = terminated | truncated
        infos: dict[str, Any] = {"action_mask": self._masks(rows), "valid": np.ones(count, bool)}
        infos["step"], infos["_step"] = self.steps[list(rows)].copy(), np.ones(count, bool)
        if done.any():
            infos |= {"final_obs": final_obs, "_final_obs": done, "_final_info": done}
            infos["final_info"] = {"valid": final_valid, "_valid": done, "failure": failure, "_failure": done}
        return self._obs(rows), rewards, terminated, truncated, infos


class Retrying(Scripted):
    """With the method that the SB3 adapter repeats failed rows through."""

    def retry_rows(self, actions: Any, rows: Sequence[int]) -> Any:
        self.asked.append((np.asarray(actions).tolist(), list(rows)))
        for row in rows:
            self.steps[row] = self.failed_at[row]
            self.resets[row] -= 1
        return self._play(rows, self.retries.pop(0).split())
