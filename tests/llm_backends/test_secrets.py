"""A marked key goes through everything; then every byte that was written, logged or raised is searched for it."""

import copy
import io
import json
import logging
import pickle
import traceback
from pathlib import Path

import pytest
from aiohttp import web

from instructgym.errors import AuthenticationFailed, BackendError, ConfigError
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.secret import Secret, public_url, read_key
from instructgym.llm_backends.stack import open_stack

from .fakes import ask

MARK = "sk-MARKED-0123456789abcdef"


async def spiteful(request: web.Request) -> web.Response:
    """Quotes the key in whatever it answers."""
    key = request.headers["Authorization"].removeprefix("Bearer ")
    assert key == MARK
    kind = json.loads(await request.read())["messages"][0]["content"]
    if kind == "good":
        return web.json_response({"choices": [{"message": {"content": "hi"}}]})
    if kind == "broken":
        return web.Response(text=f"<html>{'x' * 5}", content_type="text/html")
    error = {"error": {"message": f"Incorrect API key provided: {key}. ", "code": "invalid_api_key"}}
    return web.json_response(error, status=int(kind))


def assert_no_file_holds_the_mark(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert MARK.encode() not in path.read_bytes()


async def test_no_byte_written_logged_or_raised_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MARKED_KEY", MARK)
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", spiteful)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    raised: list[str] = []
    try:
        transport = OpenAICompatibleBackend(url, api_key_env="MARKED_KEY")
        stack = open_stack(transport, ledger_path=tmp_path / "ledger.sqlite", max_attempts=1)
        for kind in ("good", "broken", "400", "401", "403", "404", "418", "429", "500"):
            try:
                await stack.backend.complete(ask(kind))
            except BackendError as error:
                raised.append("".join(traceback.TracebackException.from_exception(error).format()))
                raised.append(f"{error} {error!r} {error.args} {error.__dict__}")
        assert len(raised) == 16
        assert any("[hidden]" in text for text in raised)
        raised.append(f"{transport!r} {transport} {stack!r}")
        rows = list(stack.store.rows())
        await stack.aclose()
        raised.append(repr(rows))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        await runner.cleanup()
    assert "HTTP Request: POST http" not in logged.getvalue()  # the HTTP client's INFO log
    out, err = capfd.readouterr()
    for text in (*raised, logged.getvalue(), out, err):
        assert MARK not in text
    assert_no_file_holds_the_mark(tmp_path)


def test_secret_shows_itself_only_when_asked():
    secret = Secret(MARK)
    assert (
        f"{secret} {secret!r} {[secret]} {secret:}"
        == "Secret([hidden]) Secret([hidden]) [Secret([hidden])] Secret([hidden])"
    )
    assert secret.reveal() == MARK
    assert secret.redact(f"key {MARK}!") == "key [hidden]!"
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"^a Secret is not pickled"):
            leak(secret)


def test_key_that_no_header_may_carry_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MARKED_KEY", f"{MARK}\n{MARK}")
    with pytest.raises(AuthenticationFailed) as caught:
        read_key("MARKED_KEY")
    assert MARK not in str(caught.value)
    monkeypatch.setenv("MARKED_KEY", f"  {MARK}\n")
    assert read_key("MARKED_KEY").reveal() == MARK


def test_password_in_the_url_is_refused_and_not_shown():
    url = "http://user:hunter2@127.0.0.1:9/v1"
    assert public_url(url + "?token=hunter2") == "http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError) as caught:
        OpenAICompatibleBackend(url)
    assert str(caught.value) == (
        "base_url http://127.0.0.1:9/v1 carries a user name or password; "
        "take it out, and put the key into the environment variable OPENAI_API_KEY"
    )


def test_short_key_of_a_local_server_does_not_garble_messages():
    assert Secret("x").redact("exceeded") == "exceeded"
    assert not Secret("x").within("exceeded")
