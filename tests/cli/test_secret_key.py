"""A marked key goes through everything that the command line does, and no byte that was written holds it."""

from __future__ import annotations

from pathlib import Path

from instructgym.llm_backends.server import FAULTS, ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from tests.cli.conftest import TINY, run_process

KEY = "sk-marked-7f3a9c51e2d84b06"


def test_no_byte_that_the_command_line_writes_holds_the_key(tmp_path: Path, seeds_file: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    environment = {"OPENAI_API_KEY": KEY, "HOME": str(home), "TMPDIR": str(home)}
    said = []
    behaviour = ServerBehaviour(fault_rate=0.1, faults=(*FAULTS, "400"), retry_after_s=0.0)
    with SimulatedServer(SimulatedBackend(), behaviour).in_thread() as server:
        endpoint = ("--backend", "openai", "--base-url", server.base_url, "--model", "simulated")
        small = ("--seeds", seeds_file, *TINY, "--set", "retry.backoff_s=0.01", "--out", run)
        for arguments in (
            ("run", "quickstart", *small, *endpoint),
            ("run", "quickstart", *small, *endpoint, "--dry-run"),
            (
                "evolve",
                "quickstart",
                "--policy",
                "random",
                *small,
                *endpoint[:-1],
                "no-such-model",
                "--out",
                run / "no",
            ),
            ("doctor", "--base-url", server.base_url, "--model", "simulated", "--out", tmp_path),
            ("show", run),
            ("show", run, "--chain", "0"),
            ("ledger", "stats", run),
            ("ledger", "show", run),
            ("ledger", "export", run, "--out", tmp_path / "calls.jsonl"),
            ("config", "show", run / "config.toml"),
        ):
            done = run_process(*arguments, timeout_s=120.0, **environment)
            assert "Traceback" not in done.stderr, (arguments, done.stderr)
            said += [done.stdout, done.stderr]
        assert server.stats()["requests"] > 50
    wrong_address = ("--backend", "openai", "--base-url", f"http://user:{KEY}@127.0.0.1:9/v1", "--model", "m")
    refused = run_process("run", "quickstart", "--seeds", seeds_file, *wrong_address, "--out", run / "x", **environment)
    assert refused.returncode == 2
    said += [refused.stdout, refused.stderr]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "report.html", "summary.json", "config.toml"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert [text for text in said if KEY in text] == []
