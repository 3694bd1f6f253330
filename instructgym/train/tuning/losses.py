"""Preference losses on summed log-probabilities of answers, one value a pair.

With d = (log pi(y+) - log ref(y+)) - (log pi(y-) - log ref(y-)), sums over the answer's tokens:

- ``sigmoid``: -log sigmoid(beta d) (DPO, arXiv 2305.18290, equation 7).
- ``sigmoid_norm``: the same with each of the two terms of d divided by its answer's length.
- ``hinge``: max(0, 1 - beta d) (SLiC, arXiv 2305.10425).
- ``ipo``: (d' - 1 / (2 beta))^2, d' as in ``sigmoid_norm`` (arXiv 2310.12036, equation 17, length-normalised).
- ``robust``: the sigmoid loss made unbiased for a share e of flipped labels (arXiv 2403.00409).
- ``sft``: -log pi(y+) / |y+| (the likelihood term of arXiv 2404.19733).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Logps", "pair_losses"]


@dataclass(frozen=True)
class Logps:
    """Summed log-probabilities of the answers, each a tensor of shape (n,), and their lengths in tokens."""

    chosen: Any
    rejected: Any
    reference_chosen: Any
    reference_rejected: Any
    chosen_tokens: Any
    rejected_tokens: Any


def pair_losses(name: str, logps: Logps, *, beta: float, label_smoothing: float = 0.0) -> Any:  # -> (n,)
    """The loss of each pair. Raises ValueError for a name that is none of the above."""
    import torch
    import torch.nn.functional as F

    gain, loss = logps.chosen - logps.reference_chosen, logps.rejected - logps.reference_rejected
    if name == "sft":
        return -logps.chosen / logps.chosen_tokens.clamp(min=1)
    if name in ("sigmoid_norm", "ipo"):
        difference = gain / logps.chosen_tokens.clamp(min=1) - loss / logps.rejected_tokens.clamp(min=1)
        return -F.logsigmoid(beta * difference) if name == "sigmoid_norm" else (difference - 1 / (2 * beta)) ** 2
    difference = beta * (gain - loss)
    if name == "sigmoid":
        return -F.logsigmoid(difference)
    if name == "hinge":
        return torch.relu(1 - difference)
    if name == "robust":
        wrong = label_smoothing
        return (-(1 - wrong) * F.logsigmoid(difference) + wrong * F.logsigmoid(-difference)) / (1 - 2 * wrong)
    raise ValueError(f"there is no preference loss '{name}'.")
