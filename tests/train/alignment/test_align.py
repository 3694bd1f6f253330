"""An alignment from end to end, in the testbed with a model that is far too small to be any good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from instructgym.errors import BudgetExhausted, ConfigError, RunFolderError
from instructgym.train.alignment.align import HALTED, AlignmentResult, align
from instructgym.train.alignment.config import AlignmentConfig, load_alignment
from instructgym.train.alignment.plan import plan
from instructgym.train.alignment.status import status

pytestmark = pytest.mark.slow

TINY = (
    "testbed.steps=40",
    "testbed.hidden_size=32",
    "testbed.layers=2",
    "testbed.ift=48",
    "testbed.eft=32",
    "testbed.anchors=20",
    "testbed.held_out=16",
    "prompts.count=16",
    "candidates.max_tokens=20",
    "judging.samples=3",
    "judging.expectation=false",
    "pairs.min_margin=0.1",
    "rounds.count=1",
    "sft.lr=1e-3",
    "dpo.lr=1e-4",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def tiny(*overrides: str) -> AlignmentConfig:
    return load_alignment("testbed", [*TINY, *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the ledger and the lock, whose bytes hold times."""
    skip = ("ledger", ".lock")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(skip)
    }


def names(result: AlignmentResult, *, skipped: bool) -> Sequence[str]:
    return [report.stage for report in result.stages if report.skipped is skipped]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> AlignmentResult:
    return align(tiny("rounds.pipeline=teacher_reward"), tmp_path_factory.mktemp("align") / "run")


def test_every_stage_of_a_teacher_reward_run_leaves_its_files(finished: AlignmentResult) -> None:
    assert names(finished, skipped=False) == [
        "student",
        "ift",
        "eft",
        "sft",
        "M0.check",
        "M1.check",
        "M2.prompts",
        "M2.candidates",
        "M2.judge",
        "M2.gate",
        "M2.pairs",
        "M2.dpo",
        "M2.check",
        "export",
    ]
    assert (finished.exit_code, finished.halted) == (0, "")
    for name in ("M0/model", "M1/model", "M2/model"):
        assert {path.name for path in (finished.out / name).iterdir()} >= {"config.json", "model.safetensors"}
    gate = json.loads((finished.out / "M2/gate.json").read_text("utf-8"))
    assert gate["passed"] is True
    assert gate["anchors_read"] == 20


def test_the_same_command_again_does_nothing(finished: AlignmentResult) -> None:
    before = contents(finished.out)
    again = align(tiny("rounds.pipeline=teacher_reward"), finished.out)
    assert names(again, skipped=False) == []
    assert contents(finished.out) == before


def test_a_pair_leads_back_to_its_judgements_answers_prompt_and_models(finished: AlignmentResult) -> None:
    lineage = [json.loads(line) for line in (finished.out / "lineage.jsonl").read_text("utf-8").splitlines()]
    pairs = [json.loads(line) for line in (finished.out / "preferences/pairs.jsonl").read_text("utf-8").splitlines()]
    assert [row["pair"] for row in lineage] == [row["id"] for row in pairs]
    assert len(pairs) > 0
    candidates = {
        (row["prompt"], f"M1/{row['index']}"): row["text"].strip()
        for row in map(json.loads, (finished.out / "M2/candidates.jsonl").read_text("utf-8").splitlines())
    }
    for row, pair in zip(lineage, pairs, strict=True):
        assert row["trained_from"].startswith("M1@")
        assert row["led_to"].startswith("M2@")
        scores = {judgement["candidate"]: judgement["score"] for judgement in row["judgements"]}
        best, worst = (int(row[side].rpartition("/")[2]) for side in ("chosen_from", "rejected_from"))
        assert scores[best] == pair["chosen_score"] == max(scores.values())
        assert scores[worst] == pair["rejected_score"] < scores[best]
        assert pair["chosen"].strip() == candidates[row["prompt"], f"M1/{best}"]


def test_the_export_is_what_trl_reads(finished: AlignmentResult) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(finished.out / "preferences/pairs.parquet")
    rows = [json.loads(line) for line in (finished.out / "preferences/pairs.jsonl").read_text("utf-8").splitlines()]
    assert table.to_pylist() == rows
    assert {"prompt", "chosen", "rejected"} <= set(table.column_names)
    card = (finished.out / "preferences/README.md").read_text("utf-8")
    assert "TESTBED" in card
    assert f"{len(rows)} pairs of 1 rounds" in card


def test_status_reads_a_folder(finished: AlignmentResult) -> None:
    found = status(finished.out)
    assert found.next_stage == ""
    assert {stage.state for stage in found.stages} == {"finished"}


def test_another_config_in_the_same_folder_is_refused(finished: AlignmentResult) -> None:
    with pytest.raises(RunFolderError, match=r"holds another run: its dpo\.beta is 0\.1, here it is 0\.2"):
        align(tiny("rounds.pipeline=teacher_reward", "dpo.beta=0.2"), finished.out)


def test_one_round_more_keeps_what_is_there(finished: AlignmentResult) -> None:
    config = tiny("rounds.pipeline=teacher_reward", "rounds.count=2")
    wanted = [step.name for step in plan(config)]
    assert [name for name in wanted if name.startswith("M3")] == [
        f"M3.{stage}" for stage in ("prompts", "candidates", "judge", "gate", "pairs", "dpo", "check")
    ]


def test_a_student_that_cannot_judge_is_halted_by_the_gate(tmp_path: Path) -> None:
    result = align(tiny("rounds.pipeline=self_reward"), tmp_path / "run")
    assert result.exit_code == HALTED
    assert result.halted.startswith("the judge gate halted the run before M2: ")
    assert "could be read (at least 95% expected)" in result.halted
    assert not (result.out / "M2/model").exists()
    assert status(result.out).halted == result.halted


def test_a_judge_at_chance_is_halted_by_the_gate(tmp_path: Path) -> None:
    config = tiny("rounds.pipeline=teacher_reward", "testbed.judge_reliability=0.5", "testbed.anchors=60")
    result = align(config, tmp_path / "run")
    assert result.exit_code == HALTED
    assert "anchor" in result.halted


def test_teacher_demonstrations_and_human_answers_need_no_judge(tmp_path: Path) -> None:
    schedule = tiny('rounds.schedule=["teacher_demo", "spin"]')
    result = align(schedule, tmp_path / "run")
    assert (result.exit_code, result.halted) == (0, "")
    pairs = [json.loads(line) for line in (result.out / "preferences/pairs.jsonl").read_text("utf-8").splitlines()]
    assert {(row["round"], row["pipeline"], row["chosen_from"]) for row in pairs} == {
        ("M2", "teacher_demo", "teacher/0"),
        ("M3", "spin", "human"),
    }
    prompts = [
        {row["id"] for row in map(json.loads, (result.out / f"{name}/prompts.jsonl").read_text("utf-8").splitlines())}
        for name in ("M2", "M3")
    ]
    assert prompts[0].isdisjoint(prompts[1])


def test_a_spent_budget_stops_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(BudgetExhausted):
        align(tiny("rounds.pipeline=teacher_demo", "budget.teacher.max_calls=5"), out)
    assert status(out).next_stage == "M2.demonstrations"
    result = align(tiny("rounds.pipeline=teacher_demo"), out)
    assert result.exit_code == 0
    assert names(result, skipped=True)[:4] == ["student", "ift", "eft", "sft"]
    (row,) = [row for row in result.traffic if row.role == "teacher"]
    assert (row.hits, row.attempts) == (5, 11)


_CHILD = """
import sys
import torch
torch.set_num_threads(1)
from instructgym.train.alignment.align import align
from instructgym.train.alignment.config import load_alignment
align(load_alignment("testbed", sys.argv[2:]), sys.argv[1])
"""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    finished: AlignmentResult, tmp_path: Path
) -> None:
    """Killed once in each of several stages; what it leaves is what the undisturbed run left."""
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", _CHILD, str(out), *TINY, "rounds.pipeline=teacher_reward"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stage in ("sft", "M2.dpo"):
        child = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
        begun = out / "stages" / f"{stage}.json"
        deadline = time.monotonic() + 120
        while not begun.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert subprocess.run(arguments, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert contents(out) == contents(finished.out)


def test_pairs_that_are_all_dropped_name_the_filter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^round M2 has no pairs to learn from\. Of 16 prompts none gave a pair\."):
        align(tiny("rounds.pipeline=teacher_reward", "pairs.min_margin=6"), tmp_path / "run")


def test_a_pipeline_of_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no pipeline 'self_rewards'; did you mean 'self_reward'\?"):
        tiny("rounds.pipeline=self_rewards")


def test_what_only_the_testbed_has_needs_its_student(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.source is 'testbed', and student\.model is not"):
        tiny("student.model=somewhere")
