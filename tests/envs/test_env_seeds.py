from __future__ import annotations

import json

import pytest

from instructgym.envs import load_seeds
from instructgym.errors import SeedError
from instructgym.types import Instruction, Seed


def test_default_seeds_have_ids_and_topics():
    seeds = load_seeds("default")
    assert len(seeds) >= 100
    assert all(seed.topic and seed.instruction.text for seed in seeds)


def test_a_sequence_of_texts_instructions_and_seeds():
    own = Seed("mine", Instruction("c"))
    assert load_seeds(["a", Instruction("b", "data"), own]) == (
        Seed("seed-0", Instruction("a")),
        Seed("seed-1", Instruction("b", "data")),
        own,
    )


def test_jsonl_keeps_other_scripts_and_line_separators_inside_texts(tmp_path):
    path = tmp_path / "seeds.jsonl"
    records = [
        {"id": "he", "instruction": "כתוב שיר", "topic": "writing"},
        {"instruction": "one\u2028two 🙂", "input": "表"},
        {"id": 7, "instruction": "seven", "input": None},
    ]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n", "utf-8")
    assert load_seeds(path) == (
        Seed("he", Instruction("כתוב שיר"), "writing"),
        Seed("seed-1", Instruction("one\u2028two 🙂", "表")),
        Seed("7", Instruction("seven")),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"instruction": "a"}\n{oops\n', "line 2 of '{path}' is not JSON: Expecting property name enclosed in "),
        (b'{"text": "a"}\n', 'line 1 of \'{path}\' has no text; expected a JSON object with "instruction": "...".'),
        (b'{"instruction": "  "}\n', "the instruction of line 1 of '{path}' is empty; expected the text of an "),
        (b'{"instruction": "a", "topic": []}\n', "line 1 of '{path}' has topic = []; expected a text."),
        (
            b'{"id":"x","instruction":"a"}\n{"id":"x","instruction":"b"}',
            "'{path}': the id 'x' is there more than once;",
        ),
        (b"\n", "'{path}': no seed; expected at least one instruction."),
        (b"\xff\xfe", "the seeds '{path}' are not UTF-8 (byte 0); convert the file."),
    ],
)
def test_bad_files_say_where(tmp_path, content, message):
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(content)
    with pytest.raises(SeedError) as caught:
        load_seeds(path)
    assert str(caught.value).startswith(message.replace("{path}", str(path)))


def test_missing_file_and_wrong_types():
    with pytest.raises(SeedError) as caught:
        load_seeds("nowhere.jsonl")
    assert str(caught.value) == "the seeds 'nowhere.jsonl' cannot be read: No such file or directory."
    with pytest.raises(SeedError) as caught:
        load_seeds(["a", 3])
    assert str(caught.value) == "seed 1 is of type int; expected a str or an instructgym Instruction."
