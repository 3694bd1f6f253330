"""What the model reads: the instruction's tokens between a few words, and the operations chosen so far."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from numpy.typing import NDArray

from instructgym.errors import ConfigError
from instructgym.llm_backends.tokenizing import Tokenizer

__all__ = ["PromptWriter", "TokenReader"]

_TASK = "An instruction is made more demanding, step by step, by one of these operations: {names}.\n\n"
_BEFORE = "Instruction:\n"
_AFTER = "\n\nOperations so far: {history}\nNext operation:"


class TokenReader:
    """Takes flat observations of mode ``tokens`` apart.

    Raises `ConfigError` for another observation, and for one that another tokenizer made.
    """

    def __init__(self, space: spaces.Space[Any], actions: int, vocab_size: int, tokenizer: str) -> None:
        parts = space.spaces if isinstance(space, spaces.Dict) else {}
        if not {"history", "ids", "mask"} <= set(parts) or not isinstance(parts["history"], spaces.MultiDiscrete):
            raise ConfigError(
                f"agent 'lm' reads tokens; expected the observation 'tokens' (history, ids, mask, step), got {space}. "
                "Set env.observation = 'tokens'."
            )
        history, ids = parts["history"], parts["ids"]
        if not isinstance(ids, spaces.Box) or int(ids.high.max()) + 1 != vocab_size:
            got = int(ids.high.max()) + 1 if isinstance(ids, spaces.Box) else ids
            raise ConfigError(
                f"agent 'lm' reads tokens of '{tokenizer}', a vocabulary of {vocab_size:,}, but the observation's are "
                f"of one of {got:,}; set env.tokenizer = '{tokenizer}'."
            )
        if set(history.nvec.tolist()) != {actions + 1}:
            raise ConfigError(f"the observation's history is {history}; expected {actions + 1} values a step.")
        self.horizon = len(history.nvec)
        self.actions = actions
        self.length = int(ids.shape[0])
        self._places: dict[str, slice] = {}
        start = 0
        for name, part in parts.items():
            self._places[name] = slice(start, start + flatdim(part))
            start += flatdim(part)
        self._dim = start

    def __call__(self, flat: NDArray[np.float32]) -> list[tuple[NDArray[np.int64], tuple[int, ...]]]:
        """Flat observations (N, D) -> (the instruction's ids, the operations chosen so far) of each.

        Raises `ConfigError` for observations of another length.
        """
        if flat.shape[1] != self._dim:
            raise ConfigError(
                f"agent 'lm' was made for observations of {self._dim} numbers ({self.length} tokens, horizon "
                f"{self.horizon}), got {flat.shape[1]}; use the env.observation_length and env.horizon that it was "
                "trained with."
            )
        ids = flat[:, self._places["ids"]].astype(np.int64)
        kept = flat[:, self._places["mask"]] > 0.5
        history = self.history(flat)
        return [
            (row[mask], tuple(action for action in chosen if action < self.actions))
            for row, mask, chosen in zip(ids, kept, history.tolist(), strict=True)
        ]

    def history(self, flat: NDArray[np.float32]) -> NDArray[np.int64]:  # (N, D) -> (N, horizon)
        """The operations chosen so far, A where there was none yet."""
        one_hot = flat[:, self._places["history"]].reshape(len(flat), self.horizon, self.actions + 1)
        return np.asarray(one_hot.argmax(axis=2), np.int64)

    def facts(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, 1 + 2 A)
        """Step / horizon, times each operation was chosen / horizon, last operation one-hot."""
        history = self.history(flat)
        table = np.eye(self.actions + 1, dtype=np.float32)[:, : self.actions]
        chosen = table[history]
        steps = (history < self.actions).sum(axis=1)
        last = history[np.arange(len(history)), np.maximum(steps - 1, 0)]
        share = np.asarray(steps[:, None] / self.horizon, np.float32)
        return np.concatenate([share, chosen.sum(axis=1) / self.horizon, table[last]], axis=1).astype(np.float32)


class PromptWriter:
    """Writes prompts as token ids, and the operations' names as what follows a prompt.

    Args:
        tokenizer: the model's.
        names: the operations', in the order of the actions.
        says_names: name the operations in the prompt.
        before, after: special tokens around it.
        context: how many tokens the model takes, None: any number. Of a longer prompt the instruction is cut at its
            end. With `says_names` there is room left for the longest name.

    Raises `ConfigError` if there is no room for an instruction.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Sequence[str],
        horizon: int,
        *,
        says_names: bool,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        context: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._names = tuple(names)
        self._special_after = list(after)
        task = _TASK.format(names=", ".join(names)) if says_names else ""
        self._before = [*before, *tokenizer.encode(task + _BEFORE)]
        self.continuations = [list(tokenizer.encode(f" {name}\n")) for name in names]
        self._after = lru_cache(maxsize=4096)(self._write_after)
        room = max(map(len, self.continuations)) if says_names else 0
        self._room = None if context is None else context - room
        longest = max(range(len(names)), key=lambda action: len(self.continuations[action]))
        fixed = len(self._before) + len(self._after((longest,) * horizon)) + room
        if context is not None and fixed >= context:
            raise ConfigError(
                f"agent 'lm': the model takes {context} tokens, and the prompt has {fixed} without the instruction; "
                "choose a model with a longer context, or another tokenizer."
            )

    def write(self, ids: NDArray[np.int64], history: tuple[int, ...]) -> tuple[int, ...]:
        """A prompt: instruction and history."""
        after = self._after(history)
        kept = ids if self._room is None else ids[: self._room - len(self._before) - len(after)]
        return (*self._before, *kept.tolist(), *after)

    def _write_after(self, history: tuple[int, ...]) -> tuple[int, ...]:
        shown = ", ".join(self._names[action] for action in history) or "none"
        return (*self._tokenizer.encode(_AFTER.format(history=shown)), *self._special_after)
