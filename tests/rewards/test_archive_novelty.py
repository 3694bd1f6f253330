"""Novelty against an archive: who counts as kept, order, memory on disk, many scores at once."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from instructgym.rewards.archive import Archive
from instructgym.rewards.diversity import ArchiveNovelty
from instructgym.rewards.encoders import Encoder, HashingEncoder
from instructgym.types import Elimination, Instruction, Transition


class Numbers(Encoder):
    """A text of numbers with spaces between is the direction of these coordinates; another has none."""

    name, dim = "numbers", 3

    def _encode(self, texts):
        rows = np.zeros((len(texts), 3), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text[:1] in "-0123456789":
                row[:] = [float(each) for each in text.split()]
                row /= np.linalg.norm(row)
        return rows


def step(child, parent="0 0 1", seed="0 0 1", elimination=None):
    texts = Instruction(seed), Instruction(parent)
    return Transition(*texts, "breadth", None if child is None else Instruction(child), 0, 4, elimination)


async def test_the_value_is_the_mean_over_the_k_nearest_of_kept_seed_and_parent():
    reward = ArchiveNovelty(Numbers(), k=3)
    reward.commit([step("1 0 0"), step("3 4 0"), step("0 -1 0")])
    score = await reward.score(step("0 1 0"))
    # Cosines: 0.8 and 0 (kept), 0 (the parent, who is the seed); the opposite one is the fourth.
    assert score.value == pytest.approx((0.2 + 1.0 + 1.0) / 3, abs=1e-3)
    assert score.terms == {
        "archive_novelty": score.value,
        "archive_novelty/nearest": pytest.approx(0.2, abs=1e-3),
        "archive_novelty/version": 1.0,
        "archive_novelty/size": 3.0,
    }
    away = await reward.score(step("0 1 0", parent="0 1 0", seed="0 0 1"))
    assert away.terms["archive_novelty/nearest"] == 0.0  # a copy of its parent, whatever was kept


async def test_accepted_children_are_kept_in_their_order_and_no_others():
    reward = ArchiveNovelty(Numbers())
    refused = step("0 1 0", elimination=Elimination("copy"))
    reward.commit([step("1 0 0"), refused, step(None), step("no direction"), step("3 4 0")])
    assert reward.archive.version == 1
    np.testing.assert_allclose(reward.archive.vectors([0, 1]), [[1, 0, 0], [0.6, 0.8, 0]], atol=1e-3)
    assert len(reward.archive) == 2


async def test_a_child_without_a_direction_has_no_value():
    score = await ArchiveNovelty(Numbers()).score(step("no direction"))
    assert score.value is None
    assert score.terms == {"archive_novelty/version": 0.0, "archive_novelty/size": 0.0}


@pytest.mark.parametrize("exact_below", [10_000, 50])
async def test_a_saved_memory_scores_and_learns_on_to_the_byte(tmp_path, exact_below):
    def texts(start, stop):
        return [step(f"Explain number {number} to a {number % 7} year old") for number in range(start, stop)]

    reward, again = (ArchiveNovelty(HashingEncoder(64)) for _ in range(2))
    reward.load_state_dict({"archive": Archive(64, exact_below=exact_below), "encoder": "hashing:64"})
    reward.commit(texts(0, 200))
    reward.state_dict()["archive"].save(tmp_path / "archive")
    again.load_state_dict({"archive": Archive.open(tmp_path / "archive"), "encoder": "hashing:64"})
    for each in (reward, again):
        each.commit(texts(200, 300))
    for transition in texts(290, 320):
        assert await reward.score(transition) == await again.score(transition)


async def test_a_score_is_the_same_alone_and_among_many():
    reward = ArchiveNovelty(HashingEncoder(64))
    reward.commit([step(f"Describe city {number} in winter") for number in range(500)])
    asked = [step(f"Describe river {number} in summer") for number in range(256)]
    alone = [await reward.score(transition) for transition in asked]
    together = await asyncio.gather(*map(reward.score, asked))
    assert list(together) == alone
