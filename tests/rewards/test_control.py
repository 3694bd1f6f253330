import math

import numpy as np
import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers import LocalScorer, TextLoss, Unscored
from instructgym.rewards.base import InstructionReward, Reward
from instructgym.rewards.control import LengthCap, OperationCost, PerplexityBand, Relevance, Shaping
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Elimination, Instruction, Score, Transition, Usage

SEED = Instruction("one two three four")


def words(count, word="w"):
    return Instruction(" ".join([word] * count))


def step(child, parent=SEED, operation="deepen", number=0, horizon=4, seed=SEED, **more):
    return Transition(seed, parent, operation, child, number, horizon, **more)


# perplexity_band


class Nats(LocalScorer):
    def __init__(self, nats):
        super().__init__("tiny")
        self.nats = nats

    async def losses(self, pairs):
        assert [prefix for prefix, _ in pairs] == [""] * len(pairs)
        found = [self.nats[text] for _, text in pairs]
        return [nats if isinstance(nats, Unscored) else TextLoss(nats, 5) for nats in found]


@pytest.mark.parametrize(
    ("perplexity", "value"),
    [
        (10, 1.0),
        (50, 1.0),
        (100, 1.0),
        (100 * math.e, 0.5),
        (100 * math.e**2, 0.0),
        (1e6, 0.0),
        (10 / math.sqrt(math.e), 0.75),
        (10 / math.e**2, 0.0),
        (1.0, 0.0),
    ],
)
async def test_a_perplexity_outside_the_band_falls_off_in_its_logarithm(perplexity, value):
    nats = math.log(perplexity)
    reward = PerplexityBand(model=Nats({"one\n\ntwo": nats}), low=10, high=100, margin=2.0)
    score = await reward.score_instruction(Instruction("one", "two"))
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.terms == {"perplexity_band": score.value, "perplexity_band/nats": nats}


async def test_a_perplexity_that_cannot_be_had_is_missing():
    nats = {"long": Unscored.OVERFLOW, "": Unscored.NO_TOKEN, "good": math.log(20)}
    reward = PerplexityBand(model=Nats(nats), low=10, high=100)
    assert await reward.score_instruction(Instruction("long")) == Score(None, {"perplexity_band/overflow": 1.0})
    assert await reward.score_instruction(Instruction("")) == Score(None, {"perplexity_band/no_token": 1.0})
    gain = PerplexityBand(model=Nats({"good": math.log(20), "bad": math.log(100) + 0.5}), low=10, high=100, gain=True)
    score = await gain.score(step(Instruction("good"), Instruction("bad")))
    assert score.value == pytest.approx(0.5)


# length_cap


@pytest.mark.parametrize(
    ("count", "options", "value", "excess"),
    [
        (34, {}, 0.0, 0),
        (35, {}, -0.01, 1),
        (2, {}, 0.0, 0),
        (54, {"max_growth": 10, "rate": 0.5}, -20.0, 40),
        (54, {"max_growth": None, "max_words": 50}, -0.04, 4),
        (54, {"max_growth": 10, "max_words": 20}, -0.40, 40),
        (54, {"max_growth": 40, "max_words": 20}, -0.34, 34),
        (5, {"max_growth": 0}, -0.01, 1),
    ],
)
async def test_words_beyond_the_cap_cost(count, options, value, excess):
    score = await LengthCap(**options).score(step(words(count)))
    assert score.value == pytest.approx(value)
    assert score.terms == {"length_cap": score.value, "length_cap/words": count, "length_cap/excess": excess}


async def test_the_words_of_the_input_count_too():
    grown = step(Instruction("one two", "three four five"), Instruction("one", "two"))
    assert (await LengthCap(max_growth=1, rate=1.0).score(grown)).value == -2.0


# relevance


class Table(Encoder):
    """Cosines to the seed by text: the seed is the first axis."""

    name, dim, related_cosine = "table", 2, 0.2

    def __init__(self, cosines):
        super().__init__()
        self.cosines = {SEED.text: 1.0, **cosines}

    def _encode(self, texts):
        return np.array([[self.cosines[text], math.sqrt(1 - self.cosines[text] ** 2)] for text in texts], np.float32)


@pytest.mark.parametrize(
    ("cosine", "options", "value"),
    [
        (0.6, {}, 1.0),  # 0.6 is the middle between the encoder's 0.2 and 1
        (0.4, {}, 0.5),
        (0.2, {}, 0.0),
        (-0.5, {}, 0.0),
        (1.0, {}, 1.0),
        (0.4, {"low": 0.3, "high": 0.7}, 0.25),
        (0.65, {"low": 0.3}, 1.0),
    ],
)
async def test_relevance_is_the_cosine_to_the_seed_between_low_and_high(cosine, options, value):
    score = await Relevance(Table({"child": cosine, "parent": 0.0}), **options).score(
        step(Instruction("child"), Instruction("parent"))
    )
    assert score.value == pytest.approx(value, abs=1e-6)
    assert score.terms == {"relevance": score.value, "relevance/seed": pytest.approx(cosine, abs=1e-6)}


async def test_relevance_to_the_parent_or_to_both():
    encoder = Table({"child": 0.6, "parent": 0.0})  # the child is 0.6 to the seed and 0.8 to the parent
    far = step(Instruction("child"), Instruction("parent"))
    parent = await Relevance(encoder, to="parent", low=0.0, high=1.0).score(far)
    assert (parent.value, sorted(parent.terms)) == (pytest.approx(0.8), ["relevance", "relevance/parent"])
    both = await Relevance(encoder, to="both", low=0.0, high=1.0).score(far)
    assert both.terms == {
        "relevance": pytest.approx(0.6),
        "relevance/seed": pytest.approx(0.6),
        "relevance/parent": pytest.approx(0.8),
    }


@pytest.mark.parametrize("changes_topic", [("leap",), lambda name: name == "leap"])
async def test_an_operation_that_changes_the_topic_is_exempt(changes_topic):
    reward = Relevance(Table({"child": 0.0}), changes_topic=changes_topic)
    assert (await reward.score(step(Instruction("child"), operation="leap"))) == Score(
        1.0, {"relevance": 1.0, "relevance/exempt": 1.0}
    )
    assert (await reward.score(step(Instruction("child"), operation="breadth"))).value == 0.0


# operation_cost


async def test_a_call_costs_by_its_operation_and_by_what_was_written():
    reward = OperationCost(per_call=0.1, costs={"deepen": 0.2}, per_100_words=0.5)
    score = await reward.score(step(words(10), reply="w " * 40))
    assert score.value == pytest.approx(-(0.1 + 0.2 + 0.5 * 0.4))
    assert score.terms == {
        "operation_cost": score.value,
        "operation_cost/call": 0.1,
        "operation_cost/operation": 0.2,
        "operation_cost/words": pytest.approx(0.2),
    }
    assert (await reward.score(step(words(10), operation="breadth"))).value == pytest.approx(-(0.1 + 0.05))
    assert (await OperationCost().score(step(words(10)))).value == -0.01


async def test_a_reply_that_held_no_rewrite_costs_as_much():
    reward = OperationCost(per_call=0.1, per_100_words=1.0)
    assert (await reward.score(step(None, reply="w " * 50))).value == pytest.approx(-0.6)


# shaping


class Potential(InstructionReward):
    name = "depth"

    def __init__(self, values, gain=False):
        self.values, self.gain, self.committed = values, gain, 0

    async def score_instruction(self, instruction):
        value = self.values[instruction.text]
        terms = {} if value is None else {"depth": value, "depth/raw": 2 * value}
        return Score(value, terms, Usage(3, 1), 1)

    def commit(self, transitions):
        self.committed += len(transitions)

    def state_dict(self):
        return {"committed": self.committed}

    def load_state_dict(self, state):
        self.committed = state["committed"]


CHAIN = {SEED.text: 0.5, "a": 2.0, "b": 1.0, "c": 4.0}


def episode(eliminated=()):
    """The transitions of a chain seed -> a -> b -> c, with rewrites thrown away at the steps in `eliminated`."""
    at, texts, transitions = SEED, ["a", "b", "c"], []
    horizon = len(texts) + len(eliminated)
    for number in range(horizon):
        if number in eliminated:
            transitions.append(
                step(Instruction("x"), at, number=number, horizon=horizon, elimination=Elimination("copy"))
            )
            continue
        child = Instruction(texts.pop(0))
        transitions.append(step(child, at, number=number, horizon=horizon))
        at = child
    return transitions


async def discounted(reward, transitions, gamma):
    return sum([gamma**number * (await reward.score(each)).value for number, each in enumerate(transitions)])


async def test_a_step_is_worth_what_it_adds_to_the_potential():
    score = await Shaping(Potential(CHAIN), gamma=0.9).score(episode()[0])
    assert score.value == pytest.approx(0.9 * 2.0 - 0.5)
    assert score.terms == {
        "shaping": score.value,
        "shaping/before": 0.5,
        "shaping/after": 2.0,
        "depth": 2.0,
        "depth/raw": 4.0,
    }
    assert (score.usage, score.calls) == (Usage(6, 2), 2)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
async def test_the_discounted_sum_telescopes_to_where_the_chain_ends(gamma):
    reward = Shaping(Potential(CHAIN), gamma=gamma)
    assert await discounted(reward, episode(), gamma) == pytest.approx(gamma**3 * 4.0 - 0.5)
    assert await discounted(reward, episode(eliminated=(1, 2)), gamma) == pytest.approx(gamma**5 * 4.0 - 0.5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
async def test_a_terminal_potential_of_zero_makes_the_sum_the_same_for_every_chain(gamma):
    reward = Shaping(Potential(CHAIN), gamma=gamma, terminal_zero=True)
    assert await discounted(reward, episode(), gamma) == pytest.approx(-0.5)
    assert await discounted(reward, episode(eliminated=(3,)), gamma) == pytest.approx(-0.5)
    last = await reward.score(episode()[-1])
    assert last.terms == {"shaping": -1.0, "shaping/before": 1.0, "shaping/after": 0.0}
    assert last.calls == 1  # the potential of the last child is not asked for


async def test_what_is_lost_where_the_environment_gives_an_eliminated_rewrite_its_penalty_alone():
    gamma, reward = 0.9, Shaping(Potential(CHAIN), gamma=0.9)
    transitions = episode(eliminated=(1,))
    asked = {number: each for number, each in enumerate(transitions) if number != 1}
    total = sum([gamma**number * (await reward.score(each)).value for number, each in asked.items()])
    assert total == pytest.approx(gamma**4 * 4.0 - 0.5 - gamma * (gamma - 1) * 2.0)


async def test_a_missing_potential_is_a_missing_reward():
    reward = Shaping(Potential({**CHAIN, "a": None}))
    first, second, third = [await reward.score(each) for each in episode()]
    assert (first.value, first.terms) == (None, {"shaping/before": 0.5})
    assert (second.value, second.terms["shaping/after"]) == (None, 1.0)
    assert third.value == pytest.approx(0.99 * 4.0 - 1.0)


async def test_the_potentials_memory_is_kept():
    reward = Shaping(Potential(CHAIN))
    reward.commit(episode())
    other = Shaping(Potential(CHAIN))
    other.load_state_dict(reward.state_dict())
    assert other.state_dict() == reward.state_dict() == {"potential": {"committed": 3}}


# all


@pytest.mark.parametrize(
    "reward",
    [
        LengthCap(),
        Relevance(Table({})),
        PerplexityBand(model=Nats({}), low=1, high=2),
    ],
    ids=lambda reward: reward.name,
)
async def test_a_reply_without_a_rewrite_has_no_score(reward):
    assert await reward.score(step(None)) == Score(None)


class Plain(Reward):
    name = "plain"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PerplexityBand(model="tiny", low=0.5, high=2),
            "perplexity_band got low = 0.5, high = 2; expected 1 <= low <= high.",
        ),
        (
            lambda: PerplexityBand(model="tiny", low=3, high=2),
            "perplexity_band got low = 3, high = 2; expected 1 <= low <= high.",
        ),
        (
            lambda: PerplexityBand(model="tiny", low=3, high=math.inf),
            "perplexity_band got low = 3, high = inf; expected 1 <= low <= high.",
        ),
        (
            lambda: PerplexityBand(model="tiny", low=1, high=2, margin=0),
            "perplexity_band got margin = 0; expected a number of nats above 0.",
        ),
        (
            lambda: LengthCap(max_growth=None),
            "length_cap got neither max_growth nor max_words; expected at least one of them.",
        ),
        (lambda: LengthCap(max_growth=-1), "length_cap got max_growth = -1; expected 0 or more words."),
        (lambda: LengthCap(max_words=math.nan), "length_cap got max_words = nan; expected 0 or more words."),
        (
            lambda: LengthCap(rate=0),
            "length_cap got rate = 0; expected a number above 0, in reward units a word.",
        ),
        (
            lambda: Relevance(Table({}), to="child"),
            "relevance got to = 'child'; expected 'seed', 'parent' or 'both'.",
        ),
        (
            lambda: Relevance(Table({}), low=0.7, high=0.5),
            "relevance got low = 0.7, high = 0.5; expected -1 <= low < high <= 1.",
        ),
        (
            lambda: Relevance(Table({}), changes_topic="leap"),
            "relevance got changes_topic = 'leap'; expected a list of operations, or a function of a name.",
        ),
        (
            lambda: OperationCost(costs={"deepen": -1}),
            "operation_cost got costs['deepen'] = -1; expected a finite number of 0 or more.",
        ),
        (
            lambda: OperationCost(per_100_words="1"),
            "operation_cost got per_100_words = '1'; expected a finite number of 0 or more.",
        ),
        (lambda: OperationCost(per_call=0), "operation_cost got costs of 0 alone; expected at least one above 0."),
        (
            lambda: Shaping(Plain()),
            "shaping got 'plain' as its potential, a Plain; expected a reward of single instructions "
            "(an InstructionReward).",
        ),
        (
            lambda: Shaping(Potential({}, gain=True)),
            "shaping got the potential 'depth' with gain = true; expected it off: shaping is the gain.",
        ),
        (
            lambda: Shaping(Potential({}), gamma=1.5),
            "shaping got gamma = 1.5; expected above 0 and at most 1, the agent's discount.",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message
