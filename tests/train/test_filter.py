"""Which answers are kept, on texts as models write them."""

from __future__ import annotations

from typing import Any

import pytest

from instructgym.train.config import FILTER_RULES
from instructgym.train.filter import RULES, filter_rows


def row(**values: Any) -> dict[str, Any]:
    defaults = {
        "id": "chain-000000",
        "instruction": "Explain how tides work to a sailor.",
        "input": "",
        "output": "The moon pulls the water towards it, so the sea rises twice a day.",
        "finish_reason": "stop",
        "failure": None,
    }
    return {**defaults, **values}


def test_every_rule_of_the_config_exists() -> None:
    assert set(FILTER_RULES) == {*RULES, "duplicate"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"output": "I'm sorry, but I can't help with that request."}, "refused"),
        ({"output": "And so on, and so on."}, "stop_words"),
        ({"output": ""}, "stop_words"),
        ({"instruction": "#Rewritten Prompt#: Explain tides."}, "leaked"),
        ({"output": "It is so. <|im_end|>"}, "leaked"),
        ({"finish_reason": "length"}, "cut"),
        ({"output": "explain how tides work, to a SAILOR"}, "same_as_instruction"),
        ({"input": "3, 5", "output": "Explain how tides work to a sailor.\n3, 5"}, "same_as_instruction"),
        ({"failure": "CallTimeout: no answer", "output": ""}, "no_answer"),
    ],
)
def test_a_faulty_row_is_rejected_with_its_reason(values: dict[str, Any], reason: str) -> None:
    kept, rejected = filter_rows([row(**values)], FILTER_RULES)
    assert kept == []
    assert rejected == [{**row(**values), "reason": reason}]


@pytest.mark.parametrize(
    "output",
    [
        "### Instructions:\n1. Soak the beans.\n2. Boil them for an hour.",
        "月球的引力使海水每天涨落两次。",
        "يرتفع البحر مرتين في اليوم بسبب جاذبية القمر.",
        "🌊🌕",
        "42",
        "I'm sorry for your loss. Tides rise and fall because the moon pulls the sea, whatever else happens.",
    ],
)
def test_good_answers_of_every_kind_are_kept(output: str) -> None:
    assert filter_rows([row(output=output)], FILTER_RULES) == ([row(output=output)], [])


def test_of_duplicates_the_first_that_is_kept_stays() -> None:
    rows = [row(id="a", output=""), row(id="b"), row(id="c", output="Another answer."), row(id="d", input="x")]
    kept, rejected = filter_rows(rows, FILTER_RULES)
    assert [each["id"] for each in kept] == ["b", "d"]
    assert [(each["id"], each["reason"]) for each in rejected] == [("a", "stop_words"), ("c", "duplicate")]


def test_rules_that_are_not_on_do_nothing() -> None:
    assert filter_rows([row(finish_reason="length")], ("refused",))[1] == []
