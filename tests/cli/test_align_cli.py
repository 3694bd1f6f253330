from __future__ import annotations

import re
from pathlib import Path

import pytest

from instructgym.train.alignment.pipelines import PIPELINES

from .conftest import Invoke


@pytest.mark.parametrize("pipeline", [name.replace("_", "-") for name in PIPELINES])
def test_a_dry_run_shows_every_stage_and_writes_nothing(
    invoke: Invoke, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("align", pipeline, "testbed", "--rounds", "2", "--set", "prompts.count=7", "--dry-run")
    assert result.exit_code == 0, result.stderr
    stages = re.findall(r"^ (M\d\.\w+|\w+) ", result.stdout, re.M)
    assert stages[1:5] == ["student", "ift", "eft", "sft"]
    assert stages[-1] == "export"
    candidates = re.search(r"^ M2\.candidates +student +M1 +(\d+) ", result.stdout, re.M)
    assert candidates is not None
    assert int(candidates[1]) == (28 if PIPELINES[pipeline.replace("-", "_")].judged else 7)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_finds_what_is_missing(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(
        *("align", "spin", "testbed", "--dry-run"),
        *("--set", "prompts.source=file", "--set", f"prompts.path={tmp_path / 'none.jsonl'}"),
    )
    assert result.exit_code == 2
    assert "none.jsonl" in result.stderr


def test_what_is_set_by_hand_wins_over_the_pipelines_command(invoke: Invoke) -> None:
    result = invoke("align", "spin", "testbed", "--dry-run", "--set", 'rounds.schedule=["teacher_demo"]')
    assert result.exit_code == 0
    assert "M2.demonstrations" in result.stdout
