"""Verdicts in words and their probabilities: what is read, and what is not."""

import math

import pytest

from instructgym.rewards.judging.verdicts import find_verdict, read_verdict
from instructgym.types import Completion
from tests.rewards.judges import tokens

ANSWERABLE = ("Answerable", "Not Answerable")
SIDES = ("A", "B", "Tie")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Answerable", "Answerable"),
        ("answerable.", "Answerable"),
        ("**Not Answerable**", "Not Answerable"),
        ("**Not answerable.**", "Not Answerable"),
        ("NOT  ANSWERABLE", "Not Answerable"),
        ("The table is missing.\n\nNot Answerable\n", "Not Answerable"),
        ("Answerable\nNo, wait:\nNot Answerable", "Not Answerable"),
        ("reasons\r\nAnswerable\r\n", "Answerable"),
        ("\ufeffAnswerable\u200b", "Answerable"),
        ("\u3000Answerable", "Answerable"),
    ],
)
def test_the_last_line_that_is_a_verdict_alone_counts(reply, verdict):
    found = find_verdict(reply, ANSWERABLE)
    assert found is not None
    assert found[0] == verdict
    assert reply[found[1]] in "AaNn"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "It is Answerable",
        "Answerable, I think",
        "NotAnswerable",
        "Unanswerable",
        "Answerable / Not Answerable",
        "Not\nAnswer able",
        "\u0391nswerable",
        "An\u017fwerable",
        "Answerable?",
        "<verdict>Answerable</verdict>",
        "Verdict: Answerable",
        "Ans\u200bwerable",
        "可以回答",
    ],
)
def test_everything_else_is_no_verdict(reply):
    assert find_verdict(reply, ANSWERABLE) is None
    assert read_verdict(Completion(reply), ANSWERABLE) is None


@pytest.mark.parametrize("reply", ["Both A", "A or B", "AB", "Answer A", "A\u200bB", "[[A]]", "1"])
def test_letters_inside_other_words_are_no_verdict(reply):
    assert find_verdict(reply, SIDES) is None


def test_a_written_verdict_has_the_whole_share():
    ruling = read_verdict(Completion("Tie"), SIDES, logprobs=True)
    assert (ruling.shares, ruling.from_logprobs) == ({"A": 0.0, "B": 0.0, "Tie": 1.0}, False)


def test_probabilities_are_those_at_the_verdicts_place_normalised():
    reply = tokens("The ", "table", " is", " gone", ".\n", {"Not": 0.6, "Answer": 0.2, "Maybe": 0.2}, " Answer", "able")
    ruling = read_verdict(reply, ANSWERABLE, logprobs=True)
    assert ruling.shares == pytest.approx({"Answerable": 0.25, "Not Answerable": 0.75})
    assert ruling.from_logprobs
    assert read_verdict(reply, ANSWERABLE).shares == {"Answerable": 0.0, "Not Answerable": 1.0}


def test_tokens_are_read_past_spacing_case_and_marks_and_add_up():
    reply = tokens({"\nA": 0.4, "A": 0.1, " **a": 0.1, " Tie": 0.2, "B.": 0.2})
    assert read_verdict(reply, SIDES, logprobs=True).shares == pytest.approx({"A": 0.6, "B": 0.2, "Tie": 0.2})


def test_tokens_that_do_not_make_up_the_reply_are_not_used():
    reply = tokens({"Tie": 0.6, "A": 0.4})
    other = Completion("B", logprobs=reply.logprobs)
    assert read_verdict(other, SIDES, logprobs=True).shares == {"A": 0.0, "B": 1.0, "Tie": 0.0}


def test_a_verdict_whose_token_says_nothing_of_it_counts_as_written():
    token = tokens({"A": 0.9}).logprobs[0]
    glued = Completion("A", logprobs=(type(token)("A", math.log(0.9), (("B", math.log(0.1)),)),))
    assert read_verdict(glued, SIDES, logprobs=True).shares == pytest.approx({"A": 0.9, "B": 0.1, "Tie": 0.0})
    line = tokens({"A\n\n": 0.7, "B\n\n": 0.3})
    assert read_verdict(line, SIDES, logprobs=True).shares == pytest.approx({"A": 0.7, "B": 0.3, "Tie": 0.0})
