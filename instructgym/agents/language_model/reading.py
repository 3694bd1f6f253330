"""What a model makes of prompts: the pooled state of each, and how likely it finds each operation's name after it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from instructgym.agents.language_model.base_model import BaseModel

__all__ = ["NameScorer", "Reader", "StatePooler", "batches"]

Prompt = tuple[int, ...]
_COMMON = ("output_hidden_states",)


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places of `lengths` in groups of like length, each of at most `tokens` when padded (or of one)."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if groups and (len(groups[-1]) + 1) * lengths[place] <= tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


class Reader:
    """Reads a batch of prompts in one pass. `features` is F, what it makes of each; the first `width` are a state."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.features = base.width
        self.extra_tokens = 0  # beside the prompt's, a prompt

    def read(self, prompts: Sequence[Prompt]) -> Any:  # -> (B, F) float32, on the model's device
        """With gradients, where there are any."""
        raise TypeError(f"{type(self).__name__} does not define read()")

    def _padded(self, prompts: Sequence[Prompt], *, left: bool) -> tuple[Any, Any]:
        """Ids and mask, (B, T); T is the longest of these prompts."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.base.pad, dtype=torch.long)
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            part = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
            ids[row, part] = torch.tensor(prompt)
            mask[row, part] = 1
        return ids.to(self.base.device), mask.to(self.base.device)

    def _forward(self, ids: Any, mask: Any, positions: Any | None, **more: Any) -> Any:
        if positions is not None:
            more["position_ids"] = positions
        # Not every model takes positions or knows of a cache; the rest is common to all of them.
        allowed = {name: value for name, value in more.items() if name in self.base.takes or name in _COMMON}
        with self._autocast():
            return self.base.model(input_ids=ids, attention_mask=mask, **allowed)

    def _autocast(self) -> Any:
        """Where the weights are kept in float32 and computed with in less."""
        if self.base.dtype == self.base.model.dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.base.device.type, self.base.dtype)


class StatePooler(Reader):
    """The last hidden states of a prompt, pooled."""

    def read(self, prompts: Sequence[Prompt]) -> Any:
        if self.base.pooling == "last":
            ids, mask = self._padded(prompts, left=True)
            states = self._forward(ids, mask, _positions(mask), use_cache=False).last_hidden_state
            return states[:, -1].float()
        ids, mask = self._padded(prompts, left=False)
        states = self._forward(ids, mask, None, use_cache=False).last_hidden_state.float()
        if self.base.pooling == "first":
            return states[:, 0]
        weights = mask.unsqueeze(2).float()
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


class NameScorer(Reader):
    """The last state of a prompt, and beside it the log-probability of each name after it: F = width + A.

    The prompt is read once. Its keys and values serve all names, which are read together in a second pass. `mean`
    divides by a name's tokens, else they are summed.
    """

    def __init__(self, base: BaseModel, names: Sequence[Sequence[int]], *, mean: bool) -> None:
        super().__init__(base)
        longest = max(map(len, names))
        self.features = base.width + len(names)
        self.extra_tokens = len(names) * longest
        self._mean = mean
        self._names = torch.zeros((len(names), longest), dtype=torch.long)
        self._there = torch.zeros((len(names), longest))
        for row, name in enumerate(names):
            self._names[row, : len(name)] = torch.tensor(name)
            self._there[row, : len(name)] = 1.0
        self._names, self._there = self._names.to(base.device), self._there.to(base.device)

    def read(self, prompts: Sequence[Prompt]) -> Any:
        rows, (actions, length) = len(prompts), self._names.shape
        ids, mask = self._padded(prompts, left=True)
        prompt = self._forward(ids, mask, _positions(mask), use_cache=True, output_hidden_states=True, logits_to_keep=1)
        state = prompt.hidden_states[-1][:, -1].float()
        first = torch.log_softmax(prompt.logits[:, -1].float(), dim=-1)  # (B, V)
        scores = first[:, self._names[:, 0]]
        if length > 1:
            cache = prompt.past_key_values
            cache.batch_repeat_interleave(actions)
            given = self._names[:, :-1].repeat(rows, 1)  # (B A, T - 1)
            seen = torch.cat([mask.repeat_interleave(actions, dim=0), torch.ones_like(given)], dim=1)
            places = mask.sum(dim=1).repeat_interleave(actions)[:, None] + torch.arange(length - 1, device=given.device)
            logits = self._forward(given, seen, places, past_key_values=cache, use_cache=True).logits.float()
            wanted = self._names[:, 1:].repeat(rows, 1).unsqueeze(2)
            found = torch.log_softmax(logits, dim=-1).gather(2, wanted).squeeze(2)
            there = self._there[:, 1:].repeat(rows, 1)
            scores = scores + (found * there).sum(dim=1).view(rows, actions)
        if self._mean:
            scores = scores / self._there.sum(dim=1)
        return torch.cat([state, scores], dim=1)


def _positions(mask: Any) -> Any:  # (B, T), padded on the left -> (B, T)
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
