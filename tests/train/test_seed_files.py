"""Seeds files in every format: what is detected, what is read, and that no text is changed."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import ConfigError, SeedError
from instructgym.train.seed_files import SEED_FORMATS, SeedFile, read_seeds
from instructgym.types import Instruction, Seed


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, content: str | bytes | list[Any]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def texts(seed_file: SeedFile) -> list[str]:
    return [seed.instruction.text for seed in seed_file.seeds]


def test_alpaca_jsonl_keeps_id_input_output_and_topic(write: Any) -> None:
    path = write(
        "a.jsonl",
        [
            {"id": "first", "instruction": "Name a tree.", "input": "", "output": "Oak.", "topic": "botany"},
            {"instruction": "Add these.", "input": "2 and 3", "output": "5"},
            {"id": 7, "instruction": "Say hello."},
        ],
    )
    read = read_seeds(path)
    assert read.seeds == (
        Seed("first", Instruction("Name a tree."), "botany", "Oak."),
        Seed("seed-000002", Instruction("Add these.", "2 and 3"), "", "5"),
        Seed("7", Instruction("Say hello.")),
    )
    assert (read.format, read.container, read.line_count, read.rejected) == ("alpaca", "JSONL", 3, ())
    assert read.describe() == "alpaca JSONL, 3 instructions, 1 with input"


@pytest.mark.parametrize("indent", [None, 2])
def test_alpaca_json_array_compact_or_indented(write: Any, indent: int | None) -> None:
    records = [{"instruction": "One?", "input": "", "output": ""}, {"instruction": "Two?", "input": "x", "output": "y"}]
    read = read_seeds(write("a.json", json.dumps(records, indent=indent)))
    assert read.describe() == "alpaca JSON, 2 instructions, 1 with input"
    assert [seed.id for seed in read.seeds] == ["seed-000001", "seed-000002"]


def test_one_indented_object_is_one_record(write: Any) -> None:
    read = read_seeds(write("one.json", json.dumps({"instruction": "Only me."}, indent=2)))
    assert read.describe() == "alpaca JSON, 1 instruction, 0 with input"


def test_dolly_takes_context_or_input_and_category_as_topic(write: Any) -> None:
    path = write(
        "d.jsonl",
        [
            {"instruction": "Where is it?", "context": "It is in Oslo.", "response": "Oslo", "category": "closed_qa"},
            {"instruction": "Who am I?", "input": "A hint.", "output": "You", "category": "open_qa", "topic": "self"},
            {"instruction": "Why?", "context": "", "category": "general_qa"},
        ],
    )
    read = read_seeds(path)
    assert read.seeds == (
        Seed("seed-000001", Instruction("Where is it?", "It is in Oslo."), "closed_qa", "Oslo"),
        Seed("seed-000002", Instruction("Who am I?", "A hint."), "self", "You"),
        Seed("seed-000003", Instruction("Why?"), "general_qa"),
    )
    assert read.describe() == "dolly JSONL, 3 instructions, 2 with input"


def test_self_instruct_yields_one_seed_an_instance(write: Any) -> None:
    instances = [{"input": "cold", "output": "hot"}, {"input": "", "output": "none"}]
    path = write("s.jsonl", [{"id": "t1", "instruction": "Give the opposite.", "instances": instances}])
    read = read_seeds(path)
    assert read.seeds == (
        Seed("t1/0", Instruction("Give the opposite.", "cold"), "", "hot"),
        Seed("t1/1", Instruction("Give the opposite."), "", "none"),
    )
    assert read.describe() == "self_instruct JSONL, 2 instructions, 1 with input"


def test_self_instruct_without_ids_numbers_the_tasks(write: Any) -> None:
    task = {"instruction": "Go.", "instances": [{"input": "", "output": ""}]}
    assert [seed.id for seed in read_seeds(write("s.json", json.dumps([task, task]))).seeds] == [
        "seed-000001/0",
        "seed-000002/0",
    ]


def test_messages_take_the_first_user_turn_and_the_first_answer_to_it(write: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Hello, what can I do?"},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Niger."},
        {"role": "user", "content": "Another."},
        {"role": "assistant", "content": "The Inn."},
    ]
    read = read_seeds(write("m.jsonl", [{"messages": chat}]))
    assert read.seeds == (Seed("seed-000001", Instruction("Name a river."), "", "The Niger."),)
    assert read.describe() == "messages JSONL, 1 instruction, 0 with input"


def test_plain_text_is_one_instruction_a_line_and_skips_blank_lines(write: Any) -> None:
    read = read_seeds(write("t.txt", "First thing.\n\n   \nSecond, with a comma.\r\nThird"))
    assert texts(read) == ["First thing.", "Second, with a comma.", "Third"]
    assert [seed.id for seed in read.seeds] == ["seed-000001", "seed-000002", "seed-000003"]
    assert read.describe() == "plain text, 3 instructions, 0 with input"
    assert read.line_count == 5


def test_csv_reads_the_named_column_and_input(write: Any) -> None:
    content = 'topic,question,input\r\nsea,"Why salt, though?",""\r\nsky,"Why\nblue?",look up\r\n'
    read = read_seeds(write("q.csv", content), instruction_field="question")
    assert read.seeds == (
        Seed("seed-000001", Instruction("Why salt, though?"), "sea"),
        Seed("seed-000002", Instruction("Why\nblue?", "look up"), "sky"),
    )
    assert read.describe() == "CSV, 2 instructions, 1 with input"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_known_by_its_header_whatever_its_name_and_delimiter(write: Any, delimiter: str) -> None:
    content = delimiter.join(("id", "instruction")) + "\n" + delimiter.join(("x1", "Do it.")) + "\n"
    assert read_seeds(write("table", content)).seeds == (Seed("x1", Instruction("Do it.")),)


def test_csv_with_instructions_in_the_column_input_does_not_repeat_them(write: Any) -> None:
    read = read_seeds(write("io.csv", "input,output\nWhat is tin?,A metal.\n"), instruction_field="input")
    assert read.seeds == (Seed("seed-000001", Instruction("What is tin?"), "", "A metal."),)


def test_csv_cell_beyond_the_module_limit_is_that_records_problem(write: Any) -> None:
    path = write("big.csv", "instruction\nfine\n" + "x" * 200_000 + "\n")
    read = read_seeds(path, skip_bad=True)
    assert texts(read) == ["fine"]
    assert read.rejected[0].reason == "instruction and input have 200,000 characters; the limit is 20,000"


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_reads_the_named_column_and_input(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p", {"ask": ["One?", "Two?"], "input": ["", "日本"], "other": [1, 2]})
    read = read_seeds(path, instruction_field="ask")
    assert read.seeds == (
        Seed("seed-000001", Instruction("One?")),
        Seed("seed-000002", Instruction("Two?", "日本")),
    )
    assert read.describe() == "Parquet, 2 instructions, 1 with input"
    assert read.line_count == 2


def test_json_with_a_named_field(write: Any) -> None:
    path = write("n.jsonl", [{"prompt": "Ask me."}, {"prompt": "Ask her.", "input": "now"}])
    assert read_seeds(path, instruction_field="prompt").describe() == "alpaca JSONL, 2 instructions, 1 with input"


def test_format_can_be_overridden(write: Any) -> None:
    path = write("o", '{"instruction": "x"}\n')
    assert texts(read_seeds(path, format="text")) == ['{"instruction": "x"}']
    assert texts(read_seeds(path, format="alpaca")) == ["x"]


def test_bom_and_crlf_are_no_part_of_the_text(write: Any) -> None:
    bom = b"\xef\xbb\xbf"
    assert texts(read_seeds(write("b.txt", bom + b"One\r\nTwo\r\n"))) == ["One", "Two"]
    assert texts(read_seeds(write("b.jsonl", bom + b'{"instruction": "One"}\r\n{"instruction": "Two"}\r\n'))) == [
        "One",
        "Two",
    ]
    assert texts(read_seeds(write("b.json", bom + b'[\r\n{"instruction": "One"}\r\n]'))) == ["One"]
    assert texts(read_seeds(write("b.csv", bom + b"instruction\r\nOne\r\n"))) == ["One"]


def test_blank_lines_in_jsonl_are_no_records(write: Any) -> None:
    assert texts(read_seeds(write("b.jsonl", '\n{"instruction": "One"}\n\n{"instruction": "Two"}\n\n'))) == [
        "One",
        "Two",
    ]


def test_limit_stops_before_later_faults(write: Any) -> None:
    path = write("l.jsonl", '{"instruction": "One"}\n{"instruction": "Two"}\nbroken\n')
    assert texts(read_seeds(path, limit=2)) == ["One", "Two"]


def test_limit_counts_instances(write: Any) -> None:
    instances = [{"input": str(number), "output": ""} for number in range(5)]
    path = write("s.jsonl", [{"id": "t", "instruction": "Go.", "instances": instances}])
    assert [seed.id for seed in read_seeds(path, limit=2).seeds] == ["t/0", "t/1"]


FOREIGN = [
    "اكتب قصة قصيرة عن البحر",
    "\u202bכתוב שיר\u202c קצר",
    "用三句话解释光合作用。",
    "e\u0301crire, not \u00e9crire",
    "👩‍👩‍👧 or 🏳️‍🌈?",
    "a\u2028b\x85c\x0bd",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_any_script_comes_through_unchanged_in_every_format(write: Any, tmp_path: Path, text: str) -> None:
    record = {"instruction": text, "input": text + " ", "output": text}
    expected = (Seed("seed-000001", Instruction(text, text + " "), "", text),)
    assert read_seeds(write("f.jsonl", [record])).seeds == expected
    assert read_seeds(write("f.json", json.dumps([record]))).seeds == expected
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([list(record), list(record.values())])
    assert read_seeds(write("f.csv", rows.getvalue())).seeds == expected
    assert read_seeds(write_parquet(tmp_path / "f", {key: [value] for key, value in record.items()})).seeds == expected
    assert texts(read_seeds(write("f.txt", text + "\n"))) == [text]


_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(_line, min_size=1, max_size=8))
def test_plain_text_round_trip(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("round") / "t.txt"
    content = "\n".join(lines).encode()
    path.write_bytes(b"\xef\xbb\xbf" + content)  # the mark of ours, so that a mark of theirs is text
    assert texts(read_seeds(path, format="text", max_characters=10_000)) == lines


@settings(deadline=None)
@given(st.lists(st.tuples(_line, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))))
def test_json_round_trip_as_lines_and_as_array(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    pairs = [*pairs, ("last", "")]
    expected = tuple(
        Seed(f"seed-{number:06d}", Instruction(text, given if given.strip() else ""))
        for number, (text, given) in enumerate(pairs, start=1)
    )
    records = [{"instruction": text, "input": given} for text, given in pairs]
    folder = tmp_path_factory.mktemp("round")
    (folder / "lines").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    (folder / "array").write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8", newline="")
    assert read_seeds(folder / "lines").seeds == expected
    assert read_seeds(folder / "array").seeds == expected


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "alpacca"},
            "unknown seeds format 'alpacca'; expected auto, alpaca, dolly, self_instruct, messages, text, csv, "
            "parquet. Did you mean 'alpaca'?",
        ),
        (
            {"format": "text", "instruction_field": "q"},
            "instruction_field 'q' has no meaning in the format 'text'; it goes with alpaca, dolly, csv, parquet. "
            "Leave one of the two out.",
        ),
        ({"limit": 0}, "limit must be at least 1, got 0."),
        ({"max_characters": 0}, "max_characters must be at least 1, got 0."),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_seeds("default", **options)
    assert str(caught.value) == message


def test_every_format_name_is_a_valid_override(write: Any) -> None:
    path = write("x.txt", "words")
    for name in SEED_FORMATS:
        if name != "text":
            with pytest.raises(SeedError, match=re.escape(f"{path}: ")):
                read_seeds(path, format=name)


def test_reading_seeds_loads_no_table_library() -> None:
    code = (
        "import sys; from instructgym.train.seed_files import read_seeds; read_seeds('default');"
        "print(sorted({'pandas', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


DOCS = (Path(__file__).resolve().parents[2] / "docs" / "seeds.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("language", "format", "example"), re.findall(r"^```(\w+) (\w+)\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
)
def test_examples_of_the_docs_are_of_the_format_they_stand_under(
    write: Any, language: str, format: str, example: str
) -> None:
    read = read_seeds(write(f"example.{language}", example))
    assert (read.format, len(read.seeds), read.rejected) == (format, 2, ())


def test_docs_show_every_format() -> None:
    shown = re.findall(r"^```\w+ (\w+)$", DOCS, re.MULTILINE)
    assert [*shown, "parquet"] == list(SEED_FORMATS)
