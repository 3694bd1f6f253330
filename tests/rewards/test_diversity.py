"""Rewards for being unlike: numbers by hand, memory as of the last commit."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from instructgym.errors import ConfigError
from instructgym.metrics import vendi_score
from instructgym.rewards.archive import Archive
from instructgym.rewards.diversity import ArchiveNovelty, CompressionGain, MarginalVendi, NgramNovelty
from instructgym.rewards.encoders import Encoder
from instructgym.rewards.reviewers import ReviewerArchive
from instructgym.types import Elimination, Instruction, Transition

SEED = Instruction("north")


class Compass(Encoder):
    """Knows four words as directions in a plane; nothing else has a direction."""

    name, dim = "compass", 2
    where = {"north": (0, 1), "east": (1, 0), "north-east": (0.5**0.5, 0.5**0.5), "south": (0, -1)}  # noqa: RUF012

    def _encode(self, texts):
        return np.array([self.where.get(text, (0, 0)) for text in texts], np.float32).reshape(len(texts), 2)


def step(child, parent="north", seed="north", elimination=None):
    texts = Instruction(seed), Instruction(parent)
    return Transition(*texts, "breadth", None if child is None else Instruction(child), 0, 4, elimination)


async def test_a_fresh_archive_pays_for_leaving_parent_and_seed():
    score = await ArchiveNovelty(Compass()).score(step("north-east"))
    assert score.value == pytest.approx(1 - 0.5**0.5)
    assert score.terms["archive_novelty/version"] == 0.0
    both = await ArchiveNovelty(Compass()).score(step("north-east", parent="south"))
    assert both.value == pytest.approx((1 - 0.5**0.5 + 1) / 2)  # the cosine to the parent is below 0: distance 1


async def test_novelty_falls_by_what_was_committed_and_not_before():
    reward = ArchiveNovelty(Compass(), k=1)
    assert (await reward.score(step("east"))).value == 1.0
    refused = step("east", elimination=Elimination("copy"))
    reward.commit([step("north-east"), refused, step(None), step("nowhere")])
    score = await reward.score(step("east"))
    assert score.value == pytest.approx(1 - 0.5**0.5, abs=1e-3)
    assert (score.terms["archive_novelty/version"], score.terms["archive_novelty/size"]) == (1.0, 1.0)
    assert score.terms["archive_novelty/nearest"] == score.value
    reward.commit([])
    assert (await reward.score(step("east"))).terms["archive_novelty/version"] == 2.0


async def test_the_memory_goes_into_another_reward_of_the_same_encoder():
    reward, again = ArchiveNovelty(Compass()), ArchiveNovelty(Compass())
    assert reward.state_dict()  # says that there is a memory, before there is anything in it
    reward.commit([step("east")])
    again.load_state_dict(reward.state_dict())
    assert (await again.score(step("south"))).terms == (await reward.score(step("south"))).terms
    other = Compass()
    other.name = "another"
    with pytest.raises(
        ConfigError, match=r"^the memory of 'archive_novelty' holds vectors of the encoder 'compass', not"
    ):
        ArchiveNovelty(other).load_state_dict(reward.state_dict())


async def test_marginal_vendi_is_the_difference_of_two_scores():
    reward = MarginalVendi(Compass(), k=4)
    plane = [np.array(Compass.where[word]) for word in ("north", "south", "east")]
    score = await reward.score(step("east", parent="south"))
    assert score.value == pytest.approx(vendi_score(np.stack(plane)) - vendi_score(np.stack(plane[:2])), abs=1e-3)
    assert (await reward.score(step("north"))).value == pytest.approx(0.0, abs=1e-6)
    reward.commit([step("east")])
    assert (await reward.score(step("east"))).value < score.value


async def test_marginal_vendi_of_a_rewrite_without_a_direction_is_missing():
    score = await MarginalVendi(Compass()).score(step("nowhere"))
    assert (score.value, score.terms) == (None, {"marginal_vendi/version": 0.0, "marginal_vendi/size": 0.0})


async def test_new_ngrams_are_those_that_neither_parent_nor_seed_has():
    transition = step("name two rivers of asia", parent="name two rivers", seed="rivers of peru")
    score = await NgramNovelty(max_n=2).score(transition)
    assert score.terms["ngram_novelty/1"] == pytest.approx(1 / 5)
    assert score.terms["ngram_novelty/2"] == pytest.approx(1 / 4)  # "of asia"; "rivers of" is the seed's
    assert score.value == pytest.approx((1 / 5 + 1 / 4) / 2)
    assert (await NgramNovelty().score(step("name two rivers", parent="Name two rivers!"))).value == 0.0
    assert (await NgramNovelty().score(step("!?"))).value is None


async def test_a_copy_adds_hardly_anything_that_does_not_compress():
    def size(text):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        return len(compressor.compress(text.encode()) + compressor.flush())

    parent = "Describe how a heat pump warms an old stone house when it freezes outside."
    other = "List seven uncommon herbs with their Latin names and uses."
    reward = CompressionGain()
    copy, new = await reward.score(step(parent, parent)), await reward.score(step(other, parent))
    assert copy.value < 0.15 < 0.6 < new.value
    assert new.value == pytest.approx((size(f"{parent}\n{other}") - size(parent)) / size(other))


@pytest.mark.parametrize(
    "reward", [ArchiveNovelty(Compass()), MarginalVendi(Compass()), NgramNovelty(), CompressionGain()]
)
async def test_a_missing_child_has_no_value(reward):
    assert (await reward.score(step(None))).value is None


def test_bad_options_are_refused_with_words():
    with pytest.raises(ConfigError, match=r"^archive_novelty got k = 0; expected a whole number of 1 or more\.$"):
        ArchiveNovelty(Compass(), k=0)
    with pytest.raises(ConfigError, match=r"^ngram_novelty got max_n = 0; expected a whole number of 1 or more\.$"):
        NgramNovelty(max_n=0)
    with pytest.raises(
        ConfigError, match=r"^the memory of 'reviewer_archive' holds no texts, which it needs; start with"
    ):
        ReviewerArchive(None, Compass()).load_state_dict({"archive": Archive(2), "encoder": "compass"})
