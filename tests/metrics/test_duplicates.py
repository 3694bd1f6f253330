"""Near-duplicates: what is found, and what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.metrics.duplicates import deduplicate, exact_pairs, keep_best
from instructgym.metrics.minhash import _shingles, _signatures, jaccard, minhash_pairs, shingles
from instructgym.metrics.near_vectors import NearVectors, embedding_pairs
from instructgym.metrics.text import normalise

LONG = "describe in detail how a heat pump warms an old stone house in winter when it freezes outside at night"


def test_equal_but_for_case_spacing_and_punctuation():
    assert list(exact_pairs(["Name a river.", "name  a river", "Name a lake.", "NAME A RIVER!"])) == [(0, 1), (0, 3)]


def test_minhash_finds_what_a_full_comparison_finds():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{number}" for number in range(400)]
    texts = []
    for _ in range(150):
        tokens = rng.choice(vocabulary, 25).tolist()
        texts.append(" ".join(tokens))
        for changes in (1, 2, 6):
            changed = list(tokens)
            for place in rng.integers(25, size=changes):
                changed[place] = str(rng.choice(vocabulary))
            texts.append(" ".join(changed))
    sets = [shingles(text) for text in texts]
    true = {(i, j) for i in range(600) for j in range(i + 1, 600) if jaccard(sets[i], sets[j]) >= 0.7}
    found = set(minhash_pairs(texts))
    assert found <= true
    assert len(found) >= 0.97 * len(true) > 100


def test_short_texts_are_compared_by_their_words():
    assert list(minhash_pairs(["stop now", "stop now", "go on"])) == [(0, 1)]
    assert list(minhash_pairs(["", ""])) == []
    with pytest.raises(ValueError, match=r"^minhash got threshold = 0; expected above 0 and at most 1\.$"):
        list(minhash_pairs([], 0))


def test_embedding_pairs_are_all_pairs_over_the_threshold():
    rows = np.random.default_rng(1).normal(size=(2500, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    close = rows @ rows.T >= 0.9995
    expected = {(i, j) for i, j in np.argwhere(close).tolist() if i < j}
    found = set(embedding_pairs(rows.astype(np.float32), 0.9995))
    assert abs(len(found) - len(expected)) <= 2  # at the threshold single precision decides
    assert len(found & expected) > 100


def test_signatures_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(2)
    vocabulary = [f"w{number}" for number in range(1000)]
    base = rng.choice(vocabulary, 60).tolist()
    for share in (0.0, 0.1, 0.3):
        other = [str(rng.choice(vocabulary)) if rng.random() < share else word for word in base]
        texts = [" ".join(base), " ".join(other)]
        one, two = _signatures(*_shingles(texts, 3), 4096, 0)
        assert np.mean(one == two) == pytest.approx(jaccard(shingles(texts[0]), shingles(texts[1])), abs=0.03)


def test_the_signature_of_a_text_of_many_chunks_is_that_of_the_whole():
    rng = np.random.default_rng(5)
    long = " ".join(f"w{number}" for number in rng.integers(100_000, size=3 * 8192 + 77))
    texts = [LONG, long, "", LONG + " again", long + " tail", "one"]
    hashes, ends = _shingles(texts, 3)
    drawn = np.random.default_rng(0)
    a = drawn.integers(1 << 64, size=(16, 1), dtype=np.uint64) | np.uint64(1)
    b = drawn.integers(1 << 64, size=(16, 1), dtype=np.uint64)
    found = _signatures(hashes, ends, 16, 0)
    for text, own in zip(texts, np.split(hashes, ends), strict=False):
        whole = (a * own + b).min(axis=1) >> np.uint64(32) if text else np.full(16, 0xFFFFFFFF)
        np.testing.assert_array_equal(found[texts.index(text)], whole)
    assert list(minhash_pairs(texts)) == [(0, 3), (1, 4)]


def test_a_crowd_of_near_copies_is_paired_with_all_of_it():
    crowd = [f"{LONG} number {number}" for number in range(400)]
    assert len(set(minhash_pairs(crowd))) == 400 * 399 // 2
    assert deduplicate(crowd).kept == (0,)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("a b c d".split()), max_size=6), max_size=8), st.integers(1, 4))
def test_shingles_are_the_distinct_ngrams_of_each_text_and_of_no_two_texts(tokens, n):
    texts = [" ".join(each) for each in tokens]
    grams = [
        {tuple(each[start : start + n]) for start in range(max(len(each) - n + 1, 1))} if each else set()
        for each in tokens
    ]
    alone = [shingles(text, n) for text in texts]
    assert [len(each) for each in alone] == [len(each) for each in grams]
    for i, one in enumerate(grams):
        for j, two in enumerate(grams):
            assert len(alone[i] & alone[j]) == len(one & two)
    hashes, ends = _shingles(texts, n)
    assert [frozenset(part.tolist()) for part in np.split(hashes, ends)][: len(texts)] == alone


@pytest.mark.parametrize("kind", ["clustered", "uniform", "flat"])
def test_ruling_out_by_the_head_of_a_vector_loses_no_pair(kind):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3000, 48))
    if kind == "clustered":
        rows += 2.0 * rng.normal(size=(40, 48))[rng.integers(40, size=3000)]
    if kind == "flat":
        rows[:, 8:] *= 0.1
    rows[1::3] = rows[::3] + 0.15 * rng.normal(size=(1000, 48)) * (1.0 if kind != "flat" else rows.std(axis=0))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    near = NearVectors(rows, 0.95)
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    i, j = near.between(slice(100, 1500), slice(700, 3000))
    found = set(zip((i + 100).tolist(), (j + 700).tolist(), strict=True))
    sure = {(a, b) for a, b in np.argwhere(cosines >= 0.95 + 1e-5).tolist() if 100 <= a < 1500 and b >= 700}
    maybe = {(a, b) for a, b in np.argwhere(cosines >= 0.95 - 1e-5).tolist() if 100 <= a < 1500 and b >= 700}
    assert sure <= found <= maybe
    assert len(sure) > 100


def test_vectors_are_refused_with_words():
    with pytest.raises(ValueError, match=r"^embedding pairs got an array of shape \(3,\); expected \(n, d\)\.$"):
        NearVectors(np.ones(3))
    with pytest.raises(ValueError, match=r"^embedding pairs got vectors with NaN or infinity; expected rows of length"):
        NearVectors(np.array([[math.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"^the qualities hold NaN or infinity; expected finite numbers\.$"):
        deduplicate(["a", "b"], quality=[0.0, math.nan])


def test_without_equal_texts_deduplicate_is_keep_best_of_all_pairs():
    rng = np.random.default_rng(4)
    vocabulary = [f"w{number}" for number in range(500)]
    texts, vectors = [], []
    for group in range(700):
        tokens = rng.choice(vocabulary, 25).tolist()
        vector = rng.normal(size=6)
        for variant in range(int(rng.integers(1, 4))):
            tokens = list(tokens)
            tokens[int(rng.integers(25))] = f"{group}-{variant}"
            vector = vector + 0.4 * rng.normal(size=6)
            texts.append(" ".join(tokens))
            vectors.append(vector / np.linalg.norm(vector))
    order = rng.permutation(len(texts))
    texts, vectors = [texts[place] for place in order], np.array(vectors, np.float32)[order]
    quality = rng.integers(5, size=len(texts)).tolist()
    words = [(i, j, "minhash") for i, j in minhash_pairs(texts)]
    near = [(i, j, "embedding") for i, j in embedding_pairs(vectors, 0.97)]
    assert len(texts) > 1100  # more than two blocks
    assert len(words) > 100
    assert len(near) > 100
    assert deduplicate(texts, quality=quality, vectors=vectors, cosine=0.97) == keep_best(
        len(texts), [*words, *near], quality
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a b c d", "A B C D", "a b c e", "x", "X!", "y z", "", " "]), max_size=12), st.data())
def test_whatever_is_dropped_a_kept_one_as_good_stands_for(texts, data):
    quality = data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts)))
    found = deduplicate(texts, quality=quality, jaccard=0.3)
    assert sorted([*found.kept, *(each.index for each in found.dropped)]) == list(range(len(texts)))
    for each in found.dropped:
        assert each.duplicate_of in found.kept
        assert quality[each.duplicate_of] >= quality[each.index]
    assert len({normalise(texts[index]) for index in found.kept}) == len(found.kept)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 12), st.data())
def test_no_two_kept_are_a_pair_and_every_dropped_one_has_a_kept_duplicate(count, data):
    index = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(index, index).filter(lambda pair: pair[0] != pair[1]), max_size=20))
    quality = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    found = keep_best(count, [(i, j, "x") for i, j in pairs], quality)
    kept, linked = set(found.kept), {frozenset(pair) for pair in pairs}
    assert not any(frozenset((i, j)) in linked for i in kept for j in kept if i != j)
    for dropped in found.dropped:
        assert dropped.duplicate_of in kept
        assert frozenset((dropped.index, dropped.duplicate_of)) in linked
        assert quality[dropped.duplicate_of] >= quality[dropped.index]
    assert sorted([*kept, *(dropped.index for dropped in found.dropped)]) == list(range(count))


def test_a_chain_loses_its_middle_or_its_ends_and_never_all():
    chain = [(0, 1, "x"), (1, 2, "x")]
    assert keep_best(3, chain).kept == (0, 2)
    assert keep_best(3, chain, [0.0, 1.0, 0.0]).kept == (1,)


def test_of_each_group_the_best_is_kept():
    texts = [LONG, LONG.upper() + "!", f"{LONG} please", "Bake bread.", "bake bread"]
    found = deduplicate(texts, quality=[0.0, 2.0, 1.0, 0.0, 0.0])
    assert found.kept == (1, 3)
    assert [(each.index, each.duplicate_of, each.found_by) for each in found.dropped] == [
        (0, 1, "exact"),
        (2, 1, "minhash"),
        (4, 3, "exact"),
    ]


def test_what_equals_a_dropped_text_duplicates_the_kept_one():
    texts = [f"{LONG} now", f"{LONG} NOW!", LONG]
    found = deduplicate(texts, quality=[0.0, 0.0, 1.0])
    assert found.kept == (2,)
    assert {each.duplicate_of for each in found.dropped} == {2}


def test_vectors_find_what_words_do_not():
    texts = ["Name a river.", "Which stream comes to mind?", "Bake bread."]
    vectors = np.array([[1.0, 0.0], [0.99, 0.141], [0.0, 1.0]])
    found = deduplicate(texts, vectors=vectors)
    assert (found.kept, found.dropped[0].found_by) == ((0, 2), "embedding")
    with pytest.raises(ValueError, match=r"^deduplicate got 3 texts and 2 vectors; expected as many\.$"):
        deduplicate(texts, vectors=vectors[:2])
