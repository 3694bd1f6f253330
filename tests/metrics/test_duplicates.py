"""Near-duplicates: what is found, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.metrics.duplicates import deduplicate, embedding_pairs, exact_pairs, keep_best
from instructgym.metrics.minhash import jaccard, minhash_pairs, shingles

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
    with pytest.raises(ValueError, match=r"^minhash_pairs got threshold = 0; expected above 0 and at most 1\.$"):
        list(minhash_pairs([], 0))


def test_embedding_pairs_are_all_pairs_over_the_threshold():
    rows = np.random.default_rng(1).normal(size=(2500, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    close = rows @ rows.T >= 0.9995
    expected = {(i, j) for i, j in np.argwhere(close).tolist() if i < j}
    found = set(embedding_pairs(rows.astype(np.float32), 0.9995))
    assert abs(len(found) - len(expected)) <= 2  # at the threshold single precision decides
    assert len(found & expected) > 100


@settings(max_examples=200, deadline=None)
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
