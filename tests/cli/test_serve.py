from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import COMMAND, Invoke


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its base URL."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", line)
        assert found, line
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def ask(base_url: str, path: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base_url}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        answer: dict[str, object] = json.load(reply)
    return answer


def test_serve_says_how_to_use_it_answers_and_ends_at_ctrl_c() -> None:
    with served("--seed", "3", "--model", "tiny") as (process, base_url):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == (
            f"  OPENAI_API_KEY=none instructgym run quickstart --backend openai --base-url {base_url} --model tiny\n"
        )
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Name three rivers."}], "seed": 1}
        assert ask(base_url, "/chat/completions", body) == ask(base_url, "/chat/completions", body)
        models = ask(base_url, "/models")["data"]
        assert isinstance(models, list)
        assert [model["id"] for model in models] == ["tiny"]
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 0
        assert stderr == "stopped after 2 requests\n"


def test_a_port_that_is_taken_is_said(invoke: Invoke) -> None:
    with served() as (_, base_url):
        port = base_url.rpartition(":")[2].removesuffix("/v1")
        result = invoke("serve", "--port", port)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")


def test_doctor_asks_the_endpoint(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with served() as (_, base_url):
        arguments = ("doctor", "--base-url", base_url, "--out", tmp_path, "--encoder", "hashing")
        good = invoke(*arguments, "--model", "simulated")
        assert good.exit_code == 0, good.stdout
        assert f"{base_url} answers; models: simulated" in good.stdout
        bad = invoke(*arguments, "--model", "gpt-9")
        assert bad.exit_code == 2
        assert "it has no model 'gpt-9'" in bad.stdout


def test_doctor_without_an_endpoint_needs_no_key(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("doctor", "--encoder", "hashing", "--out", tmp_path)
    assert result.exit_code == 0, result.stdout
    for word in ("instructgym", "torch", "device", "hashing", "OPENAI_API_KEY is not set", "free disk"):
        assert word in result.stdout


@pytest.mark.parametrize("option", [("--latency", "-1"), ("--fault-rate", "2"), ("--capacity", "0")])
def test_impossible_behaviour_is_refused(invoke: Invoke, option: tuple[str, str]) -> None:
    assert invoke("serve", *option).exit_code == 2
