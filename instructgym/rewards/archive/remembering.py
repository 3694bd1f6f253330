"""What the rewards share that remember every accepted rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgym.errors import ConfigError
from instructgym.rewards.archive.archive import Archive
from instructgym.rewards.base import Reward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Transition

__all__ = ["ArchiveReward"]


class ArchiveReward(Reward):
    """Base of rewards with an archive: a commit adds the accepted children, in order, and raises its version.

    The archive opens at its first use, when the encoder knows its dimension. A text without a single character that the
    encoder knows has no direction, and is not kept.
    """

    def __init__(self, encoder: Encoder, *, k: int, keep_texts: bool = False) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"{self.name} got k = {k!r}; expected a whole number of 1 or more.")
        self._encoder = encoder
        self._k = k
        self._keep_texts = keep_texts
        self._archive: Archive | None = None

    @property
    def archive(self) -> Archive:
        """The memory, as of the last commit. Loads the encoder's model if it has one and was not used yet."""
        if self._archive is None:
            if not self._encoder.dim:
                self._encoder.encode_sync(["dimension"])
            self._archive = Archive(self._encoder.dim, keep_texts=self._keep_texts)
        return self._archive

    @property
    def facts(self) -> dict[str, float]:
        """The terms that say which memory a score was made with."""
        kept = self._archive
        version, size = (0, 0) if kept is None else (kept.version, len(kept))
        return {f"{self.name}/version": float(version), f"{self.name}/size": float(size)}

    def commit(self, transitions: Sequence[Transition]) -> None:
        children = [transition.child for transition in transitions if transition.accepted]
        texts = [child.render() for child in children if child is not None]
        if not texts:
            self.archive.commit(np.empty((0, self.archive.dim), np.float32), [] if self._keep_texts else None)
            return
        vectors = self._encoder.encode_sync(texts)
        there = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0.5)
        kept = [texts[row] for row in there]
        self.archive.commit(vectors[there], kept if self._keep_texts else None)

    def state_dict(self) -> Mapping[str, Any]:
        return {"archive": self._archive, "encoder": self._encoder.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        archive = state.get("archive")
        if state.get("encoder", self._encoder.name) != self._encoder.name:
            raise ConfigError(
                f"the memory of '{self.name}' holds vectors of the encoder '{state['encoder']}', not of "
                f"'{self._encoder.name}'; use the same encoder, or start without the memory."
            )
        if archive is not None and self._keep_texts and not archive.keeps_texts:
            raise ConfigError(f"the memory of '{self.name}' holds no texts, which it needs; start without it.")
        self._archive = archive
