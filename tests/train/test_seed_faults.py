"""Seeds files with every fault: what is refused, in which words, and what skipping keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import SeedError
from instructgym.train.seed_files import Rejected, SeedFile, read_seeds

ADVICE = "Fix the record, or go on without it: --skip-bad."


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, content: str | bytes | list[Any]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def refusal(path: Path | str, **options: Any) -> str:
    """The message, with the file's folder cut off."""
    with pytest.raises(SeedError) as caught:
        read_seeds(path, **options)
    return str(caught.value).replace(f"{Path(path).parent}{os.sep}", "")


def texts(seed_file: SeedFile) -> list[str]:
    return [seed.instruction.text for seed in seed_file.seeds]


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


# --- files that cannot be read


def test_missing_file_names_the_nearest_one(write: Any, tmp_path: Path) -> None:
    write("my_seeds.jsonl", "x")
    with pytest.raises(SeedError) as caught:
        read_seeds(tmp_path / "my_seed.jsonl")
    assert str(caught.value) == (
        f"{tmp_path / 'my_seed.jsonl'}: no such seeds file. Did you mean {tmp_path / 'my_seeds.jsonl'}?"
    )
    assert refusal(tmp_path / "elsewhere" / "q") == ("q: no such seeds file. Give the path of a file, or 'default'.")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / ".").endswith(": is a folder; expected one seeds file. Give the path of a file in it.")


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal(tmp_path / "loop").startswith("loop: cannot be read: ")
    assert refusal(tmp_path / "loop").endswith(". Check the path and its permissions.")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_refused(write: Any) -> None:
    path = write("secret.txt", "x")
    path.chmod(0)
    assert refusal(path) == "secret.txt: cannot be read: Permission denied. Check the path and its permissions."


@pytest.mark.parametrize("content", ["", "\n\n  \n", "\ufeff", "\ufeff\n"])
def test_empty_file_is_refused(write: Any, content: str) -> None:
    assert refusal(write("e.jsonl", content)) == "e.jsonl: is empty; expected at least one instruction."


@pytest.mark.parametrize(("name", "content"), [("e.json", "[]"), ("e.csv", "instruction,input\n")])
def test_file_without_records_is_refused(write: Any, name: str, content: str) -> None:
    assert refusal(write(name, content)) == f"{name}: holds no records; expected at least one instruction."


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    path = write_parquet(tmp_path / "e", {"instruction": pa.array([], pa.string())})
    assert refusal(path) == "e: holds no records; expected at least one instruction."


def test_utf16_is_refused(write: Any) -> None:
    assert refusal(write("u.txt", "Hello".encode("utf-16"))) == (
        "u.txt: looks like UTF-16; expected UTF-8. Save it as UTF-8 and try again."
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            '[\n{"instruction": "a"},\n{"instruction": "b"\n]',
            "line 4: not valid JSON (Expecting ',' delimiter, column 1)",
        ),
        ('[{"instruction": "a"},\n]', "line 2: not valid JSON (a comma before the closing bracket, column 1)"),
        ('[{"instruction": "a"}\n {"instruction": "b"}]', "line 2: not valid JSON (expected ',' or ']', column 2)"),
        ('[{"instruction": "a"}]\nmore', "line 2: not valid JSON (something follows the array, column 1)"),
        ('[{"instruction": "a"},\n', "line 2: not valid JSON (Expecting value, column 1)"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_broken_json_array_is_refused_whole(write: Any, content: str, what: str, skip_bad: bool) -> None:
    assert refusal(write("b.json", content), skip_bad=skip_bad) == (
        f"b.json: {what}. A JSON array is read as a whole, so --skip-bad cannot go on past this: fix it, or save one "
        "record a line (JSONL)."
    )


def test_text_that_starts_like_json_says_how_to_read_it(write: Any) -> None:
    assert refusal(write("v.txt", "[Verse] Write one.\n")).endswith(
        "(JSONL). If this is plain text, say so: --set seeds.format=text."
    )
    assert refusal(write("c.txt", "{name}, write one.\n")) == (
        "c.txt: line 1: not valid JSON (Expecting property name enclosed in double quotes, column 2). The file starts "
        "like JSON; if it is plain text, say so: --set seeds.format=text."
    )


def test_deeply_nested_json_is_refused_in_words(write: Any) -> None:
    assert "line 1: not valid JSON (" in refusal(write("n.json", "[" * 200_000))
    path = write("n.jsonl", '{"instruction": "a"}\n' + '{"a":' * 200_000 + "\n")
    assert "n.jsonl: line 2: not valid JSON (" in refusal(path)


def test_unknown_fields_are_named(write: Any) -> None:
    assert refusal(write("k.jsonl", [{"prompt": "a", "n": 1}])) == (
        "k.jsonl: line 1: no known format: expected a field 'instruction', 'instances' or 'messages'; the record has "
        "'prompt', 'n'. Name the field of the instruction: --instruction-field FIELD."
    )
    assert refusal(write("k.jsonl", [{"prompt": "a"}]), instruction_field="ask") == (
        "k.jsonl: line 1: no known format: expected a field 'ask'; the record has 'prompt'. Name the field of the "
        "instruction: --instruction-field FIELD."
    )


def test_csv_without_the_column_lists_what_it_has(write: Any) -> None:
    assert refusal(write("c.csv", "a,b\n1,2\n")) == (
        "c.csv: no column 'instruction'; the columns are 'a', 'b'. Name the one with the instructions: "
        "--instruction-field COLUMN."
    )


def test_csv_with_a_column_twice_or_open_quotes_is_refused(write: Any) -> None:
    assert refusal(write("c.csv", "instruction,input,input\na,b,c\n")) == (
        "c.csv: line 1: the header names 'input' twice; expected distinct columns. Rename one."
    )
    assert refusal(write("q.csv", 'instruction\nfine\n"open\nmore\n')) == (
        "q.csv: line 3: broken CSV (unexpected end of data). Check the quotes from there on; --skip-bad cannot go on "
        "past this."
    )


def test_parquet_faults_are_refused(write: Any, tmp_path: Path) -> None:
    assert refusal(write_parquet(tmp_path / "p", {"ask": ["One?"]})) == (
        "p: no column 'instruction'; the columns are 'ask'. Name the one with the instructions: "
        "--instruction-field COLUMN."
    )
    assert refusal(write("broken.parquet", b"PAR1 and nothing else")).startswith(
        "broken.parquet: cannot be read as Parquet: "
    )
    numbers = write_parquet(tmp_path / "n", {"instruction": [1, 2]})
    assert refusal(numbers) == f"n: row 1: 'instruction' is a number (1); expected text. {ADVICE}"


@pytest.mark.parametrize(
    ("name", "content"), [("w.json", b'[\n{"instruction": "\xff"}]'), ("w.csv", b"instruction\n\xff")]
)
def test_invalid_utf8_in_a_whole_file_names_its_line(write: Any, name: str, content: bytes) -> None:
    assert refusal(write(name, content), skip_bad=True) == (
        f"{name}: line 2: not valid UTF-8 (byte 0xff). Save the file as UTF-8; it is read as a whole, so --skip-bad "
        "cannot go on past this."
    )


@pytest.mark.parametrize(("name", "content"), [("z.json", b'[\n{"instruction": "\0"}]'), ("z.csv", b"instruction\n\0")])
def test_nul_in_a_whole_file_names_its_line(write: Any, name: str, content: bytes) -> None:
    assert refusal(write(name, content)) == f"{name}: line 2: holds a NUL byte; expected text. Remove it."


# --- bad records: each is an error with its line, or with skip_bad a reject

LONG = "w " * 50_000
GOOD = '{"id": "g", "instruction": "Good."}'
BAD_RECORDS: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"instruction": "a"', "not valid JSON (Expecting ',' delimiter, column 20)"),
    "no JSON at all": (b"just words", "not valid JSON (Expecting value, column 1)"),
    "another type": (b'["a"]', "the record is a list; expected an object with named fields"),
    "no field": (b'{"id": "a", "text": "b"}', "no field 'instruction'; the record has 'id', 'text'"),
    "no fields": (b"{}", "no field 'instruction'; the record has no fields"),
    "empty": (b'{"instruction": ""}', "the instruction is empty; expected text"),
    "whitespace": (b'{"instruction": " \\n\\t"}', "the instruction is only whitespace; expected text"),
    "ideographic space": ('{"instruction": "\u3000"}'.encode(), "the instruction is only whitespace; expected text"),
    "number": (b'{"instruction": 42}', "'instruction' is a number (42); expected text"),
    "null": (b'{"instruction": null}', "'instruction' is missing or null; expected text"),
    "boolean": (b'{"instruction": true}', "'instruction' is true; expected text"),
    "list": (b'{"instruction": ["a"]}', "'instruction' is a list; expected text"),
    "input is a list": (b'{"instruction": "a", "input": []}', "'input' is an empty list; expected text"),
    "topic is an object": (b'{"instruction": "a", "topic": {}}', "'topic' is an object; expected text"),
    "id is a list": (b'{"instruction": "a", "id": [1]}', "'id' is a list; expected text or a whole number"),
    "id is true": (b'{"instruction": "a", "id": true}', "'id' is true; expected text or a whole number"),
    "latin-1": ('{"instruction": "caf\xe9"}'.encode("latin-1"), "not valid UTF-8 (byte 0xe9)"),
    "NUL byte": (b'{"instruction": "a\0b"}', "holds a NUL byte"),
    "escaped NUL": (b'{"instruction": "a\\u0000b"}', "the instruction holds a NUL byte; expected text"),
    "NUL in input": (b'{"instruction": "a", "input": "\\u0000"}', "the input holds a NUL byte; expected text"),
    "half a pair": (
        b'{"instruction": "a\\ud83d"}',
        "the instruction holds half of a surrogate pair, which is no character; expected text",
    ),
    "100,000 characters": (
        json.dumps({"instruction": LONG}).encode(),
        "instruction and input have 100,000 characters; the limit is 20,000",
    ),
    "a long input": (
        json.dumps({"instruction": "Sum up.", "input": LONG}).encode(),
        "instruction and input have 100,007 characters; the limit is 20,000",
    ),
    "id taken": (GOOD.encode(), "the id 'g' is taken by line 1; expected distinct ids"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_record_is_an_error_that_names_its_line_or_a_reject(write: Any, line: bytes, reason: str) -> None:
    path = write("bad.jsonl", GOOD.encode() + b"\n\n" + line + b'\n{"id": "h", "instruction": "Also good."}\n')
    assert refusal(path) == f"bad.jsonl: line 3: {reason}. {ADVICE}"
    read = read_seeds(path, skip_bad=True)
    assert [seed.id for seed in read.seeds] == ["g", "h"]
    assert read.rejected == (Rejected(3, reason, line.decode("utf-8", "replace")[:200]),)
    assert read.describe() == "alpaca JSONL, 2 instructions, 0 with input, 1 rejected"


def test_bad_record_of_a_json_array_is_named_by_its_line(write: Any) -> None:
    content = '[\n  {"instruction": "a"},\n  {\n    "instruction": ""\n  },\n  "b"\n]\n'
    path = write("a.json", content)
    assert refusal(path) == f"a.json: line 3: the instruction is empty; expected text. {ADVICE}"
    assert read_seeds(path, skip_bad=True).rejected == (
        Rejected(3, "the instruction is empty; expected text", '{\n    "instruction": ""\n  }'),
        Rejected(6, "the record is a text; expected an object with named fields", '"b"'),
    )


def test_bad_line_of_plain_text(write: Any) -> None:
    path = write("t.txt", b"fine\ncaf\xe9\n" + LONG.encode() + b"\n")
    assert refusal(path) == f"t.txt: line 2: not valid UTF-8 (byte 0xe9). {ADVICE}"
    read = read_seeds(path, skip_bad=True)
    assert texts(read) == ["fine"]
    assert [(reject.line, reject.reason, len(reject.text)) for reject in read.rejected] == [
        (2, "not valid UTF-8 (byte 0xe9)", 4),
        (3, "instruction and input have 100,000 characters; the limit is 20,000", 200),
    ]


def test_csv_row_of_another_width_is_named_by_its_first_line(write: Any) -> None:
    path = write("c.csv", 'instruction,input\n"two\nlines",x\nalone\n')
    assert refusal(path) == f"c.csv: line 4: has 1 cell; the header has 2. {ADVICE}"


BAD_CHATS: list[tuple[Any, str]] = [
    ("hello", "'messages' is a text; expected a list of messages with 'role' and 'content'"),
    ([], "no message of the role 'user'; its first one would be the instruction"),
    ([{"content": "x"}], "message 0 has no 'role'; expected an object with 'role' and 'content'"),
    ([{"role": "user", "content": [{"type": "text"}]}], "the content of message 0 is a list; expected text"),
    ([{"role": "user", "content": " "}], "the instruction is only whitespace; expected text"),
]


@pytest.mark.parametrize(("messages", "reason"), BAD_CHATS)
def test_bad_chat_says_which_message(write: Any, messages: Any, reason: str) -> None:
    assert refusal(write("m.jsonl", [{"messages": messages}])) == f"m.jsonl: line 1: {reason}. {ADVICE}"


BAD_INSTANCES: list[tuple[Any, str]] = [
    ([], "'instances' is an empty list; expected a list with at least one instance"),
    ({"input": ""}, "'instances' is an object; expected a list with at least one instance"),
    (["x"], "instance 0 is a text; expected an object with 'input' and 'output'"),
    ([{"input": 3}], "'input' is a number (3); expected text"),
]


@pytest.mark.parametrize(("instances", "reason"), BAD_INSTANCES)
def test_bad_instances_are_refused(write: Any, instances: Any, reason: str) -> None:
    path = write("s.jsonl", [{"instruction": "Go.", "instances": instances}])
    assert refusal(path) == f"s.jsonl: line 1: {reason}. {ADVICE}"


def test_dolly_record_with_two_different_inputs_is_refused(write: Any) -> None:
    path = write("d.jsonl", [{"instruction": "Go.", "context": "a", "input": "b", "category": "c"}])
    assert refusal(path) == (
        f"d.jsonl: line 1: has both 'context' and 'input', and they differ; expected one of them. {ADVICE}"
    )


def test_file_of_nothing_but_rejects_is_refused(write: Any) -> None:
    path = write("r.jsonl", [{"instruction": ""}, {"instruction": 1}])
    assert refusal(path, skip_bad=True) == (
        "r.jsonl: no usable instruction; 2 rejected, the first at line 1: the instruction is empty; expected text. "
        "Check the format."
    )


def test_skip_bad_detects_the_format_past_a_broken_first_line(write: Any) -> None:
    path = write("f.jsonl", '{"instruction": \n{"messages": [{"role": "user", "content": "Hi."}]}\n')
    read = read_seeds(path, skip_bad=True)
    assert (read.format, texts(read), [reject.line for reject in read.rejected]) == ("messages", ["Hi."], [1])


def test_the_limit_of_characters_is_inclusive(write: Any) -> None:
    path = write("x.txt", "a" * 30)
    assert len(read_seeds(path, max_characters=30).seeds) == 1
    assert refusal(path, max_characters=29) == (
        f"x.txt: line 1: instruction and input have 30 characters; the limit is 29. {ADVICE}"
    )
