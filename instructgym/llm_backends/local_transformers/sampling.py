"""The draw of the next token: a function of a row's logits, its parameters, its seed and the position alone.

A row at temperature 0 takes its likeliest token. The others draw by an exponential race (the Gumbel-max trick without
its logarithms): with p the probabilities and E exponential noise that (seed, position) alone makes, the token of the
largest p / E is a draw from p. Neighbours in a batch change nothing. Top-p needs no sort of the vocabulary: the winner
counts if the tokens likelier than it hold less than `top_p`; else it and all that are no likelier leave the race.

**Rounding.** The logits of one row differ in their last bits with the shape of the batch, and where two outcomes are
that close, the shape would decide. So `choose` also says which rows are *unsure*: those whose outcome could be another
one if every logit moved by half of `rounding` times the row's largest. The caller computes these again alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ROUNDING", "Draw", "choose"]

ROUNDING = 1e-4
"""Twice what float32 logits may differ by between batch shapes, in parts of the largest.

Measured on random Llamas: 4e-7 (2 layers of 64), 4e-6 (24 of 512), 9e-6 to 5e-5 (16 of 1,024, by the weights' spread).
"""

_MASKED = -1e4  # models hide tokens by -inf or by the least number of their dtype


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row draws the token at `position` (0 is the first one generated)."""

    temperature: float
    top_p: float
    seed: int
    position: int


def choose(logits: Tensor, draws: Sequence[Draw], rounding: float = 0.0) -> tuple[Tensor, Tensor]:
    """The next token of each row, int64 (B,), and whether it is unsure, bool (B,), for float32 `logits` (B, V).

    With `rounding` 0 no row is unsure. The likeliest logit of a row must be finite.
    """
    import torch

    tokens = logits.argmax(dim=1)
    unsure = torch.zeros_like(tokens, dtype=torch.bool)
    noise = None
    if rounding:
        noise = rounding * torch.where(logits > _MASKED, logits.abs(), 0.0).amax(dim=1)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        unsure = first - second < noise
    random = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if random:
        rows = torch.tensor(random, device=logits.device)
        chosen = logits if len(random) == len(draws) else logits[rows]
        tokens[rows], unsure[rows] = _race(
            chosen, [draws[row] for row in random], None if noise is None else noise[rows]
        )
    return tokens, unsure


def _race(logits: Tensor, draws: Sequence[Draw], noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """`choose` for rows (k, V) of positive temperature.

    Moving each logit by noise / 2 moves the log-odds of any set of tokens, and the logarithm of the ratio of any two
    probabilities, by at most noise / temperature: `spread`.
    """
    import torch

    device = logits.device
    temperature = torch.tensor([draw.temperature for draw in draws], device=device).clamp(min=1e-30)
    top_p = torch.tensor([draw.top_p for draw in draws], device=device)
    spread = None if noise is None else noise / temperature
    # Shifted first, so that a tiny temperature makes no infinity of the largest.
    p = ((logits - logits.amax(dim=1, keepdim=True)) / temperature[:, None]).softmax(dim=1)
    score = p / _exponential(draws, logits.shape[1], device)
    tokens = torch.zeros(len(draws), dtype=torch.long, device=device)
    unsure = torch.zeros_like(tokens, dtype=torch.bool)
    left = torch.arange(len(draws), device=device)
    while len(left):
        limit = top_p[left]
        best, token = score.max(dim=1, keepdim=True)
        p_token = p.gather(1, token)
        inside = (_mass(p, p > p_token) < limit) | (limit >= 1)
        doubtful = torch.zeros_like(inside)
        if spread is not None:
            width = spread[left]
            ratio = width.exp()[:, None]
            least = _log_odds(_mass(p, p > p_token * ratio)) - width
            most = _log_odds(_mass(p, p >= p_token / ratio) - p_token[:, 0]) + width
            border = _log_odds(limit)
            doubtful = (limit < 1) & (least < border) & (most >= border)
            runner_up = score.scatter(1, token, 0.0).amax(dim=1)
            doubtful |= inside & (best[:, 0].log() - runner_up.log() < width)
        tokens[left], unsure[left] = token[:, 0], doubtful
        again = (~inside & ~doubtful).nonzero()[:, 0]
        left, p = left[again], p[again]
        score = score[again] * (p > p_token[again])
    return tokens, unsure


def _exponential(draws: Sequence[Draw], vocabulary: int, device: Any) -> Tensor:
    """Exponential noise of mean 1, float32 (k, V); a row is a function of its seed and position."""
    import torch

    keys = [_key(draw) for draw in draws]
    tiny = torch.finfo(torch.float32).tiny
    if device.type == "cpu":  # NumPy's is four times as fast as torch's there
        rows = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        drawn = np.stack([row.standard_exponential(vocabulary, dtype=np.float32) for row in rows])
        return torch.from_numpy(drawn).clamp_(min=tiny)
    generator = torch.Generator(device)
    noise = torch.empty(len(keys), vocabulary, device=device)
    for row, key in zip(noise, keys, strict=True):
        row.exponential_(generator=generator.manual_seed(key))
    return noise.clamp_(min=tiny)


def _key(draw: Draw) -> int:
    """63 bits of a hash of seed and position."""
    digest = hashlib.blake2b(f"{draw.seed}:{draw.position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _mass(p: Tensor, where: Tensor) -> Tensor:  # (k, V), (k, V) -> (k,)
    return (p * where).sum(dim=1)


def _log_odds(p: Tensor) -> Tensor:
    return p.double().clamp(0, 1).logit()
