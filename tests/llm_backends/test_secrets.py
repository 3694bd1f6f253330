"""A marked key goes through everything; then every byte that was written, logged or raised is searched for it."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from instructgym.errors import AuthenticationFailed, BackendError, ConfigError
from instructgym.llm_backends.budget import Budget
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.secret import Secret, layers, public_url, read_key
from instructgym.llm_backends.server import FAULTS, ServerBehaviour, SimulatedServer
from instructgym.llm_backends.stack import open_stack

from .fakes import EchoAnswerer, ask
from .raw_http import GOOD, free_port, hang_up, http, serving
from .tls import certificate

MARK = "sk-MARKED-0123456789abcdef"


async def spiteful(request: web.Request) -> web.StreamResponse:
    """Quotes the key in whatever it answers."""
    key = request.headers["Authorization"].removeprefix("Bearer ")
    assert key == MARK
    kind = json.loads(await request.read())["messages"][0]["content"]
    quoting = {"X-Your-Key": key}
    if kind == "good":
        return web.json_response({"choices": [{"message": {"content": "hi"}}]}, headers=quoting)
    if kind == "broken":
        return web.Response(text=f"<html>{key}", content_type="text/html", headers=quoting)
    if kind == "cut":
        return web.Response(text=f'{{"{key}', content_type="application/json", headers=quoting)
    if kind == "mute":
        await asyncio.sleep(2)
    return await spiteful_status(request, int(kind) if kind.isdigit() else 500)


async def spiteful_status(request: web.Request, status: int = 401) -> web.Response:
    key = request.headers["Authorization"].removeprefix("Bearer ")
    error = {"error": {"message": f"Incorrect API key provided: {key}. ", "code": "invalid_api_key", "param": key}}
    return web.json_response(error, status=status, headers={"X-Your-Key": key, "Location": f"http://x.example/{key}"})


def assert_no_file_holds_the_mark(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert MARK.encode() not in path.read_bytes()


def shown(error: BaseException) -> str:
    """All that a log, a debugger's report or a curious user could print of an error: with local variables, and with
    the causes that a traceback leaves out."""
    texts = []
    for layer in layers(error):
        report = traceback.TracebackException.from_exception(layer, capture_locals=True, compact=False)
        texts += report.format(chain=True)
        texts.append(f"{layer} {layer!r} {layer.args!r} {vars(layer)!r}")
    return "".join(texts)


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """What all loggers say at DEBUG, those of the HTTP layers and of asyncio among them."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    loggers = [logging.getLogger(name) for name in (None, "aiohttp", "aiohttp.client", "openai", "httpx2", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    loggers[0].addHandler(handler)
    yield logged
    loggers[0].removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def marked_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKED_KEY", MARK)


@asynccontextmanager
async def spiteful_server() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", spiteful)
    app.router.add_get("/v1/models", spiteful_status)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


async def test_no_byte_written_logged_or_raised_holds_the_key(
    tmp_path: Path, marked_key: None, everything_logged: io.StringIO, capfd: pytest.CaptureFixture[str]
):
    asyncio.get_running_loop().set_debug(True)
    raised: list[str] = []
    kinds = ("good", "broken", "cut", "mute", "301", "400", "401", "403", "404", "418", "429", "500")
    async with spiteful_server() as url:
        transport = OpenAICompatibleBackend(url, api_key_env="MARKED_KEY", timeout_s=0.3)
        stack = open_stack(
            transport,
            ledger_path=tmp_path / "ledger.sqlite",
            max_attempts=2,
            deadline_s=None,
            backoff_s=0.01,
            budget=Budget(max_tokens=10**6),
        )
        for kind in kinds:
            try:
                await stack.backend.complete(ask(kind))
            except BackendError as error:
                raised.append(shown(error))
        assert len(raised) == len(kinds) - 1
        assert sum("[hidden]" in text for text in raised) >= 9
        with pytest.raises(AuthenticationFailed) as refused:
            await transport.check()
        leaving = asyncio.create_task(transport.complete(ask("mute")))
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await leaving
        raised += [shown(refused.value), shown(cancelled.value), f"{transport!r} {transport} {stack!r}"]
        raised.append(repr(list(stack.store.rows())))
        assert_no_file_holds_the_mark(tmp_path)  # with the write-ahead log beside it
        await stack.aclose()
    assert_no_file_holds_the_mark(tmp_path)
    out, err = capfd.readouterr()
    for text in (*raised, everything_logged.getvalue(), out, err):
        assert MARK not in text


async def test_endpoint_that_is_not_there_or_not_trusted_shows_no_key(
    tmp_path: Path, marked_key: None, everything_logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    expired = certificate(tmp_path, days=-1)
    raised: list[str] = []
    async with serving(http(200, GOOD), tls=expired.context) as (tls_url, _), serving(hang_up) as (hanging_up, _):
        for url in (f"http://127.0.0.1:{free_port()}/v1", tls_url, hanging_up, "http://no-such-host.invalid/v1"):
            transport = OpenAICompatibleBackend(url, api_key_env="MARKED_KEY")
            with pytest.raises(BackendError) as caught:
                await transport.complete(ask())
            raised.append(shown(caught.value))
            await transport.aclose()
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{MARK}@127.0.0.1:{free_port()}")
    transport = OpenAICompatibleBackend("http://endpoint.example/v1", api_key_env="MARKED_KEY")
    with pytest.raises(BackendError) as caught:
        await transport.complete(ask())
    raised.append(shown(caught.value))
    await transport.aclose()
    monkeypatch.setenv("ALL_PROXY", f"socks5://user:{MARK}@127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    for no_proxy in ("", "endpoint.example"):
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with pytest.raises(ConfigError) as misconfigured:
            await OpenAICompatibleBackend("https://endpoint.example/v1", api_key_env="MARKED_KEY").complete(ask())
        raised.append(shown(misconfigured.value))
    for text in (*raised, everything_logged.getvalue()):
        assert MARK not in text
        assert base64.b64encode(f"user:{MARK}".encode()).decode() not in text


async def test_run_with_faults_writes_no_key(
    tmp_path: Path, marked_key: None, everything_logged: io.StringIO, capfd: pytest.CaptureFixture[str]
):
    behaviour = ServerBehaviour(fault_rate=0.5, faults=(*FAULTS, "400", "hang"), retry_after_s=0.01)
    raised: list[str] = []
    async with SimulatedServer(EchoAnswerer(), behaviour) as server:
        transport = OpenAICompatibleBackend(server.base_url, api_key_env="MARKED_KEY", timeout_s=0.3)
        stack = open_stack(transport, ledger_path=tmp_path / "ledger.sqlite", max_attempts=2, backoff_s=0.01)
        ends = await asyncio.gather(*(stack.backend.complete(ask(str(i))) for i in range(200)), return_exceptions=True)
        raised += [shown(end) for end in ends if isinstance(end, BaseException)]
        assert len(raised) > 10
        assert_no_file_holds_the_mark(tmp_path)
        await stack.aclose()
    assert_no_file_holds_the_mark(tmp_path)
    for text in (*raised, everything_logged.getvalue(), *capfd.readouterr()):
        assert MARK not in text


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
