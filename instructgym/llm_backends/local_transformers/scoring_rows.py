"""A text after a prefix as token ids, and the losses of several of them in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from instructgym.llm_backends.local_transformers.loading import LoadedModel
from instructgym.types import Message

__all__ = ["ScoredRow", "TextLoss", "Unscored", "chosen_passes", "losses_of", "row_of"]

_POSITIONS_AT_ONCE = 256  # of a row whose logits are turned into float32 together


@dataclass(frozen=True, slots=True)
class TextLoss:
    """What a text costs under the model: mean negative log-likelihood a token (nats), over `tokens` tokens."""

    mean_nats: float
    tokens: int


class Unscored(Enum):
    """Why a text has no loss: there is no token to predict, or prefix and text exceed the model's context."""

    NO_TOKEN = "no_token"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Ids of the prefix and the text; the loss is over ``ids[start:]``, and `start` is at least 1."""

    ids: tuple[int, ...]
    start: int

    @property
    def inputs(self) -> int:
        """Tokens that the model reads: all but the last, which is only predicted."""
        return len(self.ids) - 1


def row_of(prefix: str, text: str, loaded: LoadedModel) -> ScoredRow | Unscored:
    """`text` after `prefix`; see `LocalScorer` for how they are joined and which tokens count.

    Raises `BadRequest` if the chat template refuses the prefix.
    """
    tokenizer = loaded.tokenizer
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    if not prefix:
        head = start
    elif loaded.prompts.plain:
        head = start + list(tokenizer(f"{prefix}\n\n", add_special_tokens=False)["input_ids"])
    else:
        head = loaded.prompts.ids([Message("user", prefix)], {})
    # Always apart from the prefix: the same tokens after every prefix.
    written = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    unpredicted = 0 if start else 1
    if len(written) <= unpredicted:
        return Unscored.NO_TOKEN
    row = ScoredRow((*head, *written), len(head) + unpredicted)
    if loaded.context is not None and row.inputs > loaded.context:
        return Unscored.OVERFLOW
    return row


def chosen_passes(rows: Sequence[ScoredRow], *, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Indices into `rows`, a list for each pass: alike lengths together, at most `max_tokens` with the padding.

    A row that is longer than that has a pass to itself.
    """
    passes: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: rows[index].inputs):
        # Sorted by length, so this row is the pass's widest.
        if passes and len(passes[-1]) < max_rows and (len(passes[-1]) + 1) * rows[index].inputs <= max_tokens:
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes


def losses_of(rows: Sequence[ScoredRow], loaded: LoadedModel) -> list[TextLoss]:
    """The losses of `rows` by one pass, padded on the right, where causal attention does not look.

    A mean that is no finite number is returned as it is.
    """
    import torch

    width = max(row.inputs for row in rows)
    padding = [width - row.inputs for row in rows]
    ids = [[*row.ids[:-1], *[loaded.pad] * gap] for row, gap in zip(rows, padding, strict=True)]
    mask = [[1] * row.inputs + [0] * gap for row, gap in zip(rows, padding, strict=True)]
    unread = min(row.start for row in rows) - 1  # positions in front, of which nobody reads the logits
    inputs = {
        "input_ids": torch.tensor(ids, device=loaded.device),
        "attention_mask": torch.tensor(mask, device=loaded.device),
        "logits_to_keep": width - unread,
        "use_cache": False,
    }
    with torch.inference_mode():
        logits = loaded.model(**{name: value for name, value in inputs.items() if name in loaded.forward}).logits
        left_out = width - logits.shape[1]
        losses = []
        for index, row in enumerate(rows):
            parts = []
            for first in range(row.start, len(row.ids), _POSITIONS_AT_ONCE):
                targets = torch.tensor(row.ids[first : first + _POSITIONS_AT_ONCE], device=loaded.device)
                place = first - 1 - left_out
                logprobs = logits[index, place : place + len(targets)].float().log_softmax(-1)
                parts += logprobs.gather(-1, targets[:, None])[:, 0].tolist()
            losses.append(TextLoss(-math.fsum(parts) / len(parts) if _are_finite(parts) else math.nan, len(parts)))
    return losses


def _are_finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
