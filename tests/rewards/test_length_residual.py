import json
import math

import numpy as np
import pytest

from instructgym.errors import ConfigError
from instructgym.rewards.control import LengthResidual
from instructgym.types import Instruction, Score, Transition, Usage

SEED = Instruction("one two three four")


def grown(count, number=0, child_input=""):
    """A rewrite of four words into `count`."""
    return Transition(SEED, SEED, "deepen", Instruction(" ".join(["w"] * count), child_input), number, 1000)


def longer_is_better(transition):
    """2 for each doubling, and a part that length does not explain."""
    count = len(transition.child.text.split())
    return 2.0 * math.log2(count / 4) + 0.25 * (transition.step % 3) + 1.0


async def rolled_out(reward, transitions):
    """Score and commit; the values."""
    values = [(await reward.score(each)).value for each in transitions]
    reward.commit(transitions)
    return values


def rollout(size=60, start=0):
    rng = np.random.default_rng(start)
    return [grown(int(count), start + number) for number, count in enumerate(rng.integers(4, 40, size))]


async def test_nothing_is_subtracted_before_enough_is_committed():
    reward = LengthResidual(longer_is_better, min_count=3)
    two = [grown(4, 0), grown(8, 1)]
    assert await rolled_out(reward, two) == [longer_is_better(each) for each in two]
    score = await reward.score(grown(16, 2))
    assert score.value == longer_is_better(grown(16, 2))
    assert score.terms["length_residual/slope"] == 0.0
    assert score.terms["length_residual/version"] == 1.0


async def test_three_points_by_hand():
    values = {4: 1.0, 8: 2.0, 16: 6.0}
    reward = LengthResidual(lambda transition: values[len(transition.child.text.split())], min_count=3)
    points = [grown(count) for count in values]
    await rolled_out(reward, points)
    # x = 0, 1 and 2 log 2; y = 1, 2, 6: the slope is 2.5 / log 2 and the mean of x is log 2.
    scores = [await reward.score(each) for each in points]
    assert [score.value for score in scores] == pytest.approx([3.5, 2.0, 3.5])
    assert scores[2].terms == {
        "<lambda>": 6.0,
        "length_residual": pytest.approx(3.5),
        "length_residual/growth": pytest.approx(2 * math.log(2)),
        "length_residual/slope": pytest.approx(2.5 / math.log(2)),
        "length_residual/version": 1.0,
    }


async def test_what_is_left_has_the_rewards_mean_and_no_correlation_with_growth():
    reward = LengthResidual(longer_is_better)
    transitions = rollout()
    raw = await rolled_out(reward, transitions)
    growth = [math.log(len(each.child.text.split()) / 4) for each in transitions]
    left = [(await reward.score(each)).value for each in transitions]
    assert abs(np.corrcoef(raw, growth)[0, 1]) > 0.9
    assert abs(np.corrcoef(left, growth)[0, 1]) < 1e-9
    assert np.mean(left) == pytest.approx(np.mean(raw))
    score = await reward.score(transitions[0])
    assert score.terms["length_residual/slope"] == pytest.approx(np.polyfit(growth, raw, 1)[0])


async def test_growth_counts_the_words_of_the_input():
    score = await LengthResidual(lambda transition: 1.0).score(grown(4, child_input="a b c d"))
    assert score.terms["length_residual/growth"] == pytest.approx(math.log(2))


async def test_where_length_does_not_vary_nothing_is_subtracted():
    reward = LengthResidual(lambda transition: float(transition.step), min_count=2)
    same = [grown(8, number) for number in range(50)]
    await rolled_out(reward, same)
    assert [(await reward.score(each)).value for each in same] == [float(number) for number in range(50)]


async def test_a_score_depends_on_what_was_committed_and_on_no_other_score():
    reward = LengthResidual(longer_is_better)
    first = rollout()
    await rolled_out(reward, first)
    before = (await reward.score(first[0])).value
    for other in rollout(start=1000):
        await reward.score(other)
    assert (await reward.score(first[0])).value == before
    count = reward.state_dict()["own"]["count"]
    reward.commit([])
    reward.commit([])  # what was scored before the last commit but one is forgotten
    assert reward.state_dict()["own"]["count"] == count
    reward.commit(rollout(start=1000))
    assert reward.state_dict()["own"]["count"] == count


async def test_a_step_in_flight_over_a_commit_is_taken_by_the_next():
    reward = LengthResidual(longer_is_better)
    transitions = rollout()
    for each in transitions:
        await reward.score(each)
    reward.commit(transitions[:40])
    reward.commit(transitions[40:])
    whole = LengthResidual(longer_is_better)
    await rolled_out(whole, transitions)
    assert reward.state_dict()["own"]["count"] == len(transitions)
    assert reward.state_dict()["own"]["products"] == pytest.approx(whole.state_dict()["own"]["products"])


async def test_memory_goes_through_a_file_and_gives_the_same_scores():
    reward = LengthResidual(longer_is_better)
    await rolled_out(reward, rollout())
    other = LengthResidual(longer_is_better)
    other.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    assert other.state_dict() == reward.state_dict()
    more = rollout(start=2000)
    assert await rolled_out(other, more) == await rolled_out(reward, more)
    assert other.state_dict() == reward.state_dict()
    assert (await other.score(more[0])).terms["length_residual/version"] == 2.0


async def test_memory_is_there_before_the_first_commit():
    assert LengthResidual(longer_is_better).state_dict() == {
        "own": {"count": 0, "mean_x": 0.0, "mean_y": 0.0, "squares": 0.0, "products": 0.0, "version": 0}
    }


async def test_a_missing_reward_is_missing_and_teaches_nothing():
    reward = LengthResidual(lambda transition: Score(None, {"x": 1.0}, Usage(1, 1), 1))
    assert await reward.score(grown(8)) == Score(None, {"<lambda>/x": 1.0}, Usage(1, 1), 1)
    reward.commit([grown(8)])
    assert reward.state_dict()["own"]["count"] == 0


async def test_a_reply_without_a_rewrite_keeps_the_value_it_has():
    reward = LengthResidual(lambda transition: -1.0)
    nothing = Transition(SEED, SEED, "deepen", None, 0, 4)
    assert (await reward.score(nothing)).value == -1.0
    reward.commit([nothing])
    assert reward.state_dict()["own"]["count"] == 0


def test_a_slope_needs_two_points():
    with pytest.raises(ConfigError) as error:
        LengthResidual(longer_is_better, min_count=1)
    assert str(error.value) == "length_residual got min_count = 1; expected 2 or more, for a slope."
