"""The main job from end to end on the simulated backend."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import ActionSetError, BudgetExhausted, ConfigError, RunFolderError, SeedError, ServerError
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.train.export import COLUMNS
from instructgym.train.pipeline import ALL, run
from instructgym.types import Completion, Request

from .conftest import SEEDS, small_config

RESULTS = ("dataset", "lineage.jsonl", "summary.json", "agent")


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def contents(out: Path) -> dict[str, bytes]:
    """The files that must be the same after any number of interruptions."""
    files = [file for name in RESULTS for file in ([out / name] if (out / name).is_file() else (out / name).rglob("*"))]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(files) if file.is_file()}


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def say(self, text: str) -> None:
        self.events.append(("say", text))

    def started(self, stage: str, total: int | None) -> None:
        self.events.append(("started", stage, total))

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self.events.append(("advance", stage, done))

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        self.events.append(("finished", stage, skipped))


def test_a_run_leaves_what_the_design_says(finished_run: Path) -> None:
    names = {file.relative_to(finished_run).as_posix() for file in finished_run.rglob("*") if file.is_file()}
    wanted = {
        "config.toml",
        "ledger.sqlite",
        "lineage.jsonl",
        "summary.json",
        "report.html",
        "agent/agent.json",
        "dataset/sft_alpaca.jsonl",
        "dataset/sft_messages.jsonl",
        "dataset/sft.parquet",
        "dataset/rejected.jsonl",
        "dataset/README.md",
    }
    assert wanted <= names
    assert not any(name.endswith((".tmp", ".partial.jsonl")) for name in names)


def test_the_dataset_has_exactly_the_columns_in_all_three_forms(finished_run: Path) -> None:
    import pyarrow.parquet as pq

    alpaca = rows_of(finished_run / "dataset/sft_alpaca.jsonl")
    assert alpaca
    assert all(tuple(row) == COLUMNS for row in alpaca)
    table = pq.read_table(finished_run / "dataset/sft.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table.to_pylist() == alpaca
    messages = rows_of(finished_run / "dataset/sft_messages.jsonl")
    assert [row["id"] for row in messages] == [row["id"] for row in alpaca]
    for row, chat in zip(alpaca, messages, strict=True):
        prompt = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        assert chat["messages"] == [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": row["output"]},
        ]
        assert set(chat) == {"id", "messages", *COLUMNS[4:]}


def test_types_of_the_columns(finished_run: Path) -> None:
    for row in rows_of(finished_run / "dataset/sft_alpaca.jsonl"):
        assert all(isinstance(row[name], str) for name in ("id", "instruction", "input", "output", "seed_id"))
        assert isinstance(row["chain"], int)
        assert isinstance(row["incomplete"], bool)
        assert len(row["operations"]) == len(row["rewards"]) >= 1
        assert row["models"] == {"instructor": "ppo", "expert": "simulated-1", "reviewer": "simulated-1"}
        assert row["prompt_versions"] == ["answer/1", "rewrite/1"]


def test_a_row_is_the_last_accepted_step_of_its_chain(finished_run: Path) -> None:
    accepted: dict[int, list[dict[str, Any]]] = {}
    lineage = rows_of(finished_run / "lineage.jsonl")
    assert [(row["chain"], row["step"]) for row in lineage] == sorted((row["chain"], row["step"]) for row in lineage)
    for step in lineage:
        if step["accepted"]:
            accepted.setdefault(step["chain"], []).append(step)
    for row in rows_of(finished_run / "dataset/sft_alpaca.jsonl"):
        steps = accepted[row["chain"]]
        assert {"instruction": row["instruction"], "input": row["input"]} == steps[-1]["child"]
        assert row["operations"] == [step["operation"] for step in steps]
        assert row["rewards"] == [step["reward"] for step in steps]
    kept = rows_of(finished_run / "dataset/sft_alpaca.jsonl") + rows_of(finished_run / "dataset/rejected.jsonl")
    assert {row["chain"] for row in kept} == set(accepted)


def test_the_summary_compares_policies_at_equal_expert_calls(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text("utf-8"))
    policies = summary["evaluation"]["policies"]
    assert list(policies) == ["trained", "random", "fixed:deepen"]
    assert summary["evaluation"]["held_out"] is True
    assert {row["expert_calls"] for row in policies.values()} == {2 * 2}  # two held-out seeds, horizon 2
    assert summary["simulated"] == ["expert", "reviewer"]


def test_the_accounting_adds_up(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text("utf-8"))
    queries = summary["queries"]
    by_place = {(row["stage"], row["role"]): row["calls"] for row in queries["rows"]}
    assert by_place["train", "expert"] == 64
    assert by_place["evolve", "expert"] == len(SEEDS) * 2 == summary["evolve"]["expert_calls"]
    assert by_place["evolve", "reviewer"] == summary["evolve"]["reviewer_calls"]
    assert queries["total"]["calls"] == sum(by_place.values())
    assert queries["evol_instruct_calls"] == 624_000
    assert queries["total"]["share_of_evol_instruct"] == round(sum(by_place.values()) / 624_000, 6)


def test_summary_holds_no_times_and_no_hits(finished_run: Path) -> None:
    text = (finished_run / "summary.json").read_text("utf-8")
    assert not re.search(r'"[^"]*(time|seconds|_s|hits|duration|date)"\s*:', text)


def test_the_card_says_what_is_simulated_and_whose_seeds(finished_run: Path) -> None:
    card = (finished_run / "dataset/README.md").read_text("utf-8")
    assert "**SIMULATED.**" in card
    assert "simulated-1" in card
    assert "8 of the user's seeds, licence: unknown" in card


def test_the_report_is_one_escaped_file(seeds_file: Path, tmp_path: Path, finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text("utf-8")
    assert "SIMULATED" in page
    assert "fixed:deepen" in page
    assert "<script" not in page
    assert "http://" not in page
    (tmp_path / "x.jsonl").write_text('{"instruction": "Explain the tag <script>alert(1)</script> to a beginner."}\n')
    config = small_config(tmp_path / "x.jsonl", "evolve.policy=fixed:deepen")
    run(config, tmp_path / "run", stages=["evolve"])
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_same_config_again_skips_every_stage(finished_run: Path, seeds_file: Path) -> None:
    before = contents(finished_run)
    recorder = Recorder()
    result = run(small_config(seeds_file), finished_run, progress=recorder)
    assert [(report.stage, report.skipped) for report in result.stages] == [(stage, True) for stage in ALL]
    assert contents(finished_run) == before
    assert [event for event in recorder.events if event[0] == "started"] == []


def test_another_config_in_the_same_folder_is_refused(finished_run: Path, seeds_file: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        run(small_config(seeds_file, "train.steps=96"), finished_run)
    assert str(caught.value) == (
        f"'{finished_run}' holds another run: its train.steps is 64, here it is 96 (stage 'train' has begun there). "
        "Choose another folder, or give the same config."
    )


def test_changed_seeds_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "seeds.txt"
    path.write_text("Explain tides.\n")
    config = small_config(path, "evolve.policy=random")
    run(config, tmp_path / "run", stages=["evolve"])
    path.write_text("Explain tides to a child.\n")
    with pytest.raises(RunFolderError, match=r"its seeds\.path \(content\) is"):
        run(config, tmp_path / "run", stages=["evolve"])


def test_two_runs_of_one_config_are_equal_to_the_byte(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    run(small_config(seeds_file, "limits.concurrency=1"), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(finished_run)


def test_a_deleted_file_is_made_again(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    (out / "dataset/sft.parquet").unlink()
    result = run(small_config(seeds_file), out)
    assert [report.stage for report in result.stages if not report.skipped] == ["export"]
    assert contents(out) == contents(finished_run)


def test_a_stage_without_its_inputs_is_refused(seeds_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        run(small_config(seeds_file), tmp_path / "run", stages=["respond"])
    assert str(caught.value) == (
        f"stage 'respond' needs stage 'evolve', which is not finished in '{tmp_path / 'run'}'. Run 'evolve' there "
        "first."
    )


def test_stages_one_by_one_give_what_one_run_gives(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    for stage in ALL:
        run(small_config(seeds_file), tmp_path / "run", stages=[stage])
    assert contents(tmp_path / "run") == contents(finished_run)


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("evolve.policy=fixed:deepn", "has no operation 'deepn'"),
        ("evolve.policy=nowhere", "unknown policy 'nowhere'"),
        ("env.observation=flatt", "did you mean 'flat'"),
        ('env.elimination=["coppy"]', "did you mean 'copy'"),
        ("reward.terms={noveltyy = 1.0}", "did you mean 'novelty'"),
        ("env.action_set=evol", "unknown action set 'evol'"),
    ],
)
def test_unknown_names_are_refused_before_a_folder_is_made(
    override: str, error: str, seeds_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=re.escape(error)) as caught:
        run(small_config(seeds_file, override), tmp_path / "run")
    assert getattr(caught.value, "exit_code", None) == 2
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_is_answered_with_the_nearest(seeds_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(small_config(seeds_file), tmp_path / "run", stages=["evolv"])
    assert str(caught.value) == (
        "unknown stage 'evolv'; did you mean 'evolve'? There are train, evaluate, evolve, respond, filter, export."
    )


def test_missing_seeds_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SeedError):
        run(small_config(tmp_path / "none.jsonl"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rejected_seeds_are_written_down(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Explain tides."}\n{"instruction": " "}\n{broken\n')
    run(small_config(path, "seeds.skip_bad=true", "evolve.policy=random"), tmp_path / "run", stages=["evolve"])
    assert [row["line"] for row in rows_of(tmp_path / "run/rejected_seeds.jsonl")] == [2, 3]


def test_a_spent_budget_stops_cleanly_and_a_larger_one_goes_on(
    finished_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with sqlite3.connect(finished_run / "ledger.sqlite") as ledger:
        (paid,) = ledger.execute("SELECT count(*) FROM attempts").fetchone()
    ledger.close()
    for calls in (40, paid // 2, paid - 3):  # in training, later, and among the answers
        with pytest.raises(BudgetExhausted) as caught:
            run(small_config(seeds_file, f"budget.max_calls={calls}"), out)
        assert caught.value.exit_code == 3
    assert run(small_config(seeds_file), out).exit_code == 0
    assert contents(out) == contents(finished_run)


Answer = Callable[[Request], Awaitable[Completion]]


class Faulty(SimulatedBackend):
    """Fails for good where `fails` says so."""

    fails: Callable[[Request], bool] = staticmethod(lambda request: False)

    async def complete(self, request: Request) -> Completion:
        if self.fails(request):
            raise ServerError("503 from the endpoint", status=503)
        return await super().complete(request)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[Faulty]:
    monkeypatch.setattr("instructgym.llm_backends.simulated.SimulatedBackend", Faulty)
    monkeypatch.setattr(Faulty, "fails", staticmethod(lambda request: False))
    return Faulty


def test_a_chain_whose_call_fails_goes_on_with_what_it_has(
    faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch, seeds_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        faulty,
        "fails",
        staticmethod(
            lambda request: request.stage == "evolve" and request.role == "expert" and request.sample == (1, 1)
        ),
    )
    config = small_config(seeds_file, "evolve.policy=random", "retry.max_attempts=1")
    result = run(config, tmp_path / "run", stages=["evolve", "respond", "filter", "export"])
    assert (result.exit_code, result.lost) == (4, 1)
    steps = [row for row in rows_of(tmp_path / "run/lineage.jsonl") if row["chain"] == 1]
    assert len(steps) == 2
    assert steps[1]["failure"] == "ServerError: 503 from the endpoint (gave up after 1 attempt)"
    assert (steps[1]["reward"], steps[1]["accepted"]) == (None, False)
    rows = rows_of(tmp_path / "run/dataset/sft_alpaca.jsonl") + rows_of(tmp_path / "run/dataset/rejected.jsonl")
    assert {row["chain"]: row["incomplete"] for row in rows}.get(1, steps[0]["accepted"]) is steps[0]["accepted"]
    assert sum(row["incomplete"] for row in rows) == int(steps[0]["accepted"])


def test_an_answer_that_fails_is_rejected_by_name_and_asked_again_on_request(
    faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch, seeds_file: Path, tmp_path: Path
) -> None:
    stages = ["evolve", "respond", "filter", "export"]
    config = small_config(seeds_file, "evolve.policy=fixed:breadth", "retry.max_attempts=1")
    monkeypatch.setattr(
        faulty, "fails", staticmethod(lambda request: request.stage == "respond" and request.sample == (0, 0))
    )
    assert run(config, tmp_path / "run", stages=stages).exit_code == 4
    lost = [row for row in rows_of(tmp_path / "run/dataset/rejected.jsonl") if row["reason"] == "no_answer"]
    assert len(lost) == 1
    monkeypatch.setattr(faulty, "fails", staticmethod(lambda request: False))
    assert run(config, tmp_path / "run", stages=stages).exit_code == 4  # final failures are replayed
    assert run(config, tmp_path / "run", stages=stages, retry_failed=True).exit_code == 0
    assert all(row["reason"] != "no_answer" for row in rows_of(tmp_path / "run/dataset/rejected.jsonl"))


def test_emit_all_gives_every_accepted_instruction(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(seeds_file, "evolve.policy=random", "evolve.emit=all")
    run(config, tmp_path / "run", stages=["evolve"])
    rows = rows_of(tmp_path / "run/stages/evolved.jsonl")
    assert len({row["id"] for row in rows}) == len(rows)
    lineage = rows_of(tmp_path / "run/lineage.jsonl")
    assert len(rows) == sum(row["accepted"] for row in lineage)


def test_stop_in_the_action_set_still_uses_equal_calls(seeds_file: Path, tmp_path: Path) -> None:
    config = small_config(
        seeds_file, "env.with_stop=true", "env.horizon=4", 'evaluate.policies=["random", "fixed:deepen"]'
    )
    run(config, tmp_path / "run", stages=["evaluate"])
    rows = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["evaluation"]["policies"]
    calls = {name: row["expert_calls"] for name, row in rows.items()}
    assert calls["fixed:deepen"] == 8
    assert 5 <= calls["random"] < 12, calls


def test_a_policy_of_another_action_set_is_refused(finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    policy = f"evolve.policy={json.dumps(str(finished_run / 'agent'))}"
    run(small_config(seeds_file, policy), tmp_path / "same", stages=["evolve"])
    with pytest.raises(ActionSetError, match="was saved for action set"):
        run(small_config(seeds_file, policy, "env.action_set=core"), tmp_path / "other", stages=["evolve"])


def test_progress_hears_of_every_stage(seeds_file: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    run(small_config(seeds_file, "evolve.policy=random"), tmp_path / "run", stages=["evolve"], progress=recorder)
    assert recorder.events[:2] == [
        ("say", f"seeds: {seeds_file} (alpaca JSONL, 8 instructions, 1 with input)"),
        ("say", "encoder: hashing:256"),
    ]
    assert recorder.events[2:] == [
        ("started", "evolve", 8),
        *[("advance", "evolve", done) for done in range(1, 9)],
        ("finished", "evolve", False),
    ]


def test_a_mistyped_name_that_led_to_nothing_does_not_claim_the_folder(tmp_path: Path, seeds_file: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ppo'"):
        run(small_config(seeds_file, "agent.name=pppo"), tmp_path / "run")
    assert run(small_config(seeds_file), tmp_path / "run").exit_code == 0


def test_what_training_writes_is_its_owners_alone(tmp_path: Path, seeds_file: Path) -> None:
    run(small_config(seeds_file), tmp_path / "run", stages=["train"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert set(modes.values()) == {0o700}
