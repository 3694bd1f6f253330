import asyncio

import numpy as np
import pytest

from instructgym.errors import CallTimeout, ConfigError, RewardError
from instructgym.rewards import FunctionReward, Gate, HashingEncoder, Novelty, Reward, Validity, WeightedSum, as_reward
from instructgym.types import Instruction, Score, Transition, Usage

SEED = Instruction("Describe how bees make honey.")


def step(text="Describe how bees make honey in winter, with two sources.", operation="deepen", parent=SEED, **child):
    return Transition(SEED, parent, operation, Instruction(text, **child), 1, 4)


WHERE = r" Transition: operation 'deepen', step 1, parent 'Describe how bees make honey\.'\.$"


class Fixed(Reward):
    def __init__(self, value, name="fixed", terms=None, calls=1):
        self.name, self.value, self.terms, self.calls, self.committed = name, value, terms or {}, calls, []

    async def score(self, transition):
        return Score(self.value, self.terms, Usage(1, 1), self.calls)

    def commit(self, transitions):
        self.committed += transitions

    def state_dict(self):
        return {"n": len(self.committed)}

    def load_state_dict(self, state):
        self.committed = [None] * state.get("n", 0)


async def test_a_weighted_sum_reports_every_term_under_the_name_it_has_there():
    total = WeightedSum(
        {
            "near": (Fixed(0.5, "novelty", {"novelty": 0.5, "novelty/parent": 0.25}), 2.0),
            "far": (Fixed(1.0, "novelty", {"novelty": 1.0, "novelty/parent": 0.75}), -1.0),
            "watched": (lambda transition: 7, 0.0),
        }
    )
    score = await total.score(step())
    assert score.value == 0.0
    assert score.terms == {"near": 0.5, "near/parent": 0.25, "far": 1.0, "far/parent": 0.75, "watched": 7.0}
    assert (score.usage, score.calls) == (Usage(2, 2), 2)


async def test_a_missing_term_makes_the_sum_missing_unless_it_weighs_nothing_or_is_skipped():
    missing, present = Fixed(None, terms={"fixed/unparsable": 2.0}), Fixed(0.5)
    assert (await WeightedSum({"a": (missing, 1.0), "b": (present, 1.0)}).score(step())).value is None
    assert (await WeightedSum({"a": (missing, 0.0), "b": (present, 1.0)}).score(step())).value == 0.5
    skipping = await WeightedSum({"a": (missing, 3.0), "b": (present, 1.0)}, missing="skip").score(step())
    assert skipping.value == 2.0  # the weight of what is missing goes to what is there
    assert skipping.terms == {"a/unparsable": 2.0, "b": 0.5}
    assert (await WeightedSum({"a": (missing, 1.0)}, missing="skip").score(step())).value is None


async def test_terms_are_scored_at_the_same_time():
    both = asyncio.Barrier(2)

    async def meets(transition):
        await both.wait()
        return 1.0

    total = WeightedSum({"a": (meets, 1.0), "b": (meets, 1.0)})
    assert (await asyncio.wait_for(total.score(step()), 5)).value == 2.0


async def test_a_failed_call_passes_through_and_cancels_the_other_terms():
    ended = []

    async def slow(transition):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def fails(transition):
        await asyncio.sleep(0)
        raise CallTimeout("no answer")

    with pytest.raises(CallTimeout, match=r"^no answer$"):
        await WeightedSum({"slow": (slow, 1.0), "fails": (fails, 1.0)}).score(step())
    assert ended == [True]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.zeros(3), r"an array of shape \(3,\)"),
        (np.zeros((1, 1)), r"an array of shape \(1, 1\)"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float32("-inf"), "-inf"),
        ("0.5", "a str"),
        ([0.5], "a list"),
        ({}, "a dict"),
        (object(), "a object"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_what_is_not_one_number_is_an_error_that_names_reward_and_transition(value, got, is_async):
    async def later(transition):
        return value

    total = WeightedSum({"mine": (later if is_async else lambda transition: value, 1.0)})
    with pytest.raises(RewardError, match=rf"^reward 'mine' returned {got}; expected one float a transition\.{WHERE}"):
        await total.score(step())


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(0.5), np.int64(2), np.array(0.25)])
async def test_numbers_of_all_kinds_are_floats(value):
    score = await FunctionReward(lambda transition: value, "mine").score(step())
    assert type(score.value) is float
    assert score.value == float(value)
    assert score.terms == {"mine": float(value)}


async def test_a_function_may_say_missing_or_give_a_whole_score():
    assert await FunctionReward(lambda transition: None).score(step()) == Score(None)
    whole = Score(0.5, {"x": 1.0}, Usage(1, 2), 3)
    assert await FunctionReward(lambda transition: whole).score(step()) is whole


async def test_an_exception_in_a_reward_is_chained_and_never_a_number():
    def broken(transition):
        return 1 / 0

    with pytest.raises(
        RewardError,
        match=rf"^reward 'broken' raised ZeroDivisionError: division by zero; expected one float a transition\.{WHERE}",
    ) as caught:
        await FunctionReward(broken).score(step())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    class Broken(Reward):
        async def score(self, transition):
            raise KeyError("x")

    with pytest.raises(RewardError, match=r"^reward 'b' raised KeyError: 'x'; expected"):
        await WeightedSum({"b": (Broken(), 1.0)}).score(step())
    bare = Reward()
    bare.score = lambda transition: asyncio.sleep(0, 0.5)
    with pytest.raises(RewardError, match=r"^reward 'bare' returned a float; expected a Score\."):
        await WeightedSum({"bare": (bare, 1.0)}).score(step())
    with pytest.raises(RewardError, match=r"^reward 'f' in term 'f/x' returned nan; expected one float"):
        await WeightedSum({"f": (Fixed(1.0, "f", {"f/x": float("nan")}), 1.0)}).score(step())


async def test_a_closed_gate_gives_zero_and_does_not_ask():
    asked = []

    def reward(transition):
        asked.append(transition)
        return 0.75

    closed = await Gate(Fixed(0.0, "validity", {"validity": 0.0, "validity/length": 0.0}), reward).score(step())
    assert (closed.value, closed.terms) == (0.0, {"validity": 0.0, "validity/length": 0.0, "gate": 0.0})
    assert asked == []
    opened = await Gate(Fixed(1.0, "validity"), as_reward(reward, "mine")).score(step())
    assert (opened.value, opened.terms) == (0.75, {"validity": 1.0, "mine": 0.75, "gate": 1.0})
    assert (await Gate(Fixed(None, "validity"), reward).score(step())).value is None
    assert (await Gate(Fixed(0.4), reward, threshold=0.3).score(step())).value == 0.75


async def test_memory_goes_to_and_comes_from_every_part():
    inner = Fixed(1.0)
    total = Gate(Validity(), WeightedSum({"a": (inner, 1.0), "b": (Novelty(HashingEncoder()), 1.0)}))
    total.commit([step(), step()])
    assert len(inner.committed) == 2
    state = total.state_dict()
    assert state == {"gated": {"a": {"n": 2}}}
    inner.committed = []
    total.load_state_dict(state)
    assert len(inner.committed) == 2
    with pytest.raises(ValueError, match=r"^reward 'gate' got state for \['c'\]; it holds \['gated', 'validity'\]$"):
        total.load_state_dict({"c": {}})


class Counting(Reward):
    """Takes what is committed and has nothing to save."""

    def commit(self, transitions):
        pass


def test_who_commits_is_known_through_any_composition():
    forgetful, counting = FunctionReward(lambda transition: 0.0, "zero"), Counting()
    assert not Reward().remembers
    assert not forgetful.remembers
    assert counting.remembers
    assert not WeightedSum({"a": (forgetful, 1.0)}).remembers
    assert WeightedSum({"a": (forgetful, 1.0), "b": (counting, 0.0)}).remembers
    assert Gate(counting, forgetful).remembers
    assert Gate(forgetful, WeightedSum({"a": (counting, 1.0)})).remembers
    assert not Gate(forgetful, forgetful).remembers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WeightedSum({}),
            r"^a weighted sum got no rewards; expected at least one name -> \(reward, weight\)\.$",
        ),
        (
            lambda: WeightedSum({"a": (Fixed(1), float("nan"))}),
            r"^reward 'a' has weight nan; expected a finite number\.$",
        ),
        (lambda: WeightedSum({"a": (Fixed(1), True)}), r"^reward 'a' has weight True; expected a finite number\.$"),
        (lambda: WeightedSum({"a": (Fixed(1), 1)}, missing="zero"), r"^a weighted sum got missing = 'zero'; expected"),
        (lambda: Gate(Fixed(1), Fixed(1), float("nan")), r"^a gate got threshold = nan; expected a finite number\.$"),
        (lambda: as_reward(3), r"^got 3 as a reward; expected a Reward or a function of a transition\.$"),
        (lambda: Novelty(HashingEncoder(), -1.0), r"^novelty got parent_weight = -1\.0; expected a finite number of 0"),
        (lambda: Validity(min_words=5, max_words=2), r"^validity got min_words = 5, max_words = 2; expected 0 <= min"),
        (lambda: Validity(relevance=1.5), r"^validity got relevance = 1\.5; expected a cosine, -1 to 1\.$"),
        (lambda: Validity(relevance=float("nan")), r"^validity got relevance = nan; expected a cosine, -1 to 1\.$"),
        (lambda: Validity(extra_markers="our house"), r"^validity got extra_markers = 'our house'; expected a list of"),
        (
            lambda: Validity(changes_topic="breadth"),
            r"^validity got changes_topic = 'breadth'; expected a list of operations, or a function of a name\.$",
        ),
        (
            lambda: WeightedSum([(Fixed(1), 1.0)]),
            r"^a weighted sum got a list as its rewards; expected name -> \(reward, weight\)\.$",
        ),
        (
            lambda: as_reward({"a": Fixed(1), "b": Fixed(1)}),
            r"^got the rewards \['a', 'b'\] where one is expected; put them together with type = 'weighted_sum' or "
            r"'product'\.$",
        ),
    ],
)
def test_contradictions_are_refused_at_construction(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


async def test_novelty_by_hand():
    encoder = HashingEncoder()
    parent = Instruction("Describe how bees make honey, with sources.")
    transition = step("Describe how wasps build nests, with sources.", parent=parent)
    child, old, seed = encoder.encode_sync([transition.child.render(), parent.render(), SEED.render()])
    score = await Novelty(encoder, parent_weight=0.75, seed_weight=0.25).score(transition)
    assert score.terms["novelty/parent"] == pytest.approx(1 - child @ old)
    assert score.terms["novelty/seed"] == pytest.approx(1 - child @ seed)
    assert score.value == pytest.approx(0.75 * (1 - child @ old) + 0.25 * (1 - child @ seed))


async def test_novelty_of_a_copy_is_zero_and_of_nothing_is_missing():
    novelty = Novelty(HashingEncoder())
    assert (await novelty.score(step(SEED.text))).value == pytest.approx(0.0, abs=1e-6)
    assert (await novelty.score(Transition(SEED, SEED, "deepen", None, 0, 4))).value is None


class Opposite(HashingEncoder):
    def _encode(self, texts):
        return np.array([[1.0 if "bees" in text else -1.0] + [0.0] * 255 for text in texts], dtype=np.float32)


async def test_distances_are_clipped():
    score = await Novelty(Opposite()).score(step("Name three rivers."))
    assert score.terms == {"novelty": 1.0, "novelty/parent": 1.0, "novelty/seed": 1.0}


@pytest.mark.parametrize(
    ("text", "operation", "failed"),
    [
        ("Describe how bees make honey in winter, with two sources.", "deepen", None),
        ("Describe", "deepen", "length"),
        ("honey " * 330, "deepen", "length"),
        ("What is it about?", "deepen", "content"),
        ("I'm sorry, but I can't help with bees and honey.", "deepen", "no_refusal"),
        ("#Rewritten Prompt#: Describe how bees make honey.", "deepen", "no_leak"),
        ("Sure, here is the rewritten instruction:\nDescribe how bees make honey.", "deepen", "no_chatter"),
        ("Calculate the monthly rate of a loan of 9,000 euros.", "deepen", "relevant"),
        ("Calculate the monthly rate of a loan of 9,000 euros.", "breadth", None),
    ],
)
async def test_validity_checks(text, operation, failed):
    score = await Validity(HashingEncoder()).score(step(text, operation))
    assert score.value == (1.0 if failed is None else 0.0)
    if failed is not None:
        assert score.terms[f"validity/{failed}"] == 0.0


async def test_what_the_parent_has_too_is_not_the_rewrites_fault():
    parent = Instruction("Improve this rewritten prompt: draw bees.")
    score = await Validity().score(step("Improve this rewritten prompt in two ways: draw bees.", parent=parent))
    assert score.value == 1.0


async def test_a_large_table_that_the_rewrite_supplies_does_not_make_it_irrelevant():
    data = "\n".join(f"hive{i},{i * 37},{i * 11}" for i in range(60))
    score = await Validity(HashingEncoder()).score(
        step("Describe how these bees make honey.", "complicate_input", input=data)
    )
    assert score.terms["validity/relevant"] == 1.0
