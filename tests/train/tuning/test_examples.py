"""The forms in which data comes, and what is said of data in none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import ConfigError
from instructgym.train.tuning.examples import PreferenceExample, SFTExample, read_preferences, read_sft
from instructgym.types import Message

USER, ANSWER = Message("user", "say 1"), Message("assistant", "it is 1")
SFT = SFTExample((USER, ANSWER))
CHAT = [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "it is 1"}]
PAIR = PreferenceExample((USER,), "it is 1", "no")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "say 1", "output": "it is 1"}, SFT),
        ({"instruction": "say 1", "input": "", "output": "it is 1", "id": "x"}, SFT),
        (
            {"instruction": "add", "input": "1, 2", "output": "3"},
            SFTExample((Message("user", "add\n\n1, 2"), Message("assistant", "3"))),
        ),
        ({"messages": CHAT}, SFT),
        ({"conversations": [{"from": "human", "value": "say 1"}, {"from": "gpt", "value": "it is 1"}]}, SFT),
        ({"prompt": "say 1", "completion": "it is 1"}, SFT),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, SFT),
        (
            {"prompt": "line\u2028apart", "completion": "a"},
            SFTExample((Message("user", "line\u2028apart"), Message("assistant", "a"))),
        ),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *CHAT, *CHAT]},
            SFTExample((Message("system", "Be brief."), USER, ANSWER, USER, ANSWER)),
        ),
    ],
)
def test_answers_in_every_form(tmp_path: Path, row: dict[str, Any], expected: SFTExample) -> None:
    assert read_sft(write(tmp_path / "data.jsonl", row, row)) == [expected, expected]
    (tmp_path / "data.json").write_text(json.dumps([row]), "utf-8")
    assert read_sft(tmp_path / "data.json") == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "say 1", "chosen": "it is 1", "rejected": "no"}, PAIR),
        ({"instruction": "say 1", "chosen": "it is 1", "rejected": "no", "weight": None}, PAIR),
        (
            {"instruction": "add", "input": "1, 2", "chosen": "3", "rejected": "4", "weight": 2},
            PreferenceExample((Message("user", "add\n\n1, 2"),), "3", "4", 2.0),
        ),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "no"}]}, PAIR),
        ({"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]}, PAIR),
        ({"prompt": "say 1", "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]}, PAIR),
        (
            {"prompt": [*CHAT, CHAT[0]], "chosen": "it is 1", "rejected": "no"},
            PreferenceExample((USER, ANSWER, USER), "it is 1", "no"),
        ),
    ],
)
def test_preferences_in_every_form(tmp_path: Path, row: dict[str, Any], expected: PreferenceExample) -> None:
    assert read_preferences(write(tmp_path / "data.jsonl", row)) == [expected]


def test_parquet_and_the_folders_of_our_runs(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": "say 1", "output": "it is 1"}, {"instruction": "add", "input": "1, 2", "output": "3"}]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "data.parquet")
    assert read_sft(tmp_path / "data.parquet")[1] == SFT
    (tmp_path / "run/dataset").mkdir(parents=True)
    write(tmp_path / "run/dataset/sft_messages.jsonl", {"messages": CHAT})
    assert read_sft(tmp_path / "run") == read_sft(tmp_path / "run/dataset") == [SFT]
    (tmp_path / "alignment/preferences").mkdir(parents=True)
    write(tmp_path / "alignment/preferences/pairs.jsonl", {"prompt": "say 1", "chosen": "it is 1", "rejected": "no"})
    assert read_preferences(tmp_path / "alignment") == [PAIR]
    with pytest.raises(ConfigError) as caught:
        read_preferences(tmp_path / "run")
    assert str(caught.value) == (
        f"the folder '{tmp_path / 'run'}' holds no data to learn from; expected one of preferences/pairs.jsonl, "
        "pairs.jsonl in it."
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "has text; expected messages, or prompt and completion, or instruction and output."),
        ({"messages": CHAT[:1]}, "expected a conversation with a user's turn that ends with an assistant's turn."),
        ({"messages": CHAT[1:]}, "expected a conversation with a user's turn that ends with an assistant's turn."),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "a turn's role is 'tool'; expected one of system, user, assistant.",
        ),
        ({"messages": "say"}, "got str where a text or messages were expected."),
        ({"instruction": "say", "output": 3}, "'output' is int; expected a text."),
        ([1], "got list; expected an object."),
    ],
)
def test_what_is_no_conversation_is_named_by_its_number(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "data.jsonl", {"messages": CHAT}, row)
    with pytest.raises(ConfigError) as caught:
        read_sft(path)
    assert str(caught.value) == f"{path}, record 2: {words}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": None}, "got NoneType where a text or messages were expected."),
        ({"weight": -1}, "the weight is -1; expected a number of 0 or more."),
        ({"weight": True}, "the weight is True; expected a number of 0 or more."),
        ({"prompt": CHAT}, "the prompt ends with an assistant's turn; expected a user's."),
        ({"chosen": [CHAT[1], CHAT[1]]}, "an answer has 2 turns; expected one of the assistant."),
        ({"chosen": CHAT[:1]}, "an answer is a turn of the user; expected one of the assistant."),
    ],
)
def test_what_is_no_preference_is_named_by_its_number(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    whole = {"prompt": "say 1", "chosen": "it is 1", "rejected": "no"}
    path = write(tmp_path / "data.jsonl", {**whole, **change})
    with pytest.raises(ConfigError) as caught:
        read_preferences(path)
    assert str(caught.value) == f"{path}, record 1: {words}"


def test_preferences_without_a_part_say_which(tmp_path: Path) -> None:
    for row, words in (
        ({"prompt": "a", "chosen": "b"}, "has no 'rejected'; expected prompt (or instruction), chosen and rejected."),
        ({"chosen": "b", "rejected": "c"}, "has no prompt; expected prompt (or instruction), chosen and rejected."),
        (
            {"chosen": CHAT, "rejected": [{"role": "user", "content": "other"}, CHAT[1]]},
            "has no prompt, and chosen and rejected do not begin with the same one.",
        ),
    ):
        path = write(tmp_path / "data.jsonl", row)
        with pytest.raises(ConfigError) as caught:
            read_preferences(path)
        assert str(caught.value) == f"{path}, record 1: {words}"


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    def said(name: str, content: bytes | None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_sft(path)
        return str(caught.value)

    assert said("none.jsonl", None) == f"'{tmp_path / 'none.jsonl'}' cannot be read: No such file or directory."
    assert said("empty.jsonl", b" \n") == f"'{tmp_path / 'empty.jsonl'}' holds no records."
    assert said("latin.jsonl", b'{"a": "\xe9"}') == (
        f"'{tmp_path / 'latin.jsonl'}' is not valid UTF-8 at byte 7; expected JSON lines."
    )
    assert said("cut.jsonl", b'{"messages": []}\n{"mess').startswith(
        f"'{tmp_path / 'cut.jsonl'}', line 2: not valid JSON: "
    )
    assert said("cut.json", b"[{").startswith(f"'{tmp_path / 'cut.json'}' is not valid JSON: ")
    assert said("cut.parquet", b"PAR1").startswith(f"'{tmp_path / 'cut.parquet'}' cannot be read as Parquet: ")
