"""What users get wrong, and what goes wrong for them: words, the exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend

from .conftest import COMMAND, Invoke, run_process

QUICK = ("evolve", "--policy", "round_robin", "--steps", "1")


def error_of(stderr: str) -> str:
    """The last error on stderr."""
    return stderr[stderr.rindex("error: ") :]


def test_missing_seeds_are_said_with_the_nearest_file(invoke: Invoke, seeds_file: Path, tmp_path: Path) -> None:
    wrong = seeds_file.with_name("seed.jsonl")
    result = invoke("run", "--seeds", wrong, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert str(wrong) in error_of(result.stderr)
    assert f"Did you mean {seeds_file}?" in error_of(result.stderr)
    assert not (tmp_path / "out").exists()


def test_unreadable_seeds_are_said(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", "--seeds", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert error_of(result.stderr).startswith(f"error: {tmp_path}: ")


def test_a_broken_line_is_named_and_nothing_is_written(invoke: Invoke, seeds_file: Path, tmp_path: Path) -> None:
    lines = seeds_file.read_text("utf-8").splitlines()
    lines[4] = lines[4][:-7]
    seeds_file.write_text("\n".join(lines), "utf-8")
    result = invoke(*QUICK, "--seeds", seeds_file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert error_of(result.stderr).startswith(f"error: {seeds_file}: line 5: not valid JSON (")
    assert error_of(result.stderr).endswith("Fix the record, or go on without it: --skip-bad.\n")
    assert not (tmp_path / "out").exists()


def test_skip_bad_goes_on_and_names_the_file_with_the_rejects(invoke: Invoke, seeds_file: Path, tmp_path: Path) -> None:
    bad = ['{"instruction": "cut', '{"instruction": "   "}', json.dumps({"instruction": "long " * 20_000})]
    with seeds_file.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(bad) + "\n")
        stream.flush()
    with seeds_file.open("ab") as stream:
        stream.write(b'{"instruction": "broken \xff byte"}\n')
    result = invoke(*QUICK, "--seeds", seeds_file, "--skip-bad", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "8 instructions, 0 with input, 4 rejected" in result.stderr
    rejects = tmp_path / "out" / "rejected_seeds.jsonl"
    assert f"wrote {rejects} (records that were no seeds, with reasons)" in result.stdout.replace("\n", " ")
    rows = [json.loads(line) for line in rejects.read_text("utf-8").splitlines()]
    assert [row["line"] for row in rows] == [9, 10, 11, 12]


def test_texts_of_every_script_come_through_unchanged(invoke: Invoke, tmp_path: Path) -> None:
    texts = ["اشرح كيف تعمل الأنهار", "解释河流是如何形成的", "Rank these by size: 🐘 🐁 👩‍👩‍👧‍👦"]
    seeds = tmp_path / "seeds.txt"
    seeds.write_text("\n".join(texts) + "\n", "utf-8")
    result = invoke(*QUICK, "--seeds", seeds, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "lineage.jsonl").read_text("utf-8").splitlines()]
    assert [row["parent"]["instruction"] for row in rows] == texts
    for chain, text in enumerate(texts):
        assert text in invoke("show", tmp_path / "out", "--chain", str(chain)).stdout


def test_duplicate_ids_are_said(invoke: Invoke, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"id": "a", "instruction": "One."}\n{"id": "a", "instruction": "Two."}\n', "utf-8")
    result = invoke(*QUICK, "--seeds", seeds, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert error_of(result.stderr).startswith(f"error: {seeds}: line 2: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "evolve.polcy=random"), "unknown key 'evolve.polcy'; did you mean 'evolve.policy'?"),
        (("--policy", "fixed:deepn"), "has no operation 'deepn'; did you mean 'deepen'?"),
        (("--action-set", "evol_instuct"), "unknown action set 'evol_instuct'; did you mean 'evol_instruct'?"),
        (("--set", "reward.terms.noveltie=1.0"), "unknown reward 'noveltie'; did you mean 'novelty'?"),
        (("--set", "env.horizon=none"), "'env.horizon' is 'none'; expected a valid integer"),
        (("--set", "horizon=3"), "override 'horizon=3'; expected section.key=value, e.g. train.steps=5000."),
        (("--format", "alpacca"), "unknown seeds format 'alpacca'"),
        (("--policy", "rondom"), "unknown policy 'rondom'"),
        (("--reviewer", "none", "--set", "reward.terms={reviewer_equality = 1.0}"), "--reviewer none leaves no reward"),
    ],
)
def test_wrong_names_are_said_with_the_nearest(
    invoke: Invoke, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = invoke("evolve", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in error_of(result.stderr)
    assert "Traceback" not in result.stderr


def test_a_folder_of_other_files_is_refused_and_left_alone(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    result = invoke(*QUICK, "--limit", "2", "--out", tmp_path)
    assert result.exit_code == 2
    assert error_of(result.stderr) == (
        f"error: '{tmp_path}' holds files that are no run's, 'thesis.tex' for one. Choose a new or empty folder.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = [*COMMAND, *QUICK, "--limit", "60", "--out", str(tmp_path / "out")]
    # A limit on the size of a file stands in for a full disk: the write fails at the same place.
    full = subprocess.run(["bash", "-c", 'ulimit -f 60; "$@"', "-", *arguments], capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    after = run_process(*arguments[len(COMMAND) :])
    assert after.returncode == 0, after.stderr
    assert len((tmp_path / "out" / "lineage.jsonl").read_text("utf-8").splitlines()) == 60


def test_a_spent_budget_ends_with_3_and_a_larger_one_goes_on(invoke: Invoke, tmp_path: Path) -> None:
    arguments = (*QUICK, "--reviewer", "none", "--limit", "6", "--out", tmp_path / "out")
    result = invoke(*arguments, "--set", "budget.max_calls=3")
    assert result.exit_code == 3
    assert "it goes on from here; what was paid for is kept." in result.stderr
    assert invoke(*arguments).exit_code == 0
    stats = invoke("ledger", "stats", tmp_path / "out").stdout
    assert re.search(r"^ expert +evolve +simulated-\d+ +6 +0 +6 ", stats, re.M)


def test_no_key_is_said_with_the_variable(invoke: Invoke, tmp_path: Path) -> None:
    endpoint = ("--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    result = invoke(*QUICK, "--limit", "2", "--out", tmp_path / "out", *endpoint)
    assert result.exit_code == 2
    assert "OPENAI_API_KEY" in error_of(result.stderr)


def test_no_model_is_said(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(*QUICK, "--out", tmp_path / "out", "--backend", "openai")
    assert result.exit_code == 2
    assert "backend 'openai' has no model for the expert; set llm.model" in error_of(result.stderr)


def test_an_endpoint_that_is_not_there_is_said(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    endpoint = ("--backend", "openai", "--base-url", base_url, "--model", "m")
    result = invoke(*QUICK, "--limit", "2", "--out", tmp_path / "out", *endpoint)
    assert result.exit_code == 2
    assert base_url in error_of(result.stderr)
    assert "Traceback" not in result.stderr


def test_an_endpoint_without_the_model_is_said(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with SimulatedServer(SimulatedBackend()).in_thread() as server:
        endpoint = ("--backend", "openai", "--base-url", server.base_url, "--model", "gpt-9")
        result = invoke(*QUICK, "--limit", "2", "--out", tmp_path / "out", *endpoint)
    assert result.exit_code == 2
    assert f"{server.base_url} does not list the model 'gpt-9' of the expert; it lists simulated" in result.stderr
    assert "gpt-9" in error_of(result.stderr)


def test_over_http_the_simulation_gives_the_same_rewrites(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    arguments = (*QUICK, "--limit", "4", "--out")
    with SimulatedServer(SimulatedBackend()).in_thread() as server:
        endpoint = ("--backend", "openai", "--base-url", server.base_url, "--model", "simulated")
        assert invoke(*arguments, tmp_path / "http", *endpoint).exit_code == 0
    assert invoke(*arguments, tmp_path / "here").exit_code == 0
    http, here = ((tmp_path / name / "lineage.jsonl").read_bytes() for name in ("http", "here"))
    assert http == here


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    behaviour = ServerBehaviour(latency_s=0.1)
    with SimulatedServer(SimulatedBackend(), behaviour).in_thread() as server:
        arguments = [*QUICK, "--reviewer", "none", "--limit", "16", "--concurrency", "4"]
        arguments += ["--out", str(tmp_path / "out")]
        arguments += ["--backend", "openai", "--base-url", server.base_url, "--model", "simulated"]
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while server.stats()["requests"] < 5:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert stderr.endswith("interrupted. The same command goes on from here; what was paid for is kept.\n")
        assert "Traceback" not in stderr
        assert server.stats()["requests"] < 16

        again = run_process(*arguments)
        assert again.returncode == 0, again.stderr
        assert server.stats()["repeated_bodies"] <= 4
        assert server.stats()["requests"] <= 20


def test_lost_items_end_with_4_until_they_are_asked_again(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    behaviour = ServerBehaviour(fault_rate=0.4, faults=("null_content",))
    with SimulatedServer(SimulatedBackend(), behaviour).in_thread() as server:
        arguments = [*QUICK, "--reviewer", "none", "--limit", "12", "--set", "retry.max_attempts=1"]
        arguments += ["--out", str(tmp_path / "out"), "--backend", "openai", "--base-url", server.base_url]
        arguments += ["--model", "simulated"]
        first = invoke(*arguments)
        assert first.exit_code == 4
        words = (
            r"finished, but failed calls or missing rewards ended work early: \d+ in evolve\. Ask again with the same "
            r"command and --retry-failed"
        )
        assert re.search(words, first.stderr)
        asked = server.stats()["requests"]
        assert invoke(*arguments).exit_code == 4
        assert server.stats()["requests"] == asked  # what failed for good is not asked again by itself
        codes = [invoke(*arguments, "--retry-failed").exit_code for _ in range(8)]
    assert codes[-1] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "lineage.jsonl").read_text("utf-8").splitlines()]
    assert [row["failure"] for row in rows] == [None] * 12
