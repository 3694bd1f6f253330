"""Which seeds are held out: the same ones everywhere, of each topic a fair share."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import ConfigError, SeedError
from instructgym.train.seed_files import read_seeds
from instructgym.train.seed_split import split_seeds
from instructgym.types import Instruction, Seed


def seeds(*topics: str) -> tuple[Seed, ...]:
    return tuple(Seed(f"s{number}", Instruction(f"Text {number}."), topic) for number, topic in enumerate(topics))


def test_default_set_splits_evenly_over_its_topics() -> None:
    every = read_seeds("default").seeds
    train, held = split_seeds(every, 0.25, 0)
    assert (len(train), len(held)) == (162, 54)
    assert set(collections.Counter(seed.topic for seed in held).values()) == {4, 5}
    assert sorted((*train, *held), key=every.index) == list(every)


def test_split_is_the_same_for_the_same_seed_and_other_for_another() -> None:
    every = read_seeds("default").seeds
    assert split_seeds(every, 0.2, 3) == split_seeds(every, 0.2, 3)
    assert split_seeds(every, 0.2, 3) != split_seeds(every, 0.2, 4)


def test_split_is_pinned_across_platforms_and_library_versions() -> None:
    _, held = split_seeds(seeds(*["a"] * 10), 0.3, 7)
    assert [seed.id for seed in held] == ["s1", "s2", "s6"]


def test_split_does_not_depend_on_the_order_of_the_file() -> None:
    every = seeds(*"aabbbbccccc")
    _, held = split_seeds(every, 0.4, 1)
    _, backwards = split_seeds(every[::-1], 0.4, 1)
    assert held == backwards[::-1]


_topics = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=0, max_size=40)


@settings(deadline=None)
@given(_topics, st.floats(0, 1, exclude_max=True), st.integers(0, 5))
def test_split_parts_the_seeds_and_leaves_no_side_empty(topics: list[str], holdout: float, rng_seed: int) -> None:
    every = seeds(*topics)
    train, held = split_seeds(every, holdout, rng_seed)
    assert sorted((*train, *held), key=every.index) == list(every)
    expected = 0 if holdout == 0 or len(every) < 2 else max(1, min(round(holdout * len(every)), len(every) - 1))
    assert len(held) == expected
    sizes = collections.Counter(topics)
    held_sizes = collections.Counter(seed.topic for seed in held)
    splittable = [topic for topic, size in sizes.items() if size > 1]
    if len(splittable) <= expected <= len(every) - len(sizes):
        for topic in splittable:
            assert 1 <= held_sizes[topic] < sizes[topic]


def test_topics_with_one_seed_are_held_out_only_where_nothing_else_is_left() -> None:
    _, held = split_seeds(seeds("a", "b", "c", "d", "d"), 0.2, 0)
    assert [seed.topic for seed in held] == ["d"]
    assert len(split_seeds(seeds("a", "b", "c", "d"), 0.5, 0)[1]) == 2


def test_whole_topics_are_held_out_by_name() -> None:
    train, held = split_seeds(seeds(*"aabbc"), 0.0, 0, by="topic", holdout_topics=["c", "a"])
    assert [seed.topic for seed in held] == ["a", "a", "c"]
    assert [seed.topic for seed in train] == ["b", "b"]


def test_whole_topics_are_held_out_by_share() -> None:
    every = (*seeds(*"aabbccdd"), Seed("plain", Instruction("No topic.")))
    train, held = split_seeds(every, 0.5, 0, by="topic")
    assert len({seed.topic for seed in held}) == 2
    assert not {seed.topic for seed in held} & {seed.topic for seed in train}
    assert every[-1] in train
    assert split_seeds(every, 0.01, 0, by="topic")[1]
    assert split_seeds(every, 0.0, 0, by="topic") == (every, ())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"holdout": 1.0}, ConfigError, "holdout must be at least 0 and below 1, got 1.0."),
        ({"holdout": float("nan")}, ConfigError, "holdout must be at least 0 and below 1, got nan."),
        ({"by": "line"}, ConfigError, "seeds are split by 'seed' or by 'topic', got 'line'."),
        (
            {"holdout_topics": ["law"]},
            ConfigError,
            "holdout_topics goes with by='topic', got by='seed'. Leave one of the two out.",
        ),
        (
            {"by": "topic", "holdout_topics": ["lew"]},
            SeedError,
            "no seed has the topic 'lew'; the topics are law, math. Did you mean 'law'?",
        ),
        (
            {"by": "topic", "holdout_topics": ["law", "math"]},
            SeedError,
            "holding out law, math leaves no seed to train on. Name fewer topics.",
        ),
    ],
)
def test_impossible_splits_are_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        split_seeds(seeds("law", "math"), **{"holdout": 0.5, "rng_seed": 0, **options})
    assert str(caught.value) == message


def test_seeds_without_topics_cannot_be_split_by_topic() -> None:
    with pytest.raises(SeedError) as caught:
        split_seeds(seeds("", ""), 0.5, 0, by="topic")
    assert str(caught.value) == (
        "cannot hold out whole topics: the seeds name 0; expected at least 2. Split by seed instead."
    )
