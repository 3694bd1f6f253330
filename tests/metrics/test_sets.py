"""Metrics of a set: cases by hand, and independent implementations."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.metrics import (
    category_coverage,
    compression_ratio,
    homogenisation,
    max_rouge_l,
    novelsum,
    rouge_l,
    self_bleu,
    vendi_score,
    verb_noun,
    verb_noun_coverage,
)
from instructgym.metrics.text import words


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


RNG = np.random.default_rng(0)


# --- Vendi ------------------------------------------------------------------------------------------------------------
def test_vendi_counts_distinct_rows():
    assert vendi_score(np.tile(unit([[1.0, 2.0, 3.0]]), (7, 1))) == pytest.approx(1.0)
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3.0)
    assert vendi_score(np.empty((0, 3))) is None


def test_vendi_of_two_rows_by_hand():
    cosine = 0.6
    shares = np.array([(1 + cosine) / 2, (1 - cosine) / 2])
    rows = np.array([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
    assert vendi_score(rows) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert vendi_score(rows, q=2) == pytest.approx(1 / (shares**2).sum())
    assert vendi_score(rows, q=math.inf) == pytest.approx(1 / shares.max())


def test_vendi_of_a_high_order_does_not_vanish():
    assert vendi_score(np.eye(10), q=400) == pytest.approx(10.0)  # a tenth to the 400th is no double
    rows = np.array([[1.0, 0.0], [0.6, 0.8]])  # shares 0.8 and 0.2
    assert vendi_score(rows, q=5000) == pytest.approx(0.8 ** (-5000 / 4999))
    assert vendi_score(rows, q=400) == pytest.approx(0.8 ** (-400 / 399))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vendi_refuses_what_is_no_vector(bad):
    with pytest.raises(
        ValueError, match=r"^vendi_score got vectors with NaN or infinity; expected rows of length 1\.$"
    ):
        vendi_score(np.array([[1.0, 0.0], [bad, 1.0]]))


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
def test_the_dual_form_gives_what_the_eigenvalues_of_the_kernel_give(q):
    rows = unit(RNG.normal(size=(60, 8)))
    values = np.linalg.eigvalsh(rows @ rows.T / 60)
    values = values[values > 1e-12]
    values /= values.sum()
    entropy = {1.0: lambda: -(values * np.log(values)).sum(), math.inf: lambda: -np.log(values.max())}
    expected = math.exp(entropy.get(q, lambda: np.log((values**q).sum()) / (1 - q))())
    assert vendi_score(rows, q) == pytest.approx(expected, abs=1e-8)


# --- NovelSum ---------------------------------------------------------------------------------------------------------
def test_novelsum_against_a_plain_loop():
    rows, reference = unit(RNG.normal(size=(12, 5))), unit(RNG.normal(size=(40, 5)))
    crowd = np.concatenate([reference, rows])
    total = 0.0
    for row in rows:
        near = sorted(float(((row - other) ** 2).sum()) for other in crowd)[1:11]
        density = 1 / (sum(near) / 10 + 1e-9) ** 0.5
        distances = sorted(1 - float(row @ other) for other in rows)
        weights = [1 / rank for rank in range(1, 13)]
        total += density * sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
    assert novelsum(rows, crowd) == pytest.approx(total / 12, rel=1e-6)


def test_novelsum_without_the_item_itself_weighs_the_nearest_other_most():
    # Three rows in a plane, 0, 60 and 180 degrees: distances 0.5, 2 and 1.5.
    rows = np.array([[1.0, 0.0], [0.5, 0.75**0.5], [-1.0, 0.0]])
    means = [(0.5 + 2 / 2) / 1.5, (0.5 + 1.5 / 2) / 1.5, (1.5 + 2 / 2) / 1.5]
    assert novelsum(rows, density_power=0, count_self=False) == pytest.approx(sum(means) / 3)
    counted = [(0.5 / 2 + 2 / 3), (0.5 / 2 + 1.5 / 3), (1.5 / 2 + 2 / 3)]
    assert novelsum(rows, density_power=0) == pytest.approx(sum(counted) / 3 / (1 + 1 / 2 + 1 / 3))
    # The nearest squared distance of each: 1, 1 and 3; the density is its inverse.
    dense = [means[0] / 1, means[1] / 1, means[2] / 3]
    found = novelsum(rows, neighbours=1, density_power=1, count_self=False)
    assert found == pytest.approx(sum(dense) / 3)
    with pytest.raises(ValueError, match=r"^novelsum got neighbours = 0; expected 1 or more\.$"):
        novelsum(rows, neighbours=0)


def test_novelsum_is_lower_for_a_set_that_repeats_itself():
    spread, crowd = unit(RNG.normal(size=(30, 16))), unit(RNG.normal(size=(200, 16)))
    assert novelsum(np.repeat(spread[:3], 10, axis=0), crowd) < novelsum(spread, crowd)
    assert novelsum(spread[:1]) is None
    with pytest.raises(
        ValueError, match=r"^novelsum got arrays of shape \(3,\) and \(3,\); expected \(n, d\), \(m, d\)"
    ):
        novelsum(np.ones(3))


# --- ROUGE-L and homogenisation ---------------------------------------------------------------------------------------
def lcs(one, two):
    table = np.zeros((len(one) + 1, len(two) + 1), int)
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


TEXT = st.lists(st.sampled_from("a b c d e".split()), max_size=12).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT)
def test_rouge_l_is_what_the_table_gives(one, two):
    first, second = words(one), words(two)
    expected = 1.0 if not first and not second else 2 * lcs(first, second) / (len(first) + len(second))
    assert rouge_l(one, two) == pytest.approx(expected)
    assert rouge_l(two, one) == rouge_l(one, two)


@settings(max_examples=100, deadline=None)
@given(TEXT, st.lists(TEXT, max_size=5))
def test_the_largest_rouge_l_of_a_pool(text, pool):
    expected = max((rouge_l(text, other) for other in pool if words(text) or words(other)), default=0.0)
    assert max_rouge_l(text, [words(other) for other in pool]) == pytest.approx(expected)


def test_homogenisation_is_the_mean_over_pairs():
    texts = ["name three rivers of asia", "name four rivers of europe", "bake bread", "name three rivers"]
    pairs = [rouge_l(a, b) for a, b in combinations(texts, 2)]
    assert homogenisation(texts) == pytest.approx(sum(pairs) / len(pairs))
    many = texts * 60
    assert homogenisation(many, pairs=5000) == pytest.approx(homogenisation(many, pairs=10**6), abs=0.02)
    assert homogenisation(["one"]) is None
    with pytest.raises(ValueError, match=r"^homogenisation got pairs = 0; expected 1 or more\.$"):
        homogenisation(texts, pairs=0)


# --- self-BLEU --------------------------------------------------------------------------------------------------------
def bleu(hypothesis, references):
    logs = 0.0
    for n in range(1, 5):
        grams = lambda tokens, n=n: Counter(zip(*(tokens[i:] for i in range(n)), strict=False))  # noqa: E731
        own = grams(hypothesis)
        most = Counter()
        for reference in references:
            most |= grams(reference)
        hits = sum((own & most).values())
        logs += math.log((hits or 0.1) / max(sum(own.values()), 1)) / 4
    nearest = min((abs(len(each) - len(hypothesis)), len(each)) for each in references)[1]
    return math.exp(logs) * (1.0 if len(hypothesis) > nearest else math.exp(1 - nearest / len(hypothesis)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("a b c d".split()), min_size=1, max_size=9), min_size=2, max_size=6))
def test_self_bleu_is_the_mean_of_bleu_against_the_others(tokens):
    expected = np.mean([bleu(each, tokens[:i] + tokens[i + 1 :]) for i, each in enumerate(tokens)])
    assert self_bleu([" ".join(each) for each in tokens]) == pytest.approx(expected)


def test_self_bleu_of_equal_texts_is_one():
    assert self_bleu(["name three long rivers of asia"] * 4) == pytest.approx(1.0)
    assert self_bleu(["one text"]) is None
    with pytest.raises(ValueError, match=r"^self_bleu got max_n = 0; expected 1 or more\.$"):
        self_bleu(["one text", "another text"], max_n=0)
    with pytest.raises(ValueError, match=r"^self_bleu got sample = 0; expected 1 or more\.$"):
        self_bleu(["one text", "another text"], sample=0)


# --- compression, coverage --------------------------------------------------------------------------------------------
def test_repetition_compresses():
    varied = [f"{word} {number}" for number, word in enumerate("river stone cloud ember violin harbour".split())]
    assert compression_ratio(["the same line again"] * 50) > 5 > compression_ratio(varied)
    assert compression_ratio([]) is None
    assert 0 < compression_ratio(["short"]) < 1


def test_coverage_counts_and_evens():
    found = category_coverage(["law", "law", "code", "code", None])
    assert (found.distinct, found.counted, found.uncounted) == (2, 4, 1)
    assert (found.effective, found.evenness) == (pytest.approx(2.0), pytest.approx(1.0))
    skewed = category_coverage(["law"] * 3 + ["code"])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert skewed.evenness == pytest.approx(entropy / math.log(2))
    assert skewed.most_common[0] == ("law", 3)
    assert category_coverage([]).effective is None
    known = ["law", "code", "art", "sport"]
    assert category_coverage(["law", "law", None, "code", "other"], known=known).share == 0.5
    assert category_coverage(["law"]).share is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a short story about a lighthouse keeper.", ("write", "story")),
        ("Please summarize the following article in two sentences.", ("summarize", "article")),
        ("Could you explain photosynthesis to me?", ("explain", "photosynthesis")),
        ("I have a list of names. Sort the names by length.", ("sort", "names")),
        ("What is the capital of Peru?", None),
        ("", None),
    ],
)
def test_verb_and_noun_of_an_instruction(text, expected):
    assert verb_noun(text) == expected


def test_verb_noun_coverage_counts_pairs():
    found = verb_noun_coverage(["Write a poem.", "Write a good poem.", "Sort the list.", "Why?"])
    assert (found.distinct, found.counted, found.uncounted) == (2, 3, 1)
