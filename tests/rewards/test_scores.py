"""Scores on a scale: what is read, what is not, and where their probabilities stand."""

import math

import pytest

from instructgym.llm_backends.prompting import fence
from instructgym.rewards.judging.rating import Rating, read_rating
from instructgym.rewards.judging.scores import expected_score, find_score, parse_score, score_expectation, token_at
from instructgym.types import Completion, TokenLogprob
from tests.rewards.judges import tokens


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 4", 4),
        ("score: 4", 4),
        ("SCORE = 4", 4),
        ("Score:4", 4),
        ("  Score :  4  ", 4),
        ("Score: 4.", 4),
        ("Score: 4.5", 4.5),
        ("Score: 0", 0),
        ("Score: 004", 4),
        ("Score: 4/5", 4),
        ("Score: 4 / 5.", 4),
        ("Score: 4.5/5", 4.5),
        ("Score: 4/5.0", 4),
        ("**Score: 4**", 4),
        ("**Score:** 4", 4),
        ("**Score**: 4", 4),
        ("**Score: 4.**", 4),
        ("**Score: 4**.", 4),
        ("Score: **4**", 4),
        ("Score: **4/5**", 4),
        ("__Score: 4__", 4),
        ("*Score: 4*", 4),
        ("## Score: 4", 4),
        ("### **Score: 4/5**", 4),
        ("4", 4),
        (" **4** \n", 4),
        ("4/5", 4),
        ("4.\n", 4),
        ("Reasons first.\n\nScore: 4", 4),
        ("Score: 1\nNo, wait:\nScore: 4", 4),
        ("Score: 4\n\nThat is all.", 4),
        ("reasons\r\nScore: 4\r\n", 4),
        ("reasons\rScore: 4\r", 4),
        ("\ufeffScore: 4\u200b", 4),
        ("\u2060Score\u200b:\u200d4", 4),
        ("Score:\u00a04", 4),
        ("```\nScore: 4\n```", 4),
        (fence("answer", "Score: 1") + "\nScore: 4", 4),
        ("Score: 4\nBut they told me to write: Score: 5", 4),
    ],
)
def test_the_last_line_that_is_a_score_alone_counts(reply, score):
    assert parse_score(reply, low=0, high=5) == score
    found = find_score(reply, high=5)
    assert found is not None
    assert reply[found[1]].isdigit()


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "four",
        "Score: four",
        "Score:",
        "Score 4",
        "Score: 4 points",
        "Score: 4, I think",
        "The score: 4",
        "Final Score: 4",
        "- Score: 4",
        "> Score: 4",
        "1. Score: 4",
        "`Score: 4`",
        '"Score: 4"',
        "(Score: 4)",
        "Score: (4)",
        "Score: [4]",
        "Score: <4>",
        "<score>4</score>",
        "Scores: 4",
        "Score: 4-5",
        "Score: 4 or 5",
        "Score: 4..",
        "Score: 4,5",
        "Score: .5",
        "Score: 1e0",
        "Score: +4",
        "Score: ４",  # full-width
        "Score: ٤",  # Arabic-Indic
        "Score: ४",  # Devanagari
        "Score: ⁴",
        "Score: ④",
        "\u017fcore: 4",  # a long s, which is an s without its case
        "S\u0441ore: 4",  # a Cyrillic letter
        "S\u200bcore: 4",
        "Score: 1\u200b0",
        "Score: 4\u200b5",
        "Score：4",
        "评分：4",
        "Reasons.\n4",
        "4\n5",
        "４",
        "\u202eScore: 4",
        "Score: 4\u2028Score: 5",
    ],
)
def test_everything_else_is_unparsable(reply):
    assert parse_score(reply, low=0, high=5) is None


@pytest.mark.parametrize(
    "reply",
    ["Score: 6", "Score: -1", "Score: 55", "Score: 5.01", "Score: 4/10", "Score: 4/6", "6", "-1", "4/10", "9" * 500],
)
def test_a_score_out_of_range_or_of_another_scale_is_unparsable_whatever_stood_before(reply):
    assert parse_score(reply, low=0, high=5) is None
    if not reply[-1:].isspace() and reply.startswith("Score"):
        assert parse_score(f"Score: 3\n{reply}", low=0, high=5) is None
        assert parse_score(f"{reply}\nScore: 3", low=0, high=5) == 3


def test_the_ends_of_the_range_belong_to_it():
    assert [parse_score(f"Score: {k}", low=1, high=6) for k in range(8)] == [None, 1, 2, 3, 4, 5, 6, None]
    assert parse_score("Score: 10/10", low=1, high=10) == 10


def test_another_label_is_another_question():
    assert parse_score("Gain: 3", low=0, high=5, label="Gain") == 3
    assert parse_score("Score: 3", low=0, high=5, label="Gain") is None
    assert parse_score("A.B: 3", low=0, high=5, label="A.B") == 3
    assert parse_score("AxB: 3", low=0, high=5, label="A.B") is None


@pytest.mark.parametrize("filling", [" ", "*", "_", "\u200b", "#", "4", "Score: 4 ", "\t*", "Score:", "4/"])
def test_a_reply_that_never_ends_is_read_in_time(filling):
    reply = filling * (200_000 // len(filling))
    assert parse_score(f"{reply}x", low=0, high=5) is None
    assert parse_score(f"{reply}x\nScore: 2", low=0, high=5) == 2


# --- tokens -----------------------------------------------------------------------------------------------------------
SCORED = {"4": 0.5, "3": 0.25, "5": 0.25}


@pytest.mark.parametrize(
    "reply",
    [
        tokens(SCORED),
        tokens("Score", ":", " ", SCORED),
        tokens("Score", ":", {" 4": 0.5, " 3": 0.25, " 5": 0.25}),
        tokens("Score", {": 4": 0.5, ": 3": 0.25, ": 5": 0.25}),
        tokens("Score", ":", " ", {"4\n": 0.5, "3\n": 0.25, "5\n": 0.25}),
        tokens("Score: ", {"4": 0.4, "4\n": 0.1, "3": 0.2, " 3": 0.05, "5": 0.25}),
        tokens("Score: ", {"4": 0.25, "3": 0.125, "5": 0.125, "9": 0.25, "four": 0.125, "\uff14": 0.125}),
        tokens("**", "Score", ":**", {" 4": 0.5, " 3": 0.25, " 5": 0.25}),
        tokens("Score: **", {"4**": 0.5, "3**": 0.25, "5**": 0.25}),
        tokens("Score: ", SCORED, "/5"),
        tokens("Score: ", SCORED, "."),
        tokens("Score", ": 1", "\n", "Rather", " more.", "\nScore: ", SCORED, "\n"),
        tokens("It holds 4 things.", " 5 even", ".\r\n", "Score: ", SCORED),
    ],
)
def test_the_expectation_is_over_the_tokens_at_the_scores_place(reply):
    assert score_expectation(reply, low=0, high=5) == pytest.approx(4.0)
    assert expected_score(reply, low=0, high=5) == pytest.approx(4.0)
    assert read_rating(reply, low=0, high=5, logprobs=True) == Rating(pytest.approx(4.0), from_logprobs=True)
    assert read_rating(reply, low=0, high=5) == Rating(4.0)


def test_the_expectation_is_not_the_written_score():
    reply = tokens("Some reasons.\nScore: ", {"1": 0.6, "2": 0.3, "6": 0.1, "7": 0.4})
    assert expected_score(reply, low=1, high=6) == pytest.approx((0.6 + 0.6 + 0.6) / 1.0)


def test_an_expectation_of_zero_is_a_value():
    assert expected_score(tokens("Score: ", {"0": 0.9, "x": 0.1}), low=0, high=5) == 0.0
    assert read_rating(tokens("Score: ", {"0": 1.0}), low=0, high=5, logprobs=True) == Rating(0.0, from_logprobs=True)


@pytest.mark.parametrize(
    ("reply", "written"),
    [
        (Completion("Score: 4"), 4.0),
        (Completion("Score: 4", logprobs=tokens("Other", " text", {"4": 0.5, "2": 0.5}).logprobs), 4.0),
        (tokens("Score: ", {"4": 0.5, "1": 0.5}, ".5"), 4.5),  # "4" is not the score
        (tokens("Score: ", {"1": 0.5, "5": 0.5}, "0"), 10.0),  # nor is "1" of 10
        (tokens("Score: ", {"3": 0.5, "1": 0.5}), 3.0),  # where "1" may be the beginning of 10
        (tokens({"Score: 4": 0.5, "Score: 2": 0.5}), 4.0),
        (tokens("Score: ", {"4/5": 0.5, "2": 0.5}), 4.0),
    ],
)
def test_where_the_tokens_do_not_say_the_scores_probabilities_the_written_score_counts(reply, written):
    high = 5 if "/" in reply.text else 10
    assert score_expectation(reply, low=0, high=high) is None
    assert expected_score(reply, low=0, high=high) == written
    assert read_rating(reply, low=0, high=high, logprobs=True) == Rating(written)


def test_scores_of_two_digits_are_expected_where_they_are_tokens():
    reply = tokens("Score: ", {"10": 0.5, "1": 0.25, "9": 0.25}, "/10")
    assert expected_score(reply, low=1, high=10) == pytest.approx(5.0 + 0.25 + 2.25)


def test_a_reply_without_a_score_in_range_has_no_expectation():
    assert expected_score(tokens("Score: ", {"9": 0.5, "4": 0.5}), low=0, high=5) is None
    assert expected_score(tokens({"4": 0.5, "3": 0.5}, " of them"), low=0, high=5) is None


def test_nonsense_among_the_log_probabilities_is_no_mass():
    top = (("4", math.log(0.5)), ("3", math.nan), ("2", -math.inf), ("5", -9999.0))
    assert expected_score(Completion("4", logprobs=(TokenLogprob("4", math.log(0.5), top),)), low=0, high=5) == 4.0
    high = Completion("4", logprobs=(TokenLogprob("4", 1e-7, (("4", 800.0),)),))
    assert expected_score(high, low=0, high=5) == 4.0
    assert expected_score(Completion("4", logprobs=(TokenLogprob("4", math.nan),)), low=0, high=5) == 4.0


@pytest.mark.parametrize(
    ("pieces", "text", "start", "expected"),
    [
        (["Sco", "re", ": ", "4"], None, 7, "4"),
        (["Sco", "re", ": 4"], None, 7, ": 4"),
        (["Score", "", ": ", "4"], None, 7, "4"),
        ([" Score", ":", " 4"], "Score: 4", 7, " 4"),  # the endpoint strips its text
        (["Score", ":", " ", "4\n"], "Score: 4", 7, "4\n"),
        (["\n\n", "4", "\n"], "4", 0, "4"),
        (["Score: ", "4", "<|im_end|>"], "Score: 4", 7, "4"),  # the end mark is a token, but not text
        (["\ufffd", "\ufffd", "好\nScore: ", "4"], "你好\nScore: 4", 10, "4"),  # half characters before it
        (["<think>", "well", "</think>", "Score: ", "4"], "Score: 4", 7, "4"),  # reasoning that is not in the text
        (["4", "\ufffd", "\ufffd"], "4\nü", 0, "4"),
    ],
)
def test_the_token_at_a_place_is_found_where_text_and_tokens_meet(pieces, text, start, expected):
    reply = tokens(*pieces)
    found = token_at(Completion(text or reply.text, logprobs=reply.logprobs), start)
    assert found is not None
    assert found.token == expected


@pytest.mark.parametrize(
    ("pieces", "text", "start"),
    [
        ([], "Score: 4", 7),
        (["Score: ", "5"], "Score: 4", 7),
        (["Rating: ", "4", "!"], "Score: 4", 7),
        (["\ufffd", "\nScore: ", "4", "<|im_end|>"], "ü\nScore: 4", 9),
        (["Score"], "Score: 4", 7),
        (["4"], "Score: 4", 7),
        (["Other", " text", "4"], "Score: 4", 7),  # one character is no line
        (["4"], "4", 1),
        (["4"], "4", -1),
        (["4"], "", 0),
        (["", ""], "4", 0),
    ],
)
def test_a_token_whose_place_is_not_known_is_none(pieces, text, start):
    assert token_at(Completion(text, logprobs=tokens(*pieces).logprobs), start) is None
