"""Clip, Normalize, Schedule, Product, Lagrangian: numbers by hand, memory there and back."""

import math
import statistics

import pytest

from instructgym.errors import ConfigError, RewardError
from instructgym.rewards import Clip, Lagrangian, Normalize, Product, Reward, Schedule, WeightedSum
from instructgym.types import Instruction, Score, Transition

SEED = Instruction("Describe how bees make honey.")


def step(number=0, text="Describe how bees make honey in winter.", at=0, horizon=2):
    return Transition(SEED, SEED, "deepen", Instruction(f"{text} {number}"), at, horizon)


def value_of(transition):
    return float(transition.child.text.rsplit(" ", 1)[1])


async def nothing(transition):
    return None


async def scored(reward, *numbers):
    steps = [step(number) for number in numbers]
    values = [(await reward.score(one)).value for one in steps]
    reward.commit(steps)
    return values


async def test_a_clip_holds_the_value_between_its_bounds_and_shows_both():
    clip = Clip(value_of, -1.0, 2.0)
    assert [(await clip.score(step(number))).value for number in (-5, 0.5, 7)] == [-1.0, 0.5, 2.0]
    assert (await clip.score(step(7))).terms == {"value_of": 7.0, "clip": 2.0}
    assert (await Clip(nothing).score(step())).value is None


async def test_a_product_is_high_where_all_are_and_missing_where_one_is():
    product = Product({"a": value_of, "b": lambda transition: 0.5})
    score = await product.score(step(3))
    assert (score.value, score.terms) == (1.5, {"a": 3.0, "b": 0.5})
    assert (await Product({"a": value_of, "b": nothing}).score(step(3))).value is None


async def test_normalize_changes_nothing_within_a_rollout_and_uses_what_was_committed_after():
    reward = Normalize(value_of, min_count=4, clip=None)
    numbers = [1.0, 2.0, 4.0, 9.0]
    assert await scored(reward, *numbers) == numbers
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    score = await reward.score(step(5.0))
    assert score.value == pytest.approx((5.0 - mean) / std)
    assert score.terms["normalize/version"] == 1.0
    kept = Normalize(value_of, min_count=4, center=False)
    await scored(kept, *numbers)
    assert (await kept.score(step(5.0))).value == pytest.approx(5.0 / std)


async def test_normalize_counts_committed_transitions_alone_and_survives_no_variance():
    reward = Normalize(value_of, min_count=1)
    await reward.score(step(100.0))  # scored, never committed
    await scored(reward, 3.0, 3.0)
    assert (await reward.score(step(5.0))).value == 2.0  # shifted, not scaled
    again = Normalize(value_of, min_count=1)
    again.load_state_dict(reward.state_dict())
    assert (await again.score(step(5.0))).terms == (await reward.score(step(5.0))).terms
    assert reward.state_dict() == {"own": {"count": 2, "mean": 3.0, "squares": 0.0, "version": 1}}


async def test_normalize_takes_a_step_in_flight_over_a_commit_into_the_next():
    reward = Normalize(value_of, min_count=1)
    steps = [step(number) for number in (1.0, 3.0, 8.0)]
    for each in steps:
        await reward.score(each)
    reward.commit(steps[:2])
    reward.commit(steps[1:])  # what was taken is not taken twice
    assert reward.state_dict()["own"] == {"count": 3, "mean": 4.0, "squares": pytest.approx(26.0), "version": 2}
    await reward.score(step(100.0))
    for _ in range(2):
        reward.commit([])
    reward.commit([step(100.0)])  # scored before the last commit but one: forgotten
    assert reward.state_dict()["own"]["count"] == 3


def test_a_wrapper_remembers_where_it_or_what_it_wraps_does():
    assert not Clip(value_of).remembers
    assert Clip(Normalize(value_of)).remembers
    assert Normalize(value_of).remembers
    assert Schedule(value_of, [(0, 1.0)]).remembers
    assert Lagrangian(value_of, cost, 1.0).remembers


async def test_a_schedule_is_linear_between_its_points():
    reward = Schedule(lambda transition: 2.0, [(2, 0.0), (6, 1.0)])
    factors = []
    for _ in range(8):
        factors.append((await reward.score(step())).terms["schedule/factor"])
        reward.commit([step()])
    assert factors == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    again = Schedule(lambda transition: 2.0, [(2, 0.0), (6, 1.0)])
    again.load_state_dict({"own": {"seen": 5}})
    assert (await again.score(step())).value == 1.5


def cost(transition):
    return 3.0


async def test_the_multiplier_climbs_while_episodes_cost_too_much_and_falls_after():
    reward = Lagrangian(value_of, cost, limit=4.0, learning_rate=0.1, rescale=False)
    episode = [step(1.0, at=0), step(1.0, at=1)]
    assert (await reward.score(episode[0])).value == 1.0
    reward.commit(episode)  # 6 an episode, 2 too much
    assert reward.multiplier == pytest.approx(0.2)
    score = await reward.score(episode[0])
    assert score.value == pytest.approx(1.0 - 0.2 * 3.0)
    assert score.terms == {
        "value_of": 1.0,
        "lagrangian": pytest.approx(0.4),
        "lagrangian/cost": 3.0,
        "lagrangian/multiplier": pytest.approx(0.2),
    }
    reward.commit([step(1.0, at=0), step(1.0, at=0)])  # two episodes of 3
    assert reward.multiplier == pytest.approx(0.1)
    reward.commit([step(1.0, at=1, horizon=2)] * 2)  # no episode began: two steps of an episode of two
    assert reward.multiplier == pytest.approx(0.3)
    scaled = Lagrangian(value_of, cost, limit=0.0, multiplier=1.0)
    assert (await scored(scaled, 5.0))[0] == pytest.approx((5.0 - 3.0) / 2)
    again = Lagrangian(value_of, cost, limit=4.0)
    again.load_state_dict(reward.state_dict())
    assert again.multiplier == reward.multiplier


async def test_wrappers_nest_and_their_memory_with_them():
    def build():
        return WeightedSum({"a": (Clip(Normalize(value_of, min_count=2), -1, 1), 1.0), "b": (value_of, 0.0)})

    total = build()
    await scored(total, 0.0, 10.0)
    score = await total.score(step(6.0))
    assert score.value == pytest.approx(0.2)
    assert set(score.terms) == {"a", "a/normalize", "a/normalize/value_of", "a/normalize/version", "b"}
    again = build()
    again.load_state_dict(total.state_dict())
    assert (await again.score(step(6.0))).terms == score.terms


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Clip(value_of, 1, 0), r"^clip got low = 1, high = 0; expected finite numbers, low below high\.$"),
        (lambda: Normalize(value_of, min_count=0), r"^normalize got min_count = 0; expected 1 or more\.$"),
        (lambda: Normalize(value_of, clip=0), r"^normalize got clip = 0; expected a number above 0, or none\.$"),
        (
            lambda: Schedule(value_of, [(1, 1), (0, 1)]),
            r"^schedule got points at \[1\.0, 0\.0\]; expected ascending numbers of transitions\.$",
        ),
        (lambda: Schedule(value_of, []), r"^schedule got points = \[\]; expected \(transitions, factor\) pairs\.$"),
        (
            lambda: Schedule(value_of, [(1, math.nan)]),
            r"^schedule got points = \[\(1, nan\)\]; expected \(transitions, factor\) pairs\.$",
        ),
        (lambda: Product({}), r"^a product got no rewards; expected at least one name -> reward\.$"),
        (lambda: Product([value_of]), r"^a product got a list as its rewards; expected name -> reward\.$"),
        (
            lambda: Lagrangian(value_of, cost, 1.0, multiplier=2.0, max_multiplier=1.0),
            r"^lagrangian got multiplier = 2\.0, max_multiplier = 1\.0; expected no more\.$",
        ),
        (
            lambda: Lagrangian(value_of, cost, -1.0),
            r"^lagrangian got limit = -1\.0; expected a finite number of 0 or more\.$",
        ),
        (
            lambda: Lagrangian(value_of, cost, 1.0, learning_rate=0),
            r"^lagrangian got learning_rate = 0; expected a number above 0\.$",
        ),
        (
            lambda: Lagrangian(value_of, Reward(), 1.0),
            r"^lagrangian got Reward as its cost; expected 'operation_cost' or a plain function of a transition: "
            r"a cost must be known without asking anybody\.$",
        ),
    ],
)
def test_bad_values_are_refused_with_words(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


async def test_what_is_no_number_names_the_reward_and_the_transition():
    where = r" Transition: operation 'deepen', step 0, parent 'Describe how bees make honey\.'\.$"
    with pytest.raises(RewardError, match=r"^reward 'value' returned nan; expected one float a transition\." + where):
        await Clip(_named("value", math.nan)).score(step())
    with pytest.raises(
        RewardError, match=r"^reward 'lagrangian' in its cost' returned a str; expected one fl.*" + where
    ):
        await Lagrangian(value_of, lambda transition: "much", 1.0).score(step(1.0))

    def broken(transition):
        raise KeyError("deepen")

    limited = Lagrangian(value_of, broken, 1.0)
    message = r"^reward 'lagrangian' in its cost' raised KeyError: 'deepen'; expected one float a transition\." + where
    with pytest.raises(RewardError, match=message) as caught:
        await limited.score(step(1.0))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardError, match=message):
        limited.commit([step(1.0)])


def _named(name, value):
    class Fixed(Reward):
        async def score(self, transition):
            return Score(value)

    fixed = Fixed()
    fixed.name = name
    return fixed
