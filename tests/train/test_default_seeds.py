"""The seeds that come with InstructGym, and the public sets as a user would have them."""

from __future__ import annotations

import collections
import json
import re
from pathlib import Path

import pytest

from instructgym.train.seed_files import SeedFile, read_seeds

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "seeds"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the optional public seeds are not beside the checkout")


def texts(seed_file: SeedFile) -> list[str]:
    return [seed.instruction.text for seed in seed_file.seeds]


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_default_set_has_eighteen_distinct_instructions_on_each_of_twelve_topics() -> None:
    read = read_seeds("default")
    assert read.describe() == "alpaca JSONL, 216 instructions, 53 with input"
    counts = collections.Counter(seed.topic for seed in read.seeds)
    topics = "code math writing science law health cooking planning data history finance language"
    assert counts == dict.fromkeys(topics.split(), 18)
    assert len({seed.id for seed in read.seeds}) == len({normal(seed.instruction.text) for seed in read.seeds}) == 216
    assert all(seed.instruction.input for seed in read.seeds if seed.topic == "data")


def test_default_set_is_varied_in_length_and_opening() -> None:
    texts_of_set = texts(read_seeds("default"))
    words = [len(text.split()) for text in texts_of_set]
    assert 10 <= sum(words) / len(words) <= 13
    assert (min(words), max(words)) >= (3, 20)
    openings = collections.Counter(text.split()[0].lower() for text in texts_of_set)
    assert len(openings) >= 60
    assert openings.most_common(1)[0][1] <= 22
    assert 40 <= sum("?" in text for text in texts_of_set) <= 110
    assert all(text == text.strip() and "  " not in text for text in texts_of_set)


@pytest.mark.shared_data
@needs_shared
def test_no_default_instruction_occurs_in_the_public_sets() -> None:
    public = {normal(text) for path in sorted(SHARED.glob("*.jsonl")) for text in texts(read_seeds(path))}
    assert len(public) > 4000
    assert {normal(text) for text in texts(read_seeds("default"))} & public == set()


@pytest.mark.shared_data
@needs_shared
@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("alpaca_4000.jsonl", "alpaca JSONL, 4000 instructions, 1595 with input"),
        ("dolly_1000.jsonl", "dolly JSONL, 1000 instructions, 135 with input"),
        ("self_instruct_seed_tasks.jsonl", "self_instruct JSONL, 175 instructions, 125 with input"),
    ],
)
def test_public_sets_are_read_whole(name: str, description: str) -> None:
    read = read_seeds(SHARED / name)
    assert read.describe() == description
    records = [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines() if line]
    pairs = [
        (record["instruction"], part["input"] if part["input"].strip() else "", part["output"])
        for record in records
        for part in record.get("instances", [record])
    ]
    assert [(seed.instruction.text, seed.instruction.input, seed.output) for seed in read.seeds] == pairs
