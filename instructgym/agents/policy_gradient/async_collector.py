"""Rollouts from whoever is ready, for envs whose steps take very different times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.collector import Collector
from instructgym.errors import UsageError

if TYPE_CHECKING:
    from instructgym.agents.policy_gradient.learner import ActorCriticLearner
    from instructgym.agents.rollout import Rollout

__all__ = ["AsyncCollector", "SendRecvEnv"]

_NEEDED = ("send", "recv", "cancel")


class SendRecvEnv(Protocol):
    """A SAME_STEP vector env that can also be stepped row by row; the names are EnvPool's (arXiv 2206.10558)."""

    num_envs: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all rows anew."""

    def send(self, actions: NDArray[np.int64], rows: Sequence[int]) -> None:
        """Start the steps of these rows, none of them in flight, and return at once."""

    def recv(self, min_ready: int) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What `step` returns, for at least `min_ready` of the rows in flight; ``infos["env_id"]`` says which."""

    def cancel(self) -> None:
        """Drop all steps in flight."""


class AsyncCollector(Collector):
    """Keeps every env busy, and takes transitions from at least `min_ready` at a time as they come.

    One answer of an LLM can take twenty times as long as the usual one, and a synchronous step waits for the slowest
    of N. Here it flies on while the others go on and while the learner updates, as IMPALA's actors do (arXiv
    1802.01561); its transition is of the rollout in which it arrives. Four things keep learning right:

    - the log-probability is that of the policy that chose, so PPO's ratio is pi_new / pi_behaviour, and the clip is
      around the policy that acted. That is sound while the two are an update or so apart; beyond, one would clip
      around a policy of its own (Hilton, Cobbe, Schulman 2021, arXiv 2110.00641);
    - a rollout is cut into pieces by env, of whatever length; the advantage of each piece is its own, and bootstraps
      where the piece ends, at the value that the current network gives to where the env stands;
    - a transition that was chosen more than `max_staleness` updates ago is not learned from, like one whose call
      failed: the row before it bootstraps from the state in which it was chosen. Nobody waits for it. Waiting would
      hold up all envs for the slowest one, and what is lost is rare: a step that took longer than a whole rollout;
    - envs that have just come in when a rollout is full choose after the update, with the new policy.

    Every choice is still a function of (seed, env, episode, step) and the weights, but who arrives in which rollout is
    a matter of time, so a run does not repeat itself. Where all envs are waited for (`min_ready` = N) it is the
    synchronous collector, to the byte.

    It asks for no more than `limit` transitions, and for all of them if it is not closed before: the last rollout
    ends when nothing is in flight any more.

    Raises:
        UsageError: the env has no send, recv and cancel.
        ConfigError: `min_ready` is more than the envs.
    """

    env: SendRecvEnv

    def __init__(self, learner: ActorCriticLearner, vector_env: Any, limit: int) -> None:
        missing = [name for name in _NEEDED if not callable(getattr(vector_env, name, None))]
        if missing:
            raise UsageError(
                f"vector env {type(vector_env).__name__} has no {', '.join(f'{name}()' for name in missing)}; "
                f"{learner.name} with collect = 'async' needs them. "
                "Use InstructionEvolutionVectorEnv, or collect = 'sync'."
            )
        self._min_ready = learner.config.ready_of(vector_env.num_envs)
        super().__init__(learner, vector_env)
        self._in_flight = np.zeros(self.size, bool)
        self._to_ask = limit

    def collect(self, wanted: int, *, keep_infos: bool = False) -> Rollout:
        """A rollout of at least `wanted` transitions, or of all that are still to come."""
        return super().collect(min(wanted, self._to_ask + int(self._in_flight.sum())), keep_infos=keep_infos)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """How many valid transitions were too stale, how many updates old the others are, who is in flight now."""
        ages = rollout.staleness[rollout.learned]
        return {
            "rollout/in_flight": float(self._in_flight.sum()),
            "rollout/stale": float((rollout.valid & ~rollout.learned).sum()),
            "rollout/staleness_mean": float(ages.mean()) if len(ages) else float("nan"),
        }

    def close(self) -> None:
        if self._in_flight.any():
            self.env.cancel()

    def _exchange(self, missing: int) -> tuple[NDArray[np.int64], Any]:
        free = np.flatnonzero(~self._in_flight)[: self._to_ask]
        if len(free):
            actions = self._choose(free)
            self._in_flight[free] = True  # before the env knows, so that `close` drops them whatever happens in send
            self._to_ask -= len(free)
            self.env.send(actions, free.tolist())
        batch = self.env.recv(min(self._min_ready, missing, int(self._in_flight.sum())))
        rows = np.asarray(batch[-1]["env_id"], np.int64)
        self._in_flight[rows] = False
        return rows, batch
