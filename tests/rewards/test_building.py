"""What a config may say of a reward: names, tables with a type, definitions."""

import pytest

from instructgym.errors import ConfigError
from instructgym.rewards import Gate, HashingEncoder, make_reward, requires
from instructgym.types import Instruction, Transition

STEP = Transition(
    Instruction("Describe how bees make honey."),
    Instruction("Describe how bees make honey."),
    "deepen",
    Instruction("Describe how bees make honey in winter, with two sources."),
    0,
    4,
)
ENCODER = HashingEncoder()


async def value(spec, **options):
    return (await make_reward(spec, encoder=ENCODER, **options).score(STEP)).value


async def test_a_name_a_table_and_a_sum_of_one_say_the_same():
    alone = await value("novelty")
    assert alone is not None
    assert await value({"type": "novelty"}) == alone
    assert await value({"novelty": 1.0}) == alone
    assert await value({"type": "weighted_sum", "rewards": {"novelty": 1.0}}) == alone
    assert await value({"type": "weighted_sum", "rewards": ["novelty"]}) == alone


async def test_tables_nest_with_the_words_of_the_classes():
    spec = {
        "type": "gate",
        "validity": {"type": "validity", "min_words": 3},
        "reward": {
            "type": "product",
            "rewards": {"near": {"type": "novelty", "seed_weight": 0.0}, "novelty": {"parent_weight": 0.0}},
        },
    }
    reward = make_reward(spec, encoder=ENCODER)
    assert isinstance(reward, Gate)
    score = await reward.score(STEP)
    assert score.value == pytest.approx(score.terms["near"] * score.terms["novelty"])
    assert {"gate", "validity", "near/parent", "novelty/seed"} <= set(score.terms)


async def test_definitions_are_names_like_any_other_and_may_speak_of_each_other():
    define = {
        "far": {"type": "novelty", "parent_weight": 1.0, "seed_weight": 0.0},
        "bounded": {"type": "clip", "reward": "far", "high": 0.1},
        "strict": {"type": "validity", "max_words": 5},
    }
    assert await value({"bounded": 1.0}, define=define) == 0.1
    assert await value({"bounded": {"weight": 2.0, "high": 0.05}}, define=define) == pytest.approx(0.1)
    assert await value({"bounded": 1.0, "gate": "strict"}, define=define) == 0.0
    assert requires({"bounded": 1.0}, define) == {"encoder"}
    terms = (await make_reward({"bounded": 1.0}, encoder=ENCODER, define=define).score(STEP)).terms
    assert terms["bounded"] == 0.1
    assert terms["bounded/novelty/parent"] > 0.1


@pytest.mark.parametrize(
    ("spec", "define", "message"),
    [
        (
            {"mine": 1.0},
            {"mine": {"type": "clip", "reward": "other"}, "other": {"type": "clip", "reward": "mine"}},
            r"^reward\.define goes in a circle: mine -> other -> mine\.$",
        ),
        (
            {"mine": 1},
            {"mine": {"reward": "x"}},
            r"^reward\.define\.mine has no type; expected a reward's name, e\.g\.",
        ),
        ("x", {"novelty": {"type": "clip"}}, r"^reward\.define\.novelty: 'novelty' is a reward of the package; choose"),
        ("mind", {"mine": {"type": "novelty"}}, r"^unknown reward 'mind'; did you mean 'mine'\? Known: mine, "),
        (
            {"type": "clip", "reward": 3},
            {},
            r"^option 'reward' is 3; expected a reward's name, a table with 'type', or",
        ),
        ({"type": "clip", "reward": "noveltty"}, {}, r"^unknown reward 'noveltty'; did you mean 'novelty'\?"),
        (
            {"type": "product", "rewards": ["novelty", "novelty"]},
            {},
            r"^the rewards \['novelty', 'novelty'\] of one list must have different names; use a table of them\.$",
        ),
        ({"type": "clip"}, {}, r"^reward 'clip' needs the option 'reward'; it got none\.$"),
        (
            {"type": "lagrangian", "reward": "novelty"},
            {},
            r"^reward 'lagrangian' needs the options 'cost', 'limit'; it got 'reward'\.$",
        ),
        (
            {"novelty": {"seed_wieght": 0.5}},
            {},
            r"^reward 'novelty' has no option 'seed_wieght'; did you mean 'seed_weight'\? Known: parent_weight, seed_w",
        ),
        (
            {"type": "normalize", "reward": "novelty", "min_count": "many"},
            {},
            r"^reward 'normalize' cannot be built with options \{'reward': .*'min_count': 'many'\}: TypeError: '<' ",
        ),
        ({"type": "clip", "reward": [3]}, {}, r"^got 3 where a reward is expected; expected a name or a table with"),
    ],
)
def test_bad_tables_are_refused_with_words(spec, define, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec, define=define, encoder=ENCODER)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (
            {"novelty": 1.0, "gate": "validity"},
            {"options": {"validty": {"min_words": 3}, "novelty": {"seed_weight": 0.0}}},
            "options are given for ['validty'], but the reward is made of ['novelty', 'validity'].",
        ),
        (
            {"type": "novelty"},
            {"options": {"novelty": {"seed_weight": 0.0}}},
            "options are given for ['novelty'], but {'type': 'novelty'} is no sum of terms; put them into its table.",
        ),
        (
            {"type": "product", "rewards": {"novelty": 1.0, "ngram_novelty": 0.3}},
            {},
            "reward 'product' got a weight for 'novelty' at 'rewards'; only 'weighted_sum' weighs: put one there, or "
            "give a table of options.",
        ),
        (
            {"type": "product", "rewards": {"novelty": {"weight": 2, "seed_weight": 0.0}}},
            {},
            "reward 'product' got a weight for 'novelty' at 'rewards'; only 'weighted_sum' weighs: put one there, or "
            "give a table of options.",
        ),
        (
            {"type": "clip", "reward": {"novelty": {}, "ngram_novelty": {}}},
            {},
            "got the rewards ['novelty', 'ngram_novelty'] where one is expected; put them together with type = "
            "'weighted_sum' or 'product'.",
        ),
        (
            {"type": "clip", "reward": ["novelty", "ngram_novelty"]},
            {},
            "got the rewards ['novelty', 'ngram_novelty'] where one is expected; put them together with type = "
            "'weighted_sum' or 'product'.",
        ),
        (
            {"type": "product", "rewards": "novelty"},
            {},
            "a product got a Novelty as its rewards; expected name -> reward.",
        ),
        (
            {"type": "weighted_sum", "rewards": "novelty"},
            {},
            "a weighted sum got a Novelty as its rewards; expected name -> (reward, weight).",
        ),
        (
            {"novelty": {"encoder": "hashing"}},
            {},
            "reward 'novelty' got encoder = 'hashing'; that part is the run's, leave it out.",
        ),
        (
            {"type": "relevance", "changes_topic": "breadth"},
            {},
            "relevance got changes_topic = 'breadth'; expected a list of operations, or a function of a name.",
        ),
    ],
)
def test_what_would_be_ignored_or_misread_is_refused(spec, arguments, message):
    with pytest.raises(ConfigError) as error:
        make_reward(spec, encoder=ENCODER, **arguments)
    assert str(error.value) == message


async def test_options_reach_the_terms_and_the_gate():
    strict = {"options": {"validity": {"max_words": 5}}}
    assert await value({"novelty": 1.0, "gate": True}, **strict) == 0.0
    assert await value({"novelty": 1.0, "gate": {"validity": 0.5}}, **strict) == 0.0
    bent = await value({"novelty": 1.0}, options={"novelty": {"parent_weight": 0.0, "seed_weight": 0.0}})
    assert bent == 0.0


async def test_a_part_that_is_an_object_may_be_given_in_place_of_the_runs():
    other = HashingEncoder(dim=64)
    reward = make_reward({"type": "novelty", "encoder": other}, encoder=ENCODER)
    assert (await reward.score(STEP)).value != await value("novelty")
    assert (await reward.score(STEP)).value == (await make_reward("novelty", encoder=other).score(STEP)).value
