import numpy as np
import pytest

from instructgym.metrics import (
    count_words,
    coverage,
    distinct_2,
    distinct_n,
    has_only_stop_words,
    mean_pairwise_distance,
    normalise,
    structured_blocks,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("  \n\t ", 0),
        ("Write a haiku.", 3),
        ("state-of-the-art  design\nnow", 3),
        ("写一首关于春天的诗。", 9),
        ("用 Python 写代码", 5),
        ("日本語で書いてください", 11),
        ("한국어로 짧은 시를 써 주세요", 5),
        ("اكتب قصيدة قصيرة", 3),
        ("Explain 😀 please", 3),
    ],
)
def test_words_are_counted_by_spaces_and_each_cjk_character_is_one(text, expected):
    assert count_words(text) == expected


def test_words_are_lower_case_without_punctuation():
    assert words("Don't use C-3PO's “data”, 3 times!") == ["don't", "use", "c", "3po's", "data", "3", "times"]
    assert words("Don’t") == ["don't"]
    assert words("写 code") == ["写", "code"]


@pytest.mark.parametrize("text", ["", "  ", "...", "The of and", "What is it?", "\u200b", "— “” —", "Is it"])
def test_texts_without_content(text):
    assert has_only_stop_words(text)


@pytest.mark.parametrize("text", ["No.", "Yes", "42", "x", "C++", "😀", "写", "What is DNA?", "the = sign", "Why not?"])
def test_texts_with_content(text):
    assert not has_only_stop_words(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Write a haiku.", "write  a\nHAIKU"),
        ("Explain step-by-step.", '"Explain step by step!"'),
        ("Don't stop", "Don’t stop"),
        ("**Name** `three` rivers", "Name three rivers"),
        ("# Name three rivers", "Name three rivers."),
        ("ｆｕｌｌ width", "full width"),
        ("zero\u200bwidth", "zerowidth"),
        ("(a) list; of: things", "a list of things"),
        ("Straße", "STRASSE"),
        ("写一首诗。", "写一首诗"),
    ],
)
def test_normalise_folds_case_spacing_and_punctuation(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 2?", "What is 2 - 2?"),
        ("What is 2 * 3?", "What is 2 / 3?"),
        ("Write it in C", "Write it in C#"),
        ("Write it in C", "Write it in C++"),
        ("Take 20% off", "Take 20 off"),
        ("Say 😀", "Say 😢"),
        ("Add 3.5", "Add 35"),
        ("Is x < y?", "Is x > y?"),
        ("resume", "résumé"),
        ("कि", "की"),
    ],
)
def test_normalise_keeps_what_changes_the_meaning(one, other):
    assert normalise(one) != normalise(other)


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b", "b a"], 2) == 2 / 4  # ab ba ab | ba
    assert distinct_2(["x", "y"]) is None
    assert distinct_n(["x", "x"], 1) == 0.5
    with pytest.raises(ValueError, match=r"^distinct_n got n = 0; expected 1 or more\.$"):
        distinct_n(["x"], 0)


def test_mean_pairwise_distance_equals_the_loop_over_pairs():
    rows = np.random.default_rng(0).normal(size=(40, 7))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [1 - rows[i] @ rows[j] for i in range(40) for j in range(i)]
    assert mean_pairwise_distance(rows.astype(np.float32)) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert mean_pairwise_distance(np.ones((1, 3))) is None
    with pytest.raises(ValueError, match=r"^mean_pairwise_distance got an array of shape \(3,\); expected \(n, d\)\.$"):
        mean_pairwise_distance(np.ones(3))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Sort 3, 5, 4, 1, 6.", ["numbers"]),
        ("The mean of 12.5; 13; -4; and 9?", ["numbers"]),
        ("The mean of 12.5, 13, -4 and 9?", ["numbers"]),
        ("Fix it:\n```python\nprint(x\n```\nThen explain.", ["code"]),
        ("What does this do?\nfor i in range(3):\n    print(i)", ["code"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |\nSum column a.", ["table"]),
        ("Which is dearest?\nitem,price\nplum,3.10\npear,2.80", ["table"]),
        ("名\t価\n梅\t3\n梨\t2", ["table"]),
        ('Read {"a": 1, "b": [2]} and sum.', ["json"]),
        ("Explain <ul><li>x</li></ul>.", ["xml"]),
        ("Optimise SELECT name FROM users WHERE age > 3", ["code"]),
        ("Write a haiku about the sea.", []),
        ("On 3 May 2024 at 10:30 he paid $5.", []),
        ("First, buy milk, bread and eggs.\nThen, go home, cook and eat.\nLast, wash up, sit and rest.", []),
        ("Compare 3 and 4.", []),
        ("Is 1 < 2 and 4 > 3 true?", []),
    ],
)
def test_structured_blocks_are_found(text, kinds):
    assert [block.kind for block in structured_blocks(text)] == kinds


def test_coverage_counts_repeats_and_ignores_function_words():
    assert coverage("the 3 3 4", "3 and 4") == pytest.approx(2 / 3)
    assert coverage("the of", "anything") == 1.0
    assert coverage("plum,3.10", "Plum costs 3.10") == 1.0
