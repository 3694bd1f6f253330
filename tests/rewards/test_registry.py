import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards import REWARDS, HashingEncoder, make_reward, requires, reward_names
from instructgym.types import Completion, Instruction, Transition, Usage

STEP = Transition(
    Instruction("Describe how bees make honey."),
    Instruction("Describe how bees make honey."),
    "deepen",
    Instruction("Describe how bees make honey in winter."),
    0,
    4,
)


class NotEqual:
    name = "not equal"
    asked = 0

    async def complete(self, request):
        self.asked += 1
        return Completion("Not Equal", usage=Usage(1, 1))

    async def aclose(self):
        pass


@pytest.fixture
def reviewer():
    return LLM(NotEqual(), "reviewer", "m")


OWN = '''
from instructgym.rewards import Reward
from instructgym.types import Score

def words(transition):
    """How many words."""
    return len(transition.child.text.split())

async def later(transition):
    return 0.25

class Scaled(Reward):
    """A scaled constant."""
    name = "scaled"
    def __init__(self, encoder, factor=1.0):
        self.factor = factor * encoder.dim
    async def score(self, transition):
        return Score(self.factor, {"scaled": self.factor, "scaled/part": 1.0})

ready = Scaled(type("E", (), {"dim": 2}))
number = 3
class Plain: pass
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my_rewards.py").write_text(OWN)
    return lambda name: f"{tmp_path / 'my_rewards.py'}:{name}"


async def test_a_spec_is_a_weighted_sum_behind_its_gate(reviewer):
    spec = {"reviewer_equality": 1.0, "novelty": {"weight": 0.5, "seed_weight": 0.0}, "gate": True}
    reward = make_reward(spec, reviewer=reviewer, encoder=HashingEncoder())
    score = await reward.score(STEP)
    terms = score.terms
    assert score.value == pytest.approx(terms["reviewer_equality"] + 0.5 * terms["novelty"])
    assert terms["novelty"] == pytest.approx(0.5 * terms["novelty/parent"])
    assert (terms["gate"], terms["validity"], terms["reviewer_equality/forward"]) == (1.0, 1.0, 1.0)
    assert score.calls == 2


async def test_options_may_stand_apart_from_the_weights(reviewer):
    options = {"reviewer_equality": {"orders": "forward", "parse_retries": 0}}
    reward = make_reward({"reviewer_equality": 1}, reviewer=reviewer, options=options)
    assert (await reward.score(STEP)).calls == 1


async def test_a_gate_may_be_any_reward_with_a_threshold(own):
    spec = {own("later"): 1.0, "gate": {own("words"): 100}}
    assert (await make_reward(spec).score(STEP)).value == 0.0
    assert (await make_reward({**spec, "gate": {own("words"): 2}}).score(STEP)).value == 0.25


async def test_rewards_of_a_users_file(own):
    spec = {own("words"): 1.0, own("later"): 1.0, own("ready"): 1.0, own("Scaled"): {"weight": 1.0, "factor": 0.5}}
    score = await make_reward(spec, encoder=HashingEncoder(32)).score(STEP)
    assert score.terms == {
        "words": 7.0,
        "later": 0.25,
        "ready": 2.0,
        "ready/part": 1.0,
        "Scaled": 16.0,
        "Scaled/part": 1.0,
    }
    assert score.value == 25.25


def test_what_a_spec_requires(own):
    assert requires({"novelty": 1.0}) == {"encoder"}
    assert requires({"reviewer_equality": 1.0}) == {"reviewer"}
    assert requires({own("words"): 1.0}) == frozenset()
    assert requires({own("Scaled"): 1.0}) == {"encoder"}
    assert requires({own("words"): 1.0, "gate": "validity"}) == {"encoder"}


def test_installed_packages_add_rewards(own, monkeypatch):
    class Point:
        name = "installed"

        def load(self):
            return lambda transition: 1.0

    monkeypatch.setattr("instructgym.rewards.registry.entry_points", lambda group: [Point()])
    assert reward_names() == (*REWARDS, "installed")
    make_reward({"installed": 1.0})


def test_every_reward_says_what_it_is():
    for name, info in REWARDS.items():
        assert info.name == name
        assert info.summary
        assert info.needs <= {"expert", "reviewer", "encoder"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"novelity": 1},
            r"^unknown reward 'novelity'; did you mean 'novelty'\? Known: reviewer_equality, reviewer_archive, ",
        ),
        ({"novelty": "much"}, r"^reward 'novelty' has weight 'much'; expected a finite number\.$"),
        ({"novelty": float("nan")}, r"^reward 'novelty' has weight nan; expected a finite number\.$"),
        ({"novelty": True}, r"^reward 'novelty' has weight True; expected a finite number\.$"),
        ({"novelty": 0}, r"^the reward \{'novelty': 0\} has no term whose weight is not 0; name at least one\.$"),
        ({}, r"^the reward \{\} has no term whose weight is not 0; name at least one\.$"),
        ({"novelty": 1}, r"^the reward needs an encoder, got None; pass one\.$"),
        ({"reviewer_equality": 1}, r"^the reward needs a reviewer, got None; pass one\.$"),
        (
            {"validity": 1, "gate": 3},
            r"^the reward's gate is 3; expected true, a reward's name or \{name = threshold\}\.$",
        ),
        (
            {"validity": {"shape": 1}},
            r"^reward 'validity' has no option 'shape'; known: min_words, max_words, relevance, extra_markers\.$",
        ),
        ({"nowhere/mine.py:reward": 1}, r"^'nowhere/mine\.py:reward': there is no file .*mine\.py\.$"),
    ],
)
def test_bad_specs_are_refused_with_words(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(spec, encoder=HashingEncoder() if "shape" in message else None)


def test_faults_of_a_users_file_are_named(own, tmp_path):
    with pytest.raises(ConfigError, match=r"my_rewards\.py has no name 'word'; did you mean 'words'\? Known: Reward"):
        make_reward({own("word"): 1})
    with pytest.raises(
        ConfigError, match=r"^reward '.*:number' is of type int; expected a function of a transition, a"
    ):
        make_reward({own("number"): 1})
    with pytest.raises(ConfigError, match=r"^reward '.*:Plain' is of type type; expected a function"):
        make_reward({own("Plain"): 1})
    with pytest.raises(
        ConfigError, match=r"^reward '.*:words' takes no options, got \{'x': 1\}; options go to Reward cl"
    ):
        make_reward({own("words"): {"weight": 1, "x": 1}})
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "other.py").write_text("def words(t): return 1")
    with pytest.raises(ConfigError, match=r"broken\.py failed with ZeroDivisionError: division by zero$"):
        make_reward({f"{tmp_path / 'broken.py'}:x": 1})
    with pytest.raises(
        ConfigError, match=r"^the reward has more than one term called \['words'\]; names must be unique"
    ):
        make_reward({own("words"): 1, f"{tmp_path / 'other.py'}:words": 1})


def test_what_a_users_constructor_refuses_is_said_with_its_options(tmp_path):
    path = tmp_path / "strict.py"
    path.write_text(
        "from instructgym.rewards import Reward\n"
        "class Strict(Reward):\n"
        "    def __init__(self, power=1.0, **more):\n"
        "        if power <= 0:\n"
        "            raise ValueError('power must be above 0')\n"
        "class Bare(Reward):\n"
        "    pass\n"
    )
    with pytest.raises(ConfigError) as error:
        make_reward({f"{path}:Strict": {"power": 0, "colour": "red"}})
    assert str(error.value) == (
        f"reward '{path}:Strict' cannot be built with options {{'power': 0, 'colour': 'red'}}: "
        "ValueError: power must be above 0"
    )
    with pytest.raises(ConfigError) as error:
        make_reward({f"{path}:Bare": {"power": 1}})
    assert str(error.value) == f"reward '{path}:Bare' has no option 'power'; it takes none."
