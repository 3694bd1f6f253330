"""Fitted Q iteration (Ernst, Geurts and Wehenkel 2005, figure 1) on logged episodes, with the logged masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Decision, OfflineAlgorithm
from instructgym.agents.draws import first_uniforms, sample_categorical
from instructgym.agents.offline.logs import Batch
from instructgym.agents.offline.regression import ActionRegression
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import ConfigError, UsageError

__all__ = ["FittedQ"]

_MOST_ITERATIONS = 100


class FittedQ(OfflineAlgorithm):
    """fitted Q iteration on logged chains: greedy, or with a temperature

    The regressor is `ActionRegression`; `degree` and `standardise` are its. After as many iterations as the longest
    logged episode has steps (`iterations` where given; at most 100 by itself) its end has reached its beginning.
    A legal action that the logs never took is chosen, and believed in by the backup, only where no other is legal.
    `temperature` above 0 draws from softmax(Q / temperature) where `act` is not deterministic.
    Nothing here is drawn in learning, so `seed` decides nothing; `learn_from` starts from nothing each time.
    """

    name = "fitted_q"

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int = 0,
        *,
        gamma: float = 0.99,
        iterations: int | None = None,
        degree: int = 2,
        standardise: bool = False,
        temperature: float = 0.0,
    ) -> None:
        for name, value, fine, expected in (
            ("gamma", gamma, 0 <= gamma <= 1, "a number from 0 to 1"),
            ("iterations", iterations, iterations is None or iterations >= 1, "a whole number of at least 1, or none"),
            ("degree", degree, degree in (1, 2, 3), "1, 2 or 3"),
            ("temperature", temperature, temperature >= 0, "a number of at least 0"),
        ):
            if not fine:
                raise ConfigError(f"fitted_q: {name} = {value!r}; expected {expected}.")
        self.flatten = Flattener(obs_space)
        self.actions = num_actions(action_space)
        self.seed = seed
        self.gamma = gamma
        self.iterations = iterations
        self.degree = degree
        self.standardise = standardise
        self.temperature = temperature
        self.model: ActionRegression | None = None

    def learn_from(self, batch: Batch) -> dict[str, float]:
        """Learn from logged transitions; the metrics are of the last iteration. Raises `UsageError` for no rows."""
        if len(batch) == 0:
            raise UsageError("fitted_q: the logs hold no valid transition; expected at least one.")
        model = ActionRegression(
            batch.flat(), batch.actions, self.actions, degree=self.degree, standardise=self.standardise
        )
        predict = model.predictor(batch.next_flat())
        iterations = self.iterations or min(batch.horizon, _MOST_ITERATIONS)
        next_values = np.zeros(len(batch))
        for _ in range(iterations):
            model.fit(batch.rewards + self.gamma * np.where(batch.terminated, 0.0, next_values))
            next_values = _believed(model, predict(), batch.next_masks).max(axis=1)
        self.model = model
        return {
            "train/iterations": float(iterations),
            "train/left_out_error": model.error,
            "train/penalty": model.penalty,
            "train/transitions": float(len(batch)),
        }

    def q_values(self, obs: Any) -> NDArray[np.float64]:
        """Q(s, a) of N observations, (N, A). Raises `UsageError` before `learn_from`."""
        return self._fitted().predict(self.flatten(obs))

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        probs, _ = self.probabilities(obs, action_mask=action_mask, deterministic=deterministic)
        greedy = deterministic or self.temperature == 0
        actions = probs.argmax(axis=1) if greedy else sample_categorical(probs, first_uniforms(rng))
        return Decision(actions, np.log(probs[np.arange(len(probs)), actions]).astype(np.float32), state=state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        values = _believed(self._fitted(), self.q_values(obs), np.asarray(action_mask, bool))
        if deterministic or self.temperature == 0:
            return np.eye(self.actions)[values.argmax(axis=1)], state
        weights = np.exp((values - values.max(axis=1, keepdims=True)) / self.temperature)
        return weights / weights.sum(axis=1, keepdims=True), state

    def state_dict(self) -> dict[str, Any]:
        return {} if self.model is None else self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model = ActionRegression.restored(state) if state else None

    def _fitted(self) -> ActionRegression:
        if self.model is None:
            raise UsageError("fitted_q has learned nothing yet; call learn_from(batch), or load a saved agent.")
        return self.model


def _believed(model: ActionRegression, values: NDArray[np.float64], legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Q (N, A), minus infinity where an action is illegal, or was never logged while another legal one was."""
    known = legal & model.seen
    known = np.where(known.any(axis=1, keepdims=True), known, legal)
    return np.where(known, values, -np.inf)
