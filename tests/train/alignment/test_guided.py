"""The parts of an alignment that ask for more than answers: written prompts, comparisons, judged judgements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.train.alignment.align import HALTED, AlignmentResult, align
from instructgym.train.alignment.config import AlignmentConfig
from instructgym.train.alignment.estimate import estimate
from instructgym.types import Completion, Request, Usage

from .test_align import tiny

pytestmark = pytest.mark.slow


class Guide:
    """Answers by a function of the request's system message and its last one, and of the number of the draw."""

    name = "guide"
    instant = True

    def __init__(self, reply: Callable[[str, str, int], str]) -> None:
        self._reply = reply

    async def complete(self, request: Request) -> Completion:
        system = next((each.content for each in request.messages if each.role == "system"), "")
        text = self._reply(system, request.messages[-1].content, number(*request.sample))
        return Completion(text, "stop", Usage(1, 1), model=self.name)

    async def aclose(self) -> None:
        """Nothing is open."""


def number(*of: object) -> int:
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:8], 16)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asks_no_more_than_estimated(result: AlignmentResult, config: AlignmentConfig) -> None:
    most: dict[tuple[str, str], int] = {}
    for row in estimate(config):
        most[row.stage, row.role] = most.get((row.stage, row.role), 0) + row.calls
    asked = {(row.stage, row.role): row.calls for row in result.traffic}
    assert {key: calls for key, calls in asked.items() if calls > most[key]} == {}


THINGS = "harbour lantern orchard violin glacier compass bakery turbine meadow archive telescope saddle".split()


def write(system: str, question: str, draw: int) -> str:
    """Two tasks, the second of which the filters drop; and an answer to whoever asks for one."""
    if system != "You write tasks for a language model.":
        return f"a word on {len(question)}"
    assert question.count("\nTask ") >= 8  # the examples
    place = number(question, draw)
    things = [THINGS[place // 12**power % 12] for power in range(5)]
    return f"Task 9: explain in {place % 97} words {' '.join(things)}\nTask 10: draw the picture"


def test_prompts_that_a_teacher_writes_are_filtered_and_no_round_repeats_them(tmp_path: Path) -> None:
    config = tiny(
        "rounds.pipeline=teacher_demo",
        "rounds.count=2",
        "prompts.source=generated",
        "prompts.writer=teacher",
        "prompts.count=6",
    )
    result = align(config, tmp_path / "run", backends={"teacher": Guide(write)})
    assert (result.exit_code, result.halted) == (0, "")
    first, second = (lines(result.out / f"{name}/prompts.jsonl") for name in ("M2", "M3"))
    assert len(first) == len(second) == 6
    texts = [row["instruction"] for row in [*first, *second]]
    assert len(set(texts)) == 12
    assert all(text.startswith("explain in ") for text in texts)
    ift = {row["id"] for row in lines(result.out / "M1/ift.jsonl")}
    assert all(len(row["parents"]) == 8 for row in [*first, *second])
    assert all(set(row["parents"]) <= ift | {each["id"] for each in first} for row in first)
    dropped = lines(result.out / "M2/prompts_dropped.jsonl")
    assert "draw the picture" in {row["text"] for row in dropped}
    assert {row["reason"] for row in dropped} <= set(
        json.loads((result.out / "stages/M2.prompts.json").read_text())["result"]["dropped"]
    )
    asks_no_more_than_estimated(result, config)
    again = align(config, tmp_path / "again", backends={"teacher": Guide(write)})
    for name in ("M2/prompts.jsonl", "M3/prompts.jsonl", "preferences/pairs.jsonl"):
        assert (again.out / name).read_bytes() == (result.out / name).read_bytes()


@pytest.mark.parametrize("better", [min, max])
def test_a_round_that_loses_head_to_head_is_the_last(better: Callable[..., str], tmp_path: Path) -> None:
    def compare(system: str, question: str, draw: int) -> str:
        blocks = fenced_blocks(question)
        answers = blocks["answer_a"], blocks["answer_b"]
        return "Tie" if answers[0] == answers[1] else "AB"[answers.index(better(answers))]

    config = tiny("rounds.pipeline=spin", "rounds.count=2", "rounds.early_stop=true", "dpo.lr=1e-2")
    result = align(config, tmp_path / "run", backends={"judge": Guide(compare)})
    found = json.loads((result.out / "M2/comparison.json").read_text("utf-8"))
    assert found["wins"] + found["ties"] + found["losses"] + found["unread"] == found["prompts"] == 16
    assert found["wins"] + found["losses"] > 0
    lost = found["wins"] < found["losses"]
    assert (result.exit_code == HALTED) is lost or (result.out / "M3/model").is_dir()
    if lost:
        assert result.halted.startswith("M2 loses head to head against M1 (")
        assert not (result.out / "M3").exists()
    asks_no_more_than_estimated(result, config)


def judge_itself(system: str, question: str, draw: int) -> str:
    """A student that answers, judges (differently from draw to draw), and judges judgements."""
    if system == "You compare two judgements of an answer.":
        blocks = fenced_blocks(question)
        return "AB"[blocks["judgement_a"] < blocks["judgement_b"]]
    if "Score:" in question:
        return f"It is of some use, says draw {draw % 7}.\nScore: {number(question, draw) % 6}"
    return f"an answer, number {draw % 5}"


def test_judgements_are_judged_and_judge_examples_come_back(tmp_path: Path) -> None:
    config = tiny(
        "rounds.pipeline=self_reward",
        "rounds.count=2",
        "rounds.eft_replay=0.2",
        "judging.question=additive",
        "gate.enabled=false",
        "meta_judge.enabled=true",
        "meta_judge.rounds=1",
        "meta_judge.samples=3",
        "meta_judge.answers=10",
        "meta_judge.share=0.25",
    )
    result = align(config, tmp_path / "run", backends={"student": Guide(judge_itself)})
    assert (result.exit_code, result.halted) == (0, "")
    pairs = lines(result.out / "M2/judge_pairs.jsonl")
    assert 0 < len(pairs) <= 10
    assert all("Score: " in row["chosen"] and row["chosen"] != row["rejected"] for row in pairs)
    assert not (result.out / "M3/judge_pairs.jsonl").exists()
    facts = [json.loads((result.out / f"stages/{name}.dpo.json").read_text())["result"] for name in ("M2", "M3")]
    first, second = facts
    assert first["judge_pairs"] > 0
    assert first["judge_pairs"] <= 0.25 * (first["pairs"] + first["judge_pairs"])
    assert second["judge_pairs"] == 0
    assert first["replayed"] > 0
    assert second["replayed"] > 0
    for row in facts:
        # The tiny model's context is too short for the additive question.
        assert sum(row["counts"].values()) == row["pairs"] + row["judge_pairs"] + row["replayed"]
    asks_no_more_than_estimated(result, config)


def test_a_run_that_was_halted_goes_on_under_another_gate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    strict = ("rounds.pipeline=teacher_reward", "testbed.judge_reliability=0.5", "testbed.anchors=60")
    assert align(tiny(*strict), out).exit_code == HALTED
    result = align(tiny(*strict, "gate.enabled=false"), out)
    assert (result.exit_code, result.halted) == (0, "")
    done = [report.stage for report in result.stages if not report.skipped]
    assert done == ["M2.gate", "M2.pairs", "M2.dpo", "M2.check", "export"]
    assert sum(row.attempts for row in result.traffic if row.role == "judge") == 0
    assert align(tiny(*strict), out).exit_code == HALTED


def test_a_panel_judges_together(tmp_path: Path) -> None:
    class Panel(Guide):
        """Each model has its own opinion, and one writes what nobody can read."""

        async def complete(self, request: Request) -> Completion:
            points = {"one": 5, "two": number(request.messages) % 3, "three": None}[request.model]
            return Completion("?" if points is None else f"Score: {points}", "stop", Usage(1, 1), model=request.model)

    config = tiny(
        "rounds.pipeline=teacher_reward",
        "llm.judge.model=one",
        'judging.panel=["two", "three"]',
        "gate.enabled=false",
        "judging.samples=1",
    )
    backends = {"student": Guide(judge_itself), "judge": Panel(judge_itself)}
    result = align(config, tmp_path / "run", backends=backends)
    assert result.exit_code == 0
    rows = lines(result.out / "M2/judgements.jsonl")
    assert {row["judge"] for row in rows} == {"panel(one, two, three)"}
    for row in rows:
        one, two, three = row["samples"]
        assert (one, three) == (5.0, None)
        assert row["score"] == (one + two) / 2
    asks_no_more_than_estimated(result, config)
    gate = json.loads((result.out / "M2/gate.json").read_text("utf-8"))
    assert gate["parse_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['judging.panel=["a", "a"]'], "expected each model once"),
        (['judging.panel=["a", "b"]', "llm.judge.model=b"], "'b', which is llm.judge.model; expected each judge once"),
        (['judging.panel=["a"]', "llm.judge.backend=transformers"], "and 'transformers' holds one"),
        (["judging.quorum=2"], "quorum is 2, of 1 judges; expected at most as many"),
    ],
)
def test_a_panel_has_different_judges(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("llm.judge.model=c", *overrides)
