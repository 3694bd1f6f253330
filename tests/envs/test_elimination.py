"""Each rule on failures as rewriters write them, and on good rewrites that only resemble them."""

import asyncio

import pytest

from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.envs.elimination import CUT, DEFAULT_RULES, RULES, EliminationRules, cut
from instructgym.envs.operations import Rewrite
from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards import HashingEncoder, ReviewerEquality
from instructgym.types import Completion, Elimination, Instruction, Transition, Usage

BEES = "Describe how bees make honey."
LONG = "Describe how bees make honey, " + "and then how the keeper takes it from the comb, " * 40
SORT = "Sort the list 12, 5, 99, 41 and 7 in Python."
CODE = "Find the bug:\n```python\ndef area(r):\n    return 3.14 * r\n```"
TABLE = "Which month was wettest?\n| month | rain |\n|---|---|\n| May | 61 |\n| June | 88 |"
ENCODER = HashingEncoder()


def step(child, parent=BEES, operation="deepen", child_input=None, parent_input=""):
    kept = parent_input if child_input is None else child_input
    before = Instruction(parent, parent_input)
    return Transition(before, before, operation, Instruction(child, kept), 0, 4, reply=child)


def reason(transition, *names):
    rules = EliminationRules(names or DEFAULT_RULES, encoder=ENCODER)
    found = asyncio.run(rules.check(transition))
    return None if found is None else found.reason


GOOD = [
    step("Describe how bees make honey in winter, and name two sources."),
    step("Describe how bees make honey; answer in at most 120 words, and do not use the word 'nectar'."),
    step("Describe how bees of the genus Apis make honey from rape blossom in Brandenburg in May."),
    step("Explain step by step how bees make honey, and justify why water must evaporate before capping."),
    step("Compare the flight of swifts with that of bats in one paragraph.", operation="breadth"),
    step(
        "Describe how bees make honey, using the table in the input.",
        operation="complicate_input",
        child_input="hive,kg\nA,12\nB,9",
    ),
    step("写一首关于蜜蜂和蜂蜜的诗，要求押韵，每行七个字。", "写一首关于蜜蜂的诗。"),
    step("اكتب قصيدة قصيرة عن النحل والعسل في الشتاء", "اكتب قصيدة قصيرة عن النحل"),
    step("Sort the list 12, 5, 99, 41 and 7 in Python without sorted(), and state the complexity.", SORT),
    step(CODE + "\nThen write two tests for it.", CODE),
    step("Translate the text into formal French.", "Translate the text.", parent_input="My car won't start."),
]


@pytest.mark.parametrize("transition", GOOD, ids=range(len(GOOD)))
def test_good_rewrites_pass_every_rule(transition):
    assert reason(transition) is None


COPIES = [
    step(BEES),
    step("describe how bees make honey"),
    step("  Describe  how bees\nmake honey. "),
    step('"Describe how bees make honey!"'),
    step("**Describe how bees make honey.**"),
    step("DESCRIBE HOW BEES MAKE HONEY"),
    step("写一首诗", "写一首诗。"),
    step("Translate this.\n\nMy car won't start.", "Translate this.", parent_input="My car won't start."),
    step("Translate this!", "Translate this.", parent_input="My car", operation="breadth", child_input=""),
    step("D\u200bescribe how bees make honey."),
]
NOT_COPIES = [
    step("Describe how wild bees make honey."),
    step("Describe how bees make wax."),
    step(BEES, child_input="hive,kg\nA,12", operation="complicate_input"),
    step("What is 2 - 2?", "What is 2 + 2?"),
    step("Write it in C#.", "Write it in C."),
    step("Describe how bees make honey. Describe how bees make honey again."),
    step("Describe how bees make"),
    step("写一首长诗", "写一首诗。"),
]
EMPTIES = [step(text) for text in ("", " \n", "...", "What is it?", "The", "\u200b", "—", "How do you do that?")]
NOT_EMPTIES = [step(text) for text in ("Why honey?", "诗", "😀", "2 + 2", "Bees!", "x", "What is DNA?", "¿Qué?")]
REFUSALS = [
    step("I'm sorry, but I can't help with rewriting that."),
    step("I cannot assist with that request."),
    step("Sorry, I'm unable to rewrite this instruction."),
    step("As an AI language model, I cannot make this request harder."),
    step("I apologize, but I do not feel comfortable extending this."),
    step("Unfortunately, I am not able to rewrite the instruction without more context."),
    step("I must respectfully decline this request."),
    step("I won't provide a harder version of this."),
]
NOT_REFUSALS = [
    step("Write a letter of a beekeeper who is sorry for a late delivery of honey."),
    step("Explain why bees cannot make honey from water alone."),
    step("Rewrite in a polite tone: 'I can't help you with the hive.'"),
    step("As an apiarist, describe how bees make honey."),
    step("Unfortunately many hives die in winter: explain how bees keep their honey warm."),
    step("I am not able to find my hive tool. Describe how bees make honey and what tools I need."),
    step("Sorry state of the hives aside, describe how bees make honey."),
    step("I cannot provide samples: describe honey. I am a keeper.", "I cannot provide samples: describe honey."),
]
LEAKS = [
    step("#Rewritten Prompt#: Describe how bees make honey in winter."),
    step("Describe how bees make honey in winter. Do not exceed 2048 words."),
    step("Describe how bees make honey in winter. This extends the given prompt."),
    step("<instruction-0a1b2c3d>\nDescribe how bees make honey in winter.\n</instruction-0a1b2c3d>"),
    step("Describe how bees make honey. Add about 10 to 20 words."),
    step("Describe how bees make honey in winter.\nINPUT:\nnone"),
    step("[INST] Describe how bees make honey in winter. [/INST]"),
    step("Describe how bees make honey in winter.<|im_end|>"),
    step("Describe the hives.", operation="complicate_input", child_input="hive,kg\nA,12\n</input-0a1b2c3d>"),
]
NOT_LEAKS = [
    step("Describe how bees make honey, given the input temperature."),
    step("Describe how bees make honey in 2048 characters."),
    step("Describe how bees make honey. Rewrite the given facts as a fable."),
    step("Write a prompt for a painting of bees that make honey."),
    step("Describe the operation: how do bees make honey?"),
    step("Describe how bees make honey with <b>bold</b> headings."),
    step("Add about ten words to: bees make honey."),
    step("Improve this rewritten prompt twice: draw bees.", "Improve this rewritten prompt: draw bees."),
]
CHATTER = [
    step("Sure, here is the rewritten instruction:\n\nDescribe how bees make honey in winter."),
    step("Certainly! Here's a more complex version:\n\nDescribe how bees make honey in winter."),
    step("Here is the new instruction you asked for:\n\nDescribe how bees make honey in winter."),
    step("Of course! Describe how bees make honey in winter."),
    step("**Revised instruction:** Describe how bees make honey in winter."),
    step("Describe how bees make honey in winter.\n\nLet me know if you would like further changes!"),
    step("Describe how bees make honey in winter.\n\n(Note: I added a constraint.)"),
    step("I've rewritten the instruction to be deeper: Describe how bees make honey in winter."),
    step(
        "Describe the hives.",
        operation="complicate_input",
        child_input="hive,kg\nA,12\nB,9\n\nLet me know if this works!",
    ),
]
NOT_CHATTER = [
    step("Here is a table of honey by hive. Compute the mean."),
    step("Here's what I know of bees: they make honey. Describe how."),
    step("Below is a note on bees. Shorten it to one line about honey."),
    step("Certain bees make honey: describe how."),
    step("Describe how bees make honey. End with the words 'let me know if you have questions'."),
    step("Feel free to use a diagram. Describe how bees make honey."),
    step("Okay, so I keep bees. Describe how they make honey."),
    step("Sure! Describe honey and wax.", "Sure! Describe honey."),
    step(
        "Answer the mail about honey.",
        operation="complicate_input",
        child_input="Dear Ann,\nis there honey?\n\nLet me know if you can come.",
    ),
]
LOST = [
    step("Explain how to sort numbers in Python.", SORT),
    step("Sort a list of your choice in Python and state the complexity.", SORT),
    step("Find the bug in a function that computes an area, and explain it.", CODE),
    step("Which month was wettest, and by how much?", TABLE),
    step("Which city is largest?\n| city | people |\n|---|---|\n| Rome | 2,800,000 |", TABLE),
    step("Explain a JSON object.", 'Explain {"name": "Ann", "age": 41} and extend it.'),
    step("Sum the column.", "Sum the column kg.", "complicate_input", "year,tonnes\n2020,3", "hive,kg\nA,12\nB,9"),
    step("Sum the column kg.", "Sum the column kg.", "deepen", "", "hive,kg\nA,12\nB,9"),
    step("Optimise a query.", "Optimise SELECT name FROM users WHERE age > 30 ORDER BY name"),
]
KEPT = [
    step(SORT + " Do not use sorted().", SORT),
    step("Sort [12, 5, 99, 41, 7] in Python, largest first.", SORT),
    step(CODE + "\nExplain it to a child.", CODE),
    step(
        "Say which month was wettest, and why.\n| month | rain |\n|---|---|\n| May | 61 |\n| June | 88 |\n| July | 9 |",
        TABLE,
    ),
    step("Which month was wettest, and why?", TABLE, "complicate_input", "month,rain\nMay,61\nJune,88"),
    step("Name four birds of the Alps.", SORT, "breadth"),
    step("Sum the columns.", "Sum the column kg.", "complicate_input", "hive,kg\nA,12\nB,9\nC,4", "hive,kg\nA,12\nB,9"),
    step("Explain how to read a table.", "Explain tables."),
]
OFF_TOPIC = [
    step(text)
    for text in (
        "Calculate the monthly rate of a loan of 9,000 euros over five years.",
        "Name the capital of Mongolia.",
        "Write a cover letter for a junior data analyst.",
        "Translate 'good morning' into Swahili.",
        "Plan a week of vegetarian dinners under 50 dollars.",
        "Prove that the square root of two is irrational.",
        "Summarise the causes of the First World War.",
        "Fix a segmentation fault in C.",
    )
]
ON_TOPIC = [
    step("Describe how bees make honey in winter."),
    step("Explain how honey is made by bees, step by step."),
    step("Describe why bees make honey and what they eat otherwise."),
    step("Compare how bees and wasps make honey or nests."),
    step("Describe how a colony of honey bees makes honey from lime blossom."),
    step("List the tools of a keeper and describe how bees make honey."),
    step("Calculate the rate of a loan.", operation="breadth"),
    step(
        "Describe the hives below.",
        operation="complicate_input",
        child_input="\n".join(f"bees{i},{i}" for i in range(80)),
    ),
]
TOO_LONG = [
    step(LONG),
    step("honey " * 321),
    step("蜜" * 321),
    step("x" * 3001),
    step("word\n" * 400),
    step("ü" * 2000 + " " + "ö" * 1000),
    step("Sum it.", operation="complicate_input", child_input="1,2,3\n" * 600),
    step(BEES + "\n" * 3000),
]
NOT_TOO_LONG = [
    step("honey " * 320),
    step("蜜" * 320),
    step("x" * 3000),
    step(BEES),
    step(BEES + " In winter.", parent_input="long input that is kept " * 500),
    step("a"),
    step("Sum it.", operation="complicate_input", child_input="1,2,3\n" * 100),
    step("😀 " * 300),
]
CASES = {
    "empty": (EMPTIES, NOT_EMPTIES),
    "copy": (COPIES, NOT_COPIES),
    "refusal": (REFUSALS, NOT_REFUSALS),
    "chatter": (CHATTER, NOT_CHATTER),
    "leak": (LEAKS, NOT_LEAKS),
    "too_long": (TOO_LONG, NOT_TOO_LONG),
    "lost_input": (LOST, KEPT),
    "off_topic": (OFF_TOPIC, ON_TOPIC),
}


@pytest.mark.parametrize(("rule", "transition"), [(rule, case) for rule, (bad, _) in CASES.items() for case in bad])
def test_a_rule_rejects_what_it_is_for(rule, transition):
    assert reason(transition, rule) == rule


@pytest.mark.parametrize(("rule", "transition"), [(rule, case) for rule, (_, good) in CASES.items() for case in good])
def test_a_rule_keeps_what_only_resembles(rule, transition):
    assert reason(transition, rule) is None


def test_every_rule_but_the_reviewers_is_on_by_default_and_has_cases():
    assert set(DEFAULT_RULES) == set(RULES) - {"no_gain"} == set(CASES)
    assert all(len(bad) >= 8 and len(good) >= 8 for bad, good in CASES.values())


def test_no_rules_reject_nothing():
    rules = EliminationRules(())
    assert asyncio.run(rules.check(step(BEES))) is None


def test_rules_run_in_their_stated_order_whatever_order_they_are_named_in():
    rules = EliminationRules(("off_topic", "copy", "empty"), encoder=ENCODER)
    assert rules.names == ("empty", "copy", "off_topic")
    refused_twice = step("Sure! " + "honey " * 400)
    assert reason(refused_twice) == "chatter"


async def test_details_are_for_people():
    rules = EliminationRules(encoder=ENCODER)
    assert await rules.check(step("honey " * 330)) == Elimination("too_long", "330 words, the cap is 320")
    assert await rules.check(step(LOST[3].child.text, TABLE)) == Elimination("lost_input", "the parent's table is gone")
    assert await rules.check(LEAKS[1]) == Elimination("leak", "holds template words: 2048 words")
    off = await EliminationRules(["off_topic"], encoder=ENCODER, off_topic_distance=0.0).check(GOOD[0])
    assert off.detail.startswith("distance to the parent 0.")
    assert off.detail.endswith(", the cap is 0.00")


async def test_a_reply_that_was_cut_is_eliminated_whatever_rules_are_on():
    assert cut("stop") is None
    assert cut("length") == Elimination("cut", "the reply ran into the token limit")
    assert (await EliminationRules(()).check(GOOD[0], finish_reason="length")).reason == CUT


async def test_a_reply_without_an_instruction_is_empty():
    nothing = Transition(Instruction(BEES), Instruction(BEES), "deepen", None, 0, 4)
    assert await EliminationRules(()).check(nothing) == Elimination("empty", "the reply holds no instruction")


def test_caps_and_markers_can_be_set():
    assert asyncio.run(EliminationRules(["too_long"], max_words=5).check(GOOD[0])).reason == "too_long"
    assert asyncio.run(EliminationRules(["too_long"], max_characters=20).check(GOOD[0])).reason == "too_long"
    assert asyncio.run(EliminationRules(["leak"], extra_markers=["two sources"]).check(GOOD[0])).reason == "leak"


def test_operations_that_change_the_topic_are_known_from_the_action_set_or_a_function():
    elsewhere = step("Name the capital of Mongolia.", operation="leave")
    action_set = BUILTIN_ACTION_SETS["core"]
    own = type(action_set)("own", (Rewrite("leave", "Leave.", changes_topic=True), Rewrite("stay", "Stay.")))
    for changes in (own, ("leave",), lambda name: name == "leave"):
        rules = EliminationRules(["off_topic"], encoder=ENCODER, changes_topic=changes)
        assert asyncio.run(rules.check(elsewhere)) is None
    assert reason(elsewhere, "off_topic") == "off_topic"


class Reviewer:
    name = "scripted"

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []

    async def complete(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return Completion(reply, usage=Usage(10, 1))

    async def aclose(self):
        pass


@pytest.mark.parametrize(
    ("replies", "expected", "calls"),
    [
        (["Equal"], "no_gain", 1),
        (["They match.\n**equal.**"], "no_gain", 1),
        (["Hmm", "Equal"], "no_gain", 2),
        (["Not Equal"], None, 1),
        (["Equal\nNot Equal"], None, 1),
        (["Hmm"], None, 3),
        (["Equally good"], None, 3),
    ],
)
async def test_no_gain_asks_the_reviewer_and_counts_its_calls(replies, expected, calls):
    backend = Reviewer(*replies)
    found = await EliminationRules(["no_gain"], reviewer=LLM(backend, "reviewer", "m")).inspect(GOOD[0])
    assert (found.elimination.reason if found.elimination else None) == expected
    assert (found.calls, found.usage) == (calls, Usage(10 * calls, calls))
    assert len(backend.requests) == calls


async def test_no_gain_and_the_reviewer_reward_ask_the_very_same_request():
    backend = Reviewer("Not Equal")
    llm = LLM(backend, "reviewer", "m")
    await EliminationRules(["no_gain"], reviewer=llm).check(GOOD[0])
    await ReviewerEquality(llm, "forward").score(GOOD[0])
    assert backend.requests[0] == backend.requests[1]


async def test_the_reviewer_is_asked_only_about_what_the_cheap_rules_let_through():
    backend = Reviewer("Equal")
    rules = EliminationRules((*DEFAULT_RULES, "no_gain"), encoder=ENCODER, reviewer=LLM(backend, "reviewer", "m"))
    assert (await rules.check(COPIES[0])).reason == "copy"
    assert (await rules.check(OFF_TOPIC[0])).reason == "off_topic"
    assert backend.requests == []


async def test_a_failed_reviewer_call_is_an_error_and_no_verdict():
    rules = EliminationRules(["no_gain"], reviewer=LLM(Reviewer(CallTimeout("no answer")), "reviewer", "m"))
    with pytest.raises(CallTimeout, match=r"^no answer$"):
        await rules.check(GOOD[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["copies"],
            r"^unknown elimination rule 'copies'; did you mean 'copy'\? Known: empty, copy, refusal, chatter, ",
        ),
        (["off_topic"], r"^elimination rule 'off_topic' needs an encoder, got None; pass one or leave the rule out\.$"),
        (["no_gain"], r"^elimination rule 'no_gain' needs a reviewer, got None; pass one or leave the rule out\.$"),
    ],
)
def test_bad_rules_are_refused_with_words(names, message):
    with pytest.raises(ConfigError, match=message):
        EliminationRules(names)
