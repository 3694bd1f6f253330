import importlib.util
import math
from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.local_transformers import LocalScorer, TextLoss, Unscored
from instructgym.rewards.quality.ifd import IFD
from instructgym.types import Completion, Instruction, Score, Transition, Usage

QUESTION = Instruction("Sort the numbers.", "3, 1, 2")
STEP = Transition(Instruction("Sort."), Instruction("Sort."), "deepen", QUESTION, 0, 4)


class Losses(LocalScorer):
    """Nats by prefix, or why there are none; remembers what it was asked."""

    def __init__(self, given, alone):
        super().__init__("tiny")
        self.nats = {QUESTION.render(): given, "": alone}
        self.asked = []

    async def losses(self, pairs):
        self.asked += pairs
        nats = [self.nats[prefix] for prefix, _ in pairs]
        return [value if isinstance(value, Unscored) else TextLoss(value, 3) for value in nats]


class Answers:
    name = "answers"

    def __init__(self, *texts, finish_reason="stop"):
        self.texts, self.finish_reason, self.asked = texts, finish_reason, []

    async def complete(self, request):
        self.asked.append(request)
        return Completion(self.texts[0], self.finish_reason, Usage(7, 2))

    async def aclose(self):
        pass


async def test_ifd_is_the_loss_given_the_instruction_over_the_loss_alone():
    scorer = Losses(1.5, 2.0)
    score = await IFD(model=scorer).score_answer(QUESTION, "1, 2, 3")
    assert scorer.asked == [("Sort the numbers.\n\n3, 1, 2", "1, 2, 3"), ("", "1, 2, 3")]
    assert score == Score(
        0.75,
        {
            "ifd": 0.75,
            "ifd/conditional": 1.5,
            "ifd/unconditional": 2.0,
            "ifd/ratio": 0.75,
            "ifd/dropped": 0.0,
        },
    )


async def test_a_ratio_of_perplexities_is_that_of_superfiltering():
    score = await IFD(model=Losses(1.5, 2.0), ratio_of="perplexity").score_answer(QUESTION, "1, 2, 3")
    assert score.value == pytest.approx(math.exp(1.5) / math.exp(2.0))
    score = await IFD(model=Losses(9000.0, 2.0), ratio_of="perplexity").score_answer(QUESTION, "1, 2, 3")
    assert (score.value, score.terms["ifd/dropped"]) == (0.0, 1.0)
    assert math.isfinite(score.terms["ifd/ratio"])


@pytest.mark.parametrize("ratio_of", ["loss", "perplexity"])
async def test_an_answer_that_the_instruction_makes_less_likely_is_dropped(ratio_of):
    score = await IFD(model=Losses(3.0, 2.0), ratio_of=ratio_of).score_answer(QUESTION, "1, 2, 3")
    assert (score.value, score.terms["ifd"], score.terms["ifd/dropped"]) == (0.0, 0.0, 1.0)
    assert score.terms["ifd/ratio"] == pytest.approx(1.5 if ratio_of == "loss" else math.e)


async def test_what_is_dropped_is_a_choice():
    assert (await IFD(model=Losses(2.0, 2.0)).score_answer(QUESTION, "1")).value == 1.0
    assert (await IFD(model=Losses(3.0, 2.0), drop_above=None).score_answer(QUESTION, "1")).value == 1.5
    assert (await IFD(model=Losses(1.0, 2.0), drop_above=0.4).score_answer(QUESTION, "1")).value == 0.0


@pytest.mark.parametrize(
    ("given", "alone", "terms"),
    [
        (Unscored.OVERFLOW, 1.0, {"ifd/overflow": 1.0}),
        (Unscored.OVERFLOW, Unscored.OVERFLOW, {"ifd/overflow": 1.0}),
        (Unscored.NO_TOKEN, Unscored.NO_TOKEN, {"ifd/no_token": 1.0}),
        (0.5, 0.0, {"ifd/conditional": 0.5, "ifd/unconditional": 0.0}),
    ],
)
async def test_a_ratio_that_cannot_be_had_is_missing_and_says_why(given, alone, terms):
    assert await IFD(model=Losses(given, alone)).score_answer(QUESTION, "1") == Score(None, terms)


async def test_of_a_transition_it_scores_the_experts_answer():
    backend = Answers("1, 2, 3\n")
    scorer = Losses(1.0, 2.0)
    score = await IFD(LLM(backend, "expert", "m"), model=scorer).score(STEP)
    assert (score.value, score.calls, score.usage) == (0.5, 1, Usage(7, 2))
    assert scorer.asked[1] == ("", "1, 2, 3")
    assert backend.asked[0].messages[0].content == QUESTION.render()


async def test_an_answer_that_was_cut_is_missing():
    score = await IFD(LLM(Answers("1, 2", finish_reason="length"), "expert", "m"), model=Losses(1.0, 2.0)).score(STEP)
    assert score == Score(None, {"ifd/unanswered": 1.0}, Usage(7, 2), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_above": 0.0}, "ifd got drop_above = 0.0; expected a number above 0, or none."),
        ({"drop_above": math.nan}, "ifd got drop_above = nan; expected a number above 0, or none."),
        ({"ratio_of": "tokens"}, "ifd got ratio_of = 'tokens'; expected 'loss' or 'perplexity'."),
        ({"model": ""}, "the model's name is empty; expected a folder, or a name such as 'org/model'"),
        ({"dtype": "int4"}, "dtype is 'int4'; expected one of auto, float32, bfloat16, float16"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        IFD(**{"model": "tiny", **options})
    assert str(error.value) == message


async def test_a_real_model_gives_a_ratio_of_its_own_losses(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "tiny_models", Path(__file__).parents[1] / "llm_backends" / "tiny_models.py"
    )
    tiny_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_models)
    folder = str(tiny_models.save(tmp_path / "tiny"))
    reward = IFD(model=folder, drop_above=None)
    score = await reward.score_answer(QUESTION, "The sum of the first two numbers is 4.")
    scorer = LocalScorer(folder)
    given, alone = await scorer.losses(
        [(prefix, "The sum of the first two numbers is 4.") for prefix in (QUESTION.render(), "")]
    )
    scorer.close()
    assert score.value == given.mean_nats / alone.mean_nats
    assert given.tokens == alone.tokens
