"""Behaviour cloning: a classifier of the logged choices, among what was legal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.base import Decision, OfflineAlgorithm
from instructgym.agents.draws import derive_seed, first_uniforms, row_rng, sample_categorical
from instructgym.agents.offline.classifier import Classifier
from instructgym.agents.offline.logs import Batch
from instructgym.agents.spaces import Flattener, num_actions
from instructgym.errors import ConfigError, UsageError

__all__ = ["BehaviourCloning"]

_WEIGHTS, _SHUFFLE = 1, 2
_TINY = 1e-30


class BehaviourCloning(OfflineAlgorithm):
    """imitates logged choices: a masked softmax classifier on the observation

    A network with tanh and layers `net_arch` on the standardised flat observation, trained by AdamW on the
    log-likelihood of the logged actions. `best` is the share of the episodes, those of the highest return, that it
    imitates. A logged choice that was illegal is not imitated. `learn_from` starts from new weights each time, so its
    result is a function of the logs and `seed`.
    """

    name = "behaviour_cloning"

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int = 0,
        *,
        net_arch: Sequence[int] = (64,),
        epochs: int = 20,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        best: float = 1.0,
    ) -> None:
        for name, value, fine, expected in (
            ("net_arch", tuple(net_arch), all(size >= 1 for size in net_arch), "sizes of at least 1"),
            ("epochs", epochs, epochs >= 1, "a whole number of at least 1"),
            ("batch_size", batch_size, batch_size >= 1, "a whole number of at least 1"),
            ("learning_rate", learning_rate, learning_rate > 0, "a number above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "a number of at least 0"),
            ("best", best, 0 < best <= 1, "a share above 0, at most 1"),
        ):
            if not fine:
                raise ConfigError(f"behaviour_cloning: {name} = {value!r}; expected {expected}.")
        self.flatten = Flattener(obs_space)
        self.actions = num_actions(action_space)
        self.seed = seed
        self.net_arch = tuple(net_arch)
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.best = best
        self.centre = np.zeros(self.flatten.dim, np.float32)
        self.scale = np.ones(self.flatten.dim, np.float32)
        self.network: Classifier | None = None

    def learn_from(self, batch: Batch) -> dict[str, float]:
        """Learn from logged transitions; the metrics are of the last epoch. Raises `UsageError` for no legal choice."""
        kept = batch.rows(np.isin(batch.episodes, self._imitated(batch)))
        legal = kept.masks[np.arange(len(kept)), kept.actions]
        if not legal.any():
            raise UsageError("behaviour_cloning: the logs hold no legal choice; expected at least one.")
        flat, masks, actions = kept.flat()[legal], kept.masks[legal], kept.actions[legal]
        self.centre, spread = flat.mean(axis=0), flat.std(axis=0)
        self.scale = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
        inputs = (flat - self.centre) / self.scale
        network = Classifier([self.flatten.dim, *self.net_arch, self.actions], derive_seed(self.seed, _WEIGHTS))
        loss = hits = 0.0
        for epoch in range(self.epochs):
            order = row_rng(self.seed, _SHUFFLE, epoch).permutation(len(inputs))
            loss = hits = 0.0
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                probs = network.learn(inputs[rows], masks[rows], actions[rows], self.learning_rate, self.weight_decay)
                loss -= float(np.log(np.maximum(probs[np.arange(len(rows)), actions[rows]], _TINY)).sum())
                hits += float((probs.argmax(axis=1) == actions[rows]).sum())
        self.network = network
        return {
            "train/accuracy": hits / len(inputs),
            "train/loss": loss / len(inputs),
            "train/transitions": float(len(inputs)),
        }

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        probs = self._softmax(obs, np.asarray(action_mask, bool))
        actions = probs.argmax(axis=1) if deterministic else sample_categorical(probs, first_uniforms(rng))
        return Decision(actions, np.log(probs[np.arange(len(probs)), actions]).astype(np.float32), state=state)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        probs = self._softmax(obs, np.asarray(action_mask, bool))
        return np.eye(self.actions)[probs.argmax(axis=1)] if deterministic else probs, state

    def state_dict(self) -> dict[str, Any]:
        if self.network is None:
            return {}
        return {"centre": self.centre, "scale": self.scale, **self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:
            self.network = None
            return
        self.centre, self.scale = (np.array(state[name], np.float32) for name in ("centre", "scale"))
        self.network = Classifier([self.flatten.dim, *self.net_arch, self.actions], 0)
        self.network.load_state_dict(state)

    def _imitated(self, batch: Batch) -> NDArray[np.int64]:
        names, returns = batch.returns()
        count = max(1, round(self.best * len(names)))
        return names if self.best == 1 else names[np.argsort(-returns, kind="stable")[:count]]

    def _softmax(self, obs: Any, legal: NDArray[np.bool_]) -> NDArray[np.float64]:  # -> (N, A)
        if self.network is None:
            raise UsageError(
                "behaviour_cloning has learned nothing yet; call learn_from(batch), or load a saved agent."
            )
        return self.network.probabilities((self.flatten(obs) - self.centre) / self.scale, legal)
