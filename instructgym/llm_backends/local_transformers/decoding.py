"""One batch of rows through the model: prefill, then a token a step; a row that is finished leaves the batch.

Not `model.generate`: it carries finished rows along until the last one ends, and lays the checkpoint's own generation
defaults (repetition penalty, top-k) over what a request asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from instructgym.llm_backends.local_transformers.loading import LoadedModel
from instructgym.llm_backends.local_transformers.rows import Row, TokenChances
from instructgym.llm_backends.local_transformers.sampling import ROUNDING, choose

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Generation"]


class Generation:
    """A batch that runs. `rows` are those still in it; call `step` until none is left.

    Prompts are padded on the left and masked, and positions count from each row's own first token.
    """

    def __init__(self, loaded: LoadedModel, rows: Sequence[Row]) -> None:
        import torch
        from transformers import DynamicCache

        self.rows = list(rows)
        self._loaded = loaded
        self._cache = DynamicCache(config=loaded.model.config)
        width = max(len(row.prompt) for row in rows)
        padding = [width - len(row.prompt) for row in rows]
        ids = [[loaded.pad] * gap + list(row.prompt) for gap, row in zip(padding, rows, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in padding]
        self._ids = torch.tensor(ids, device=loaded.device)
        self._mask = torch.tensor(mask, device=loaded.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)

    def step(self) -> list[Row]:
        """Give every row its next token; returns the rows that this finished, which are no longer in the batch.

        A finished row has a `finish_reason`, or a `failure` if its logits are not numbers.
        """
        import torch

        with torch.inference_mode():
            logits = self._forward(self._ids, self._mask, self._positions, self._cache)  # (B, V)
            # A likeliest logit that is no number stands for a row that cannot be drawn from.
            broken = (~logits.amax(dim=1).isfinite()).tolist()
            logits = logits.nan_to_num() if any(broken) else logits
            tokens = self._choose(logits)
            self._note_chances(logits, tokens)
            finished = [
                row for row, token, bad in zip(self.rows, tokens, broken, strict=True) if self._ends(row, token, bad)
            ]
            self._advance(tokens)
            self.drop(finished)
        return finished

    def drop(self, rows: Collection[Row]) -> None:
        """Take rows out of the batch."""
        import torch

        if not rows:
            return
        keep = [index for index, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[index] for index in keep]
        if not keep:
            return
        with torch.inference_mode():
            kept = torch.tensor(keep, device=self._loaded.device)
            self._cache.reorder_cache(kept)  # the one selection of rows that every kind of cache layer has
            self._ids, self._mask, self._positions = self._ids[kept], self._mask[kept], self._positions[kept]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:  # (B, T) -> (B, V) float32
        """The logits after the last token of each row; `cache` None keeps nothing."""
        import torch

        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in inputs.items() if name in self._loaded.forward}
        output = self._loaded.model(**known, past_key_values=cache, use_cache=cache is not None)
        return output.logits[:, -1].to(torch.float32)

    def _choose(self, logits: Tensor) -> list[int]:
        drawn, unsure = choose(logits, [row.draw for row in self.rows], ROUNDING if self._loaded.steady else 0.0)
        tokens: list[int] = drawn.tolist()
        if self._loaded.steady:
            for index in unsure.nonzero()[:, 0].tolist():
                tokens[index] = self._choose_alone(self.rows[index])
        return tokens

    def _choose_alone(self, row: Row) -> int:
        """The next token by a pass over this row alone, without padding or cache: of one shape in every batch."""
        import torch

        ids = torch.tensor([[*row.prompt, *row.tokens]], device=self._loaded.device)
        positions = torch.arange(ids.shape[1], device=self._loaded.device)[None]
        logits = self._forward(ids, torch.ones_like(ids), positions, None)
        return int(choose(logits, [row.draw])[0])

    def _note_chances(self, logits: Tensor, tokens: list[int]) -> None:
        """Write down the model's own log-probabilities, before temperature and top-p, where they are wanted."""
        for index, row in enumerate(self.rows):
            if row.top_logprobs is None:
                continue
            logprobs = logits[index].log_softmax(0)
            best = logprobs.topk(min(row.top_logprobs, len(logprobs)))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            row.chances.append(TokenChances(float(logprobs[tokens[index]]), top))

    def _ends(self, row: Row, token: int, broken: bool) -> bool:
        """Append the token; whether the row ends with it."""
        if broken:
            row.failure = "its logits are not numbers"
            return True
        row.tokens.append(token)
        if token in self._loaded.eos or (row.stop and self._loaded.texts.holds_stop(row.tokens, row.stop)):
            row.finish_reason = "stop"
        elif len(row.tokens) >= row.max_new:
            row.finish_reason = "length"
        return bool(row.finish_reason)

    def _advance(self, tokens: list[int]) -> None:
        import torch

        self._ids = torch.tensor(tokens, device=self._loaded.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1
