"""What is said of a set of chains: counts, and how far apart their texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgym.metrics import count_words, distinct_2, mean_pairwise_distance
from instructgym.rewards.encoders.base import Encoder
from instructgym.train.chains import DIGITS, Chain
from instructgym.types import Instruction

__all__ = ["chain_statistics", "set_statistics"]


def chain_statistics(chains: Sequence[Chain], encoder: Encoder) -> dict[str, Any]:
    """Counts and text statistics of chains, as summaries show them."""
    eliminated: dict[str, int] = {}
    operations: dict[str, int] = {}
    for chain in chains:
        for step in chain.steps:
            operations[step.transition.operation] = operations.get(step.transition.operation, 0) + 1
            if step.transition.elimination is not None:
                reason = step.transition.elimination.reason
                eliminated[reason] = eliminated.get(reason, 0) + 1
    return {
        "chains": len(chains),
        "incomplete": sum(chain.incomplete for chain in chains),
        "transitions": sum(len(chain.steps) for chain in chains),
        "accepted": sum(len(chain.accepted) for chain in chains),
        "expert_calls": sum(chain.calls for chain in chains),
        "reviewer_calls": sum(step.reviewer_calls for chain in chains for step in chain.steps),
        "prompt_tokens": sum(step.tokens[0] for chain in chains for step in chain.steps),
        "completion_tokens": sum(step.tokens[1] for chain in chains for step in chain.steps),
        "operations": dict(sorted(operations.items())),
        "eliminated": dict(sorted(eliminated.items())),
        **set_statistics([chain.final for chain in chains], encoder),
    }


def set_statistics(instructions: Sequence[Instruction], encoder: Encoder) -> dict[str, float | None]:
    """Mean words, mean pairwise embedding distance and distinct-2 of a set of instructions (with their inputs)."""
    texts = [instruction.render() for instruction in instructions]
    return {
        "mean_words": round(sum(map(count_words, texts)) / len(texts), DIGITS) if texts else None,
        "mean_pairwise_distance": _rounded(mean_pairwise_distance(encoder.encode_sync(texts)) if texts else None),
        "distinct_2": _rounded(distinct_2(texts)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
