"""The transport over real sockets."""

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    BadRequest,
    CallTimeout,
    ConfigError,
    ConnectionLost,
    ContentFiltered,
    ContextOverflow,
    EndpointUnreachable,
    MalformedReply,
    ModelNotFound,
    RateLimited,
    ServerError,
    UsageError,
)
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Completion, Usage

from .fakes import ask

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


def http(
    status: int, body: bytes, *, content_type: str = "application/json", length: int | None = None, **headers: str
):
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {length or len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def error(status: int, message: str, **fields: str) -> bytes:
    return http(status, json.dumps({"error": {"message": message, **fields}}).encode())


@asynccontextmanager
async def serving(
    *replies: bytes | Handler, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[dict]]]:
    """A raw socket server that gives `replies` in turn, the last one again and again; yields URL and bodies seen."""
    seen: list[dict] = []
    queue = list(replies)
    tasks: set[asyncio.Task] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                seen.append(json.loads(body) if body else {"get": head.split()[1].decode()})
                reply = queue.pop(0) if len(queue) > 1 else queue[0]
                if not isinstance(reply, bytes):
                    await reply(reader, writer)
                    return
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1", seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def backend(url: str, **options) -> AsyncIterator[OpenAICompatibleBackend]:
    transport = OpenAICompatibleBackend(url, **options)
    try:
        yield transport
    finally:
        await transport.aclose()


async def outcome(*replies: bytes | Handler, **options) -> Completion | BackendError:
    async with serving(*replies) as (url, _), backend(url, **options) as transport:
        try:
            return await transport.complete(ask())
        except BackendError as caught:
            return caught


async def reset_in_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, GOOD[:10], length=len(GOOD)))
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, b"", length=len(GOOD)))
    for byte in GOOD:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error(429, "slow down"), RateLimited, "rate limited (HTTP 429: slow down)"),
        (
            error(429, "You exceeded your current quota", code="insufficient_quota"),
            AuthenticationFailed,
            "the account of OPENAI_API_KEY has no quota left (HTTP 429: You exceeded your current quota)",
        ),
        (error(500, "oops"), ServerError, "the server failed (HTTP 500: oops)"),
        (
            http(503, b"<html>bad gateway</html>", content_type="text/html"),
            ServerError,
            "the server failed (HTTP 503: a web page)",
        ),
        (error(408, "late"), ServerError, "the server failed (HTTP 408: late)"),
        (error(409, "busy"), ServerError, "the server failed (HTTP 409: busy)"),
        (error(400, "bad temperature"), BadRequest, "the endpoint refuses the request (HTTP 400: bad temperature)"),
        (error(422, "bad field"), BadRequest, "the endpoint refuses the request (HTTP 422: bad field)"),
        (http(400, b'{"detail": "bad"}'), BadRequest, "the endpoint refuses the request (HTTP 400: bad)"),
        (http(400, b""), BadRequest, "the endpoint refuses the request (HTTP 400)"),
        (
            error(401, "bad key"),
            AuthenticationFailed,
            "the endpoint refuses the key in OPENAI_API_KEY (HTTP 401: bad key)",
        ),
        (error(403, "no"), AuthenticationFailed, "the endpoint refuses the key in OPENAI_API_KEY (HTTP 403: no)"),
        (
            error(400, "This model's maximum context length is 10 tokens", code="context_length_exceeded"),
            ContextOverflow,
            "the prompt does not fit the model's context (HTTP 400: This model's maximum context length is 10 tokens)",
        ),
        (
            error(400, "the request exceeds the available context size", type="exceed_context_size_error"),
            ContextOverflow,
            "the prompt does not fit the model's context (HTTP 400: the request exceeds the available context size)",
        ),
        (
            error(400, "triggering our content management policy", code="content_filter"),
            ContentFiltered,
            "the endpoint's content filter refused the prompt (HTTP 400: triggering our content management policy)",
        ),
        (http(200, GOOD[:-9]), MalformedReply, None),
        (
            http(200, b"<!doctype html><p>hi", content_type="text/html"),
            MalformedReply,
            "the endpoint answered with a web page instead of JSON; is the base URL right (does it end in /v1)?",
        ),
        (http(200, b'{"choices": []}'), MalformedReply, "the reply's list of choices is empty"),
        (
            http(200, b'{"choices":[{"message":{"content":null}}]}'),
            MalformedReply,
            "the reply's message has no content",
        ),
        (reset_in_the_body, ConnectionLost, None),
        (hang_up, ConnectionLost, None),
        (garbage, ConnectionLost, None),
    ],
)
async def test_each_failure_has_its_error(reply, kind, words):
    caught = await outcome(reply)
    assert type(caught) is kind, repr(caught)
    if words is not None:
        assert str(caught) == words


async def test_model_that_does_not_exist_is_named():
    async with serving(error(404, "The model does not exist")) as (url, _), backend(url) as transport:
        with pytest.raises(ModelNotFound) as caught:
            await transport.complete(ask(model="gpt-9"))
    assert str(caught.value) == (
        f"{url} has no model 'gpt-9', or no chat completions under that URL (HTTP 404: The model does not exist); "
        "check the model's name, and that the base URL ends in /v1"
    )


@pytest.mark.parametrize("reply", [never_answer, trickle])
async def test_timeout_covers_the_whole_reply(reply):
    caught = await outcome(reply, timeout_s=0.3)
    assert type(caught) is CallTimeout
    assert str(caught).endswith("/v1 within 0.3 s")


async def test_retry_after_is_read_in_each_form():
    assert (await outcome(http(429, b"{}", Retry_After="3"))).retry_after_s == 3.0
    assert (await outcome(http(503, b"{}", Retry_After_Ms="1500"))).retry_after_s == 1.5
    assert (await outcome(http(429, b"{}", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"))).retry_after_s == 0.0
    assert (await outcome(http(429, b"{}", Retry_After="soon"))).retry_after_s is None
    assert (await outcome(http(429, b"{}"))).retry_after_s is None


async def test_nobody_there_and_no_such_host():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    async with backend(url) as transport:
        for call in (transport.complete(ask()), transport.check()):
            with pytest.raises(EndpointUnreachable) as caught:
                await call
            assert str(caught.value) == f"nobody answers at {url}: connection refused; is the server running there?"
    async with backend("http://no-such-host.invalid/v1") as transport:
        with pytest.raises(EndpointUnreachable, match=r"^the host of http://no-such-host.invalid/v1 is not known;"):
            await transport.check()


@pytest.fixture
def expired_tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's context whose certificate ended in 2021 (and which nobody trusts)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    dates = ["-not_before", "20200101000000Z", "-not_after", "20210101000000Z"]
    files = ["-keyout", key, "-out", certificate]
    if subprocess.run([*command, *dates, *files], capture_output=True, check=False).returncode != 0:
        subprocess.run([*command, "-days", "1", *files], capture_output=True, check=True)  # openssl before 3.4
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_certificate_that_is_not_trusted_is_said(expired_tls: ssl.SSLContext):
    async with serving(http(200, GOOD), tls=expired_tls) as (url, _), backend(url) as transport:
        with pytest.raises(EndpointUnreachable, match=r"check the endpoint's certificate$"):
            await transport.complete(ask())


async def test_good_reply_of_any_content_type_without_usage_and_of_ten_megabytes():
    assert await outcome(http(200, GOOD)) == Completion("hi")
    assert await outcome(http(200, GOOD, content_type="text/plain")) == Completion("hi")
    large = json.dumps({"choices": [{"message": {"content": "x" * 10_000_000}}]}).encode()
    assert len((await outcome(http(200, large))).text) == 10_000_000


async def test_seed_is_a_function_of_run_seed_and_sample_and_can_be_left_out():
    async with serving(http(200, GOOD)) as (url, seen):
        async with backend(url, run_seed=3) as transport:
            await transport.complete(ask(sample=(1, 2)))
        async with backend(url, send_seed=False) as transport:
            await transport.complete(ask(sample=(1, 2)))
    assert seen[0]["seed"] == request_seed(3, (1, 2))
    assert "seed" not in seen[1]


async def test_check_lists_the_models_and_knows_what_is_no_failure():
    models = http(200, b'{"data": [{"id": "a"}, {"id": "b"}]}')
    async with serving(models) as (url, seen), backend(url) as transport:
        assert await transport.check() == ["a", "b"]
        assert seen == [{"get": "/v1/models"}]
    for reply in (error(404, "no"), http(200, b"<html>", content_type="text/html"), error(500, "x")):
        async with serving(reply) as (url, _), backend(url) as transport:
            assert await transport.check() == []
    async with serving(error(401, "no")) as (url, _), backend(url) as transport:
        with pytest.raises(AuthenticationFailed):
            await transport.check()
    async with serving(hang_up) as (url, _), backend(url) as transport:
        with pytest.raises(EndpointUnreachable, match=r"accepts connections and does not answer"):
            await transport.check()


async def test_no_key_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    async with serving(http(200, GOOD)) as (url, seen), backend(url, api_key_env="MY_KEY") as transport:
        with pytest.raises(AuthenticationFailed) as caught:
            await transport.complete(ask())
        assert str(caught.value) == (
            "no API key: the environment variable MY_KEY is not set; "
            "set it (any text will do for a local server that asks for none)"
        )
        assert seen == []
        monkeypatch.setenv("MY_KEY", "now")
        assert await transport.complete(ask()) == Completion("hi")


async def test_closed_backend_may_be_used_again():
    async with serving(http(200, GOOD)) as (url, _), backend(url) as transport:
        for _ in range(2):
            assert (await transport.complete(ask())).text == "hi"
            await transport.aclose()


def test_open_backend_in_another_loop_is_refused():
    async def use(transport: OpenAICompatibleBackend, url: str) -> None:
        await transport.complete(ask())

    async def first() -> OpenAICompatibleBackend:
        async with serving(http(200, GOOD)) as (url, _):
            transport = OpenAICompatibleBackend(url)
            await transport.complete(ask())
            with pytest.raises(UsageError, match=r"is open in another event loop"):
                await asyncio.to_thread(asyncio.run, use(transport, url))
            await transport.aclose()
            return transport

    asyncio.run(first())


def test_nonsense_options_are_refused():
    with pytest.raises(
        ConfigError, match=r"^base_url is 'localhost:8000'; expected a URL such as 'http://localhost:8000/v1'$"
    ):
        OpenAICompatibleBackend("localhost:8000")
    with pytest.raises(ConfigError, match=r"^timeout_s is 0; expected a positive number of seconds$"):
        OpenAICompatibleBackend("http://x/v1", timeout_s=0)


async def test_server_that_dies_and_comes_back_costs_attempts_and_no_calls():
    good = json.dumps(
        {"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    ).encode()
    async with serving(http(200, good)) as (url, _):
        port = int(url.split(":")[2].split("/")[0])
    transport = OpenAICompatibleBackend(url)
    stack = open_stack(transport, max_attempts=20)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(200, good, Connection="close"))
        await writer.drain()
        writer.close()

    async def up() -> asyncio.Server:
        return await asyncio.start_server(handle, "127.0.0.1", port, reuse_address=True)

    server = await up()
    assert (await stack.backend.complete(ask("before"))).usage == Usage(1, 1)
    server.close()
    during = asyncio.create_task(stack.backend.complete(ask("during")))
    await asyncio.sleep(0.3)
    assert not during.done()
    server = await up()
    assert (await during).text == "hi"
    stats = stack.stats()["expert", "evolve"]
    assert (stats.calls, stats.failed) == (2, 0)
    assert stats.attempts > 2
    await stack.aclose()
    server.close()
