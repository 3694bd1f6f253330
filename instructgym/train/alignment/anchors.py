"""Anchors: pairs of answers whose better one people know, on which the gate measures a judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from instructgym.train.alignment.eft_files import RankedAnswers, ScoredAnswer

__all__ = ["anchor_pairs", "split_anchors"]


def anchor_pairs(rows: Iterable[RankedAnswers | ScoredAnswer]) -> list[dict[str, str]]:
    """Pairs whose better answer is known, one a prompt: ``instruction``, ``input``, ``better``, ``worse``.

    Of ranked answers the best and the worst, of scored ones the highest and the lowest of a prompt; of equals the first
    is taken. Prompts whose answers are all alike in rank or text give none.
    """
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in rows:
        answers = found.setdefault((row.instruction.text, row.instruction.input), [])
        if isinstance(row, RankedAnswers):
            # Ranks of one row say nothing of another's; the first row of a prompt stands for it.
            if not answers:
                answers += [(-rank, answer) for rank, answer in zip(row.ranks, row.answers, strict=True)]
        else:
            answers.append((row.score, row.answer))
    pairs = []
    for (text, given), answers in found.items():
        best = max(answers, key=lambda each: each[0])
        worst = min(answers, key=lambda each: each[0])
        if best[0] > worst[0] and best[1].strip() != worst[1].strip():
            pairs.append({"instruction": text, "input": given, "better": best[1], "worse": worst[1]})
    return pairs


def split_anchors(
    rows: Sequence[RankedAnswers | ScoredAnswer], count: int, rng: np.random.Generator
) -> tuple[list[RankedAnswers | ScoredAnswer], list[dict[str, str]]]:
    """(rows to learn from, at most `count` anchor pairs of other prompts): a judge is measured on what it did not see.

    No more than half of the prompts that could be anchors are taken. The rows keep their order.
    """
    pairs = anchor_pairs(rows)
    taken = [pairs[place] for place in rng.permutation(len(pairs))[: min(count, len(pairs) // 2)].tolist()]
    held_out = {(pair["instruction"], pair["input"]) for pair in taken}
    return [row for row in rows if (row.instruction.text, row.instruction.input) not in held_out], taken
