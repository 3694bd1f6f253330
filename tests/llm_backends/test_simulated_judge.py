"""The simulated judge: a function of the texts, wrong and unreadable at stated rates, with odds that fit its draws."""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib import resources

import pytest

from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.prompting import fence
from instructgym.llm_backends.server import SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.judge import QUESTIONS, UNPARSABLE_RATE, Judged, judge, token_logprobs
from instructgym.llm_backends.simulated.judge_reading import (
    answer_level,
    answer_points,
    complexity_level,
    gain_level,
    intents,
    unanswerable,
)
from instructgym.rewards.judging.additive import additive_messages, read_additive
from instructgym.rewards.judging.answerability import answerability_messages, read_answerability
from instructgym.rewards.judging.complexity import complexity_messages, read_complexity
from instructgym.rewards.judging.correctness import correctness_messages, read_correctness
from instructgym.rewards.judging.preference import preference_messages, read_preference
from instructgym.rewards.judging.quality import quality_messages, read_quality
from instructgym.rewards.judging.tags import read_tags, tags_messages
from instructgym.types import Instruction, Message, Request, Sampling

TASK = Instruction("Write a story about a lighthouse keeper. Include a letter.")
ANSWER = "The keeper of the lighthouse wrote a letter. It was winter. Nobody read it."
MESSAGES = {
    "complexity": (complexity_messages(TASK), read_complexity),
    "quality": (quality_messages(TASK, ANSWER), read_quality),
    "additive": (additive_messages(TASK, ANSWER), read_additive),
    "answerability": (answerability_messages(TASK), read_answerability),
    "correctness": (correctness_messages(TASK, ANSWER), read_correctness),
    "preference": (preference_messages(TASK, ANSWER, "A story."), read_preference),
    "tags": (tags_messages(TASK), lambda completion: read_tags(completion.text)),
}


def _seeds() -> list[Instruction]:
    lines = resources.files("instructgym.data").joinpath("seeds.jsonl").read_text("utf-8").splitlines()
    return [Instruction(record["instruction"], record["input"]) for record in map(json.loads, lines)]


def _answers(name: str, count: int, **sampling: float | int):
    messages, read = MESSAGES[name]
    for seed in range(count):
        completion = SimulatedBackend().answer(tuple(messages), Sampling(**sampling), seed)
        yield completion, read(completion)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_question_of_the_rewards_is_answered_and_read_but_for_one_in_a_hundred(name: str) -> None:
    unread = sum(value is None for _, value in _answers(name, 1500))
    assert 0.2 * UNPARSABLE_RATE < unread / 1500 < 2 * UNPARSABLE_RATE


@pytest.mark.parametrize("name", MESSAGES)
def test_the_reply_is_a_function_of_messages_and_seed_and_at_temperature_zero_of_the_messages(name: str) -> None:
    first, again = ([completion for completion, _ in _answers(name, 20)] for _ in range(2))
    assert first == again
    assert len({completion.text for completion, _ in _answers(name, 20, temperature=0.0)}) == 1


def test_first_system_lines_of_the_prompts_are_the_questions_known() -> None:
    lines = {messages[0].content.partition("\n")[0] for messages, _ in MESSAGES.values()}
    assert lines == set(QUESTIONS) - {"You judge how much one instruction adds to another."}


@pytest.mark.parametrize("system", ["", "You rate wines.", "You rate how complex an instruction is"])
def test_other_prompts_are_none_of_the_judges(system: str) -> None:
    assert judge(system, MESSAGES["quality"][0][1].content, Draws(b"0")) is None


@pytest.mark.parametrize("name", MESSAGES)
def test_tokens_join_to_the_reply_and_carry_a_distribution(name: str) -> None:
    for (completion, _), (plain, _) in zip(_answers(name, 50, top_logprobs=20), _answers(name, 50), strict=True):
        assert completion.text == plain.text
        assert plain.logprobs == ()
        assert "".join(token.token for token in completion.logprobs) == completion.text
        for token in completion.logprobs:
            assert sum(math.exp(logprob) for _, logprob in token.top) == pytest.approx(1.0)
            assert dict(token.top)[token.token] == token.logprob


@pytest.mark.parametrize(
    ("question", "scale"),
    [("Give a number from 1 to 4.", range(1, 5)), ("Scores go from 0 to 3.", range(4)), ("How much?", range(6))],
)
def test_gain_is_scored_on_the_scale_that_the_question_states_outside_its_fences(question: str, scale: range) -> None:
    texts = (TASK.text, f"{TASK.text} Count from 7 to 9.")
    prompt = f"{question}\n{fence('first', texts[0])}\n{fence('second', texts[1])}\n"
    answers = [
        judge("You judge how much one instruction adds to another.", prompt, Draws(f"{i}".encode())) for i in range(50)
    ]
    odds = {token for answer in answers if answer is not None for token, _ in answer.odds}
    assert odds == {str(k) for k in scale}


def test_verdicts_come_as_often_as_their_odds_say() -> None:
    prompt = preference_messages(TASK, ANSWER, ANSWER)[1].content
    answers = [judge("You compare two answers.", prompt, Draws(f"{i}".encode())) for i in range(4000)]
    decided = [answer for answer in answers if answer is not None and answer.odds]
    counts = Counter(answer.token for answer in decided)
    for token, share in decided[0].odds:
        assert counts[token] / len(decided) == pytest.approx(share, abs=0.03)
    assert counts["A"] > counts["B"]  # the first place is favoured


def test_only_so_many_alternatives_are_given_as_were_asked_for() -> None:
    judged = Judged("Score: 3", 7, "3", (("1", 0.1), ("2", 0.3), ("3", 0.6)))
    tokens = token_logprobs(judged, 2)
    assert [token.token for token in tokens] == ["Scor", "e: ", "3"]
    assert tokens[-1].top == (("3", math.log(0.6)), ("2", math.log(0.3)))
    assert [token.top for token in token_logprobs(judged, 0)] == [(), (), ()]


def test_a_reply_that_was_cut_carries_no_logprobs() -> None:
    completion = SimulatedBackend().answer(
        tuple(MESSAGES["additive"][0]), Sampling(max_tokens=3, top_logprobs=5, temperature=0.0), 0
    )
    assert (completion.finish_reason, len(completion.text), completion.logprobs) == ("length", 12, ())


async def test_further_choices_carry_their_own_logprobs() -> None:
    request = Request("r", "m", tuple(MESSAGES["complexity"][0]), Sampling(n=4, top_logprobs=5), "complexity/1")
    completion = await SimulatedBackend().complete(request)
    for choice in completion.others:
        assert "".join(token.token for token in choice.logprobs) == choice.text


async def test_over_http_the_judge_says_the_same_with_the_same_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    sampling = Sampling(top_logprobs=20, max_tokens=200)
    request = Request("reviewer", "simulated", tuple(MESSAGES["complexity"][0]), sampling, "complexity/1", (3,))
    async with SimulatedServer(SimulatedBackend()) as server:
        transport = OpenAICompatibleBackend(server.base_url)
        try:
            remote = await transport.complete(request)
        finally:
            await transport.aclose()
    here = await SimulatedBackend().complete(request)
    assert (remote.text, remote.logprobs) == (here.text, here.logprobs)
    assert here.logprobs


# --- what it sees -----------------------------------------------------------------------------------------------------
def test_each_demand_makes_an_instruction_more_complex() -> None:
    texts = ["Write a story about a lighthouse."]
    for clause in (
        "It must contain a letter.",
        "Examine its pacing.",
        "Work step by step.",
        "Set it in Lisbon in 1934.",
    ):
        texts.append(f"{texts[-1]} {clause}")
    levels = [complexity_level(text) for text in texts]
    assert levels == sorted(levels)
    assert 1.0 < levels[0] < 2.0
    assert levels[-1] > levels[0] + 2.0
    assert complexity_level(f"{texts[0]} Please answer carefully.") < levels[0] + 0.2


@pytest.mark.parametrize(
    ("second", "low", "high"),
    [
        ("Write a story about a lighthouse.", 0.0, 0.0),
        ("Write a story about a lighthouse. Please answer carefully.", 0.0, 0.1),
        ("Write a story about a lighthouse. It must contain one recurring image.", 0.7, 1.0),
        ("What is known of the khipu record keepers?", 0.0, 0.35),
        ("flurb zint mopple drask vurn krell ostib wemp jandle", 0.0, 0.0),
    ],
)
def test_gain_is_what_was_added_and_kept(second: str, low: float, high: float) -> None:
    assert low <= gain_level("Write a story about a lighthouse.", second) <= high


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write a story.", ""),
        ("How tall is it?", ""),
        ("Sort the following list: 3, 1, 2.", ""),
        ("Summarise this article.\n\nThe library opened in 1902.", ""),
        ("Use at least 3 examples and at most 5 examples.", ""),
        ("Use at least 5 examples and no more than 3 examples.", "It contradicts itself."),
        ("Summarise this article.", "It refers to something that is not there."),
        ("The library opened in 1902.", "It asks for nothing."),
        ("", "It asks for nothing."),
        ("Sure, here is the rewritten instruction:\nWrite a story.", "It is talk about an instruction."),
        ("flurb zint mopple drask vurn krell ostib wemp jandle", "It makes no sense."),
    ],
)
def test_faults_of_instructions_are_seen_in_their_words(text: str, reason: str) -> None:
    assert unanswerable(text) == reason


def test_the_shipped_seeds_can_be_answered_and_are_not_complex() -> None:
    seeds = [seed.render() for seed in _seeds()]
    assert sum(not unanswerable(seed) for seed in seeds) / len(seeds) > 0.98
    levels = sorted(map(complexity_level, seeds))
    assert 1.5 < levels[len(levels) // 2] < 2.5


def test_answers_are_ranked_by_subject_length_and_faults() -> None:
    good, short = f"{ANSWER} The story of the keeper ends with one more letter from the lighthouse.", "A keeper."
    levels = [
        answer_level(TASK.text, answer) for answer in (good, short, "I'm sorry, but I can't help with that.", "...")
    ]
    assert levels == sorted(levels, reverse=True)
    assert levels[-2:] == [1.0, 1.0]
    assert answer_level(TASK.text, TASK.text) == 1.0
    assert answer_points(TASK.text, "...") == []
    assert answer_points(TASK.text, short) == ["relevance"]


def test_intents_name_task_topic_and_demands() -> None:
    assert intents("Write a story about a lighthouse. It must contain one recurring image.") == [
        "composition",
        "writing",
        "one recurring image",
        "stated requirements",
    ]
    assert intents("of the") == []


def test_prompts_that_are_none_of_the_judges_are_answered_as_before() -> None:
    messages = (Message("user", "Explain how volcanoes erupt."),)
    text = SimulatedBackend().answer(messages, Sampling(), 1).text
    assert text.startswith("(simulated) ")
