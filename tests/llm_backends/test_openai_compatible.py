"""The transport over real sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
from instructgym.types import Choice, Completion, Sampling

from .fakes import ask
from .raw_http import (
    GOOD,
    Handler,
    error,
    free_port,
    garbage,
    hang_up,
    http,
    never_answer,
    reset_in_the_body,
    serving,
    stop_halfway,
    trickle,
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


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
        (stop_halfway, ConnectionLost, None),
        (hang_up, ConnectionLost, None),
        (garbage, ConnectionLost, None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ConnectionLost, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n", ConnectionLost, None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", ConnectionLost, None),
        (b"HTTP/1.1 OK\r\n\r\n", ConnectionLost, None),
        (http(200, b"not gzip", Content_Encoding="gzip"), ConnectionLost, None),
        (http(204, b""), MalformedReply, "the reply is broken or cut JSON, 0 bytes: ''"),
        (http(304, b""), BadRequest, "the endpoint refuses the request (HTTP 304)"),
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
    url = f"http://127.0.0.1:{free_port()}/v1"
    async with backend(url) as transport:
        for call in (transport.complete(ask()), transport.check()):
            with pytest.raises(EndpointUnreachable) as caught:
                await call
            assert str(caught.value) == f"nobody answers at {url}: connection refused; is the server running there?"
    async with backend("http://no-such-host.invalid/v1") as transport:
        with pytest.raises(EndpointUnreachable, match=r"^the host of http://no-such-host.invalid/v1 is not known;"):
            await transport.check()


async def test_good_reply_of_any_content_type_without_usage_and_of_ten_megabytes():
    assert await outcome(http(200, GOOD)) == Completion("hi")
    assert await outcome(http(200, GOOD, content_type="text/plain")) == Completion("hi")
    large = json.dumps({"choices": [{"message": {"content": "x" * 10_000_000}}]}).encode()
    assert len((await outcome(http(200, large))).text) == 10_000_000


async def test_what_a_request_asks_for_is_what_the_server_gets():
    sampling = Sampling(
        temperature=0.25,
        top_p=0.5,
        max_tokens=9,
        stop=("END", "\n\n"),
        top_logprobs=3,
        extra=(("response_format", '{"type": "json_object"}'), ("guided_regex", '"[ab]+"'), ("top_k", "40")),
        n=2,
    )
    two = json.dumps({"choices": [{"message": {"content": text}} for text in ("a", "b")]}).encode()
    async with serving(http(200, two)) as (url, seen), backend(url, run_seed=3) as transport:
        completion = await transport.complete(ask("指令 \ud83d 🪁", sampling=sampling, sample=(1, 2)))
    assert completion == Completion("a", others=(Choice("b"),))
    assert seen == [
        {
            "model": "simulated",
            "messages": [{"role": "user", "content": "指令 \ud83d 🪁"}],
            "temperature": 0.25,
            "top_p": 0.5,
            "n": 2,
            "max_tokens": 9,
            "stop": ["END", "\n\n"],
            "seed": request_seed(3, (1, 2)),
            "logprobs": True,
            "top_logprobs": 3,
            "response_format": {"type": "json_object"},
            "guided_regex": "[ab]+",
            "top_k": 40,
        }
    ]


async def test_prompt_of_megabytes_is_sent():
    async with serving(http(200, GOOD)) as (url, seen), backend(url) as transport:
        await transport.complete(ask("x" * 3_000_000))
    assert len(seen[0]["messages"][0]["content"]) == 3_000_000


async def test_fewer_choices_than_asked_are_an_answer_and_said_once(caplog: pytest.LogCaptureFixture):
    async with serving(http(200, GOOD)) as (url, _), backend(url) as transport:
        for _ in range(2):
            assert await transport.complete(ask(sampling=Sampling(n=4))) == Completion("hi")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{url} gave 1 of the 4 choices asked for; it may not know 'n'"
    ]


async def test_headers_of_every_reply_are_handed_on():
    heard: list[str | None] = []
    replies = [http(status, GOOD, X_Left=str(status)) for status in (200, 429, 400, 500)]
    async with serving(*replies) as (url, _), backend(url) as transport:
        transport.on_headers = lambda headers: heard.append(headers.get("x-left"))
        for _ in replies:
            with contextlib.suppress(BackendError):
                await transport.complete(ask())
    assert heard == ["200", "429", "400", "500"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed_and_names_the_place(status: int):
    async with serving(http(200, GOOD)) as (elsewhere, seen):
        there = http(status, b"moved", Location=f"{elsewhere}/chat/completions?token=secret")
        async with serving(there) as (url, _), backend(url) as transport:
            for call in (transport.complete(ask()), transport.check()):
                with pytest.raises(BadRequest) as caught:
                    await call
                assert str(caught.value) == (
                    f"{url} redirects to {elsewhere}/chat/completions (HTTP {status}), and the key is not sent on; "
                    "set the base URL to where the endpoint is"
                )
    assert seen == []


async def test_query_of_the_base_url_stays_at_the_end():
    async with serving(http(200, GOOD)) as (url, seen), backend(f"{url}/?api-version=1") as transport:
        await transport.complete(ask())
        await transport.check()
    assert [head.split()[1] for head in seen.heads] == [
        "/v1/chat/completions?api-version=1",
        "/v1/models?api-version=1",
    ]


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


async def test_backend_that_is_closed_while_it_opens_leaves_nothing_open():
    async with serving(http(200, GOOD)) as (url, _):
        transport = OpenAICompatibleBackend(url)
        call = asyncio.create_task(transport.complete(ask()))
        await asyncio.sleep(0)
        await transport.aclose()
        with pytest.raises(asyncio.CancelledError):
            await call


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


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "http://",
        "http://:80/v1",
        "ftp://h/v1",
        "http://h:port/v1",
        "http://h:99999/v1",
        "http://[::1",
    ],
)
def test_what_is_no_url_is_refused(url: str):
    with pytest.raises(ConfigError) as caught:
        OpenAICompatibleBackend(url)
    assert str(caught.value) == f"base_url is {url!r}; expected a URL such as 'http://localhost:8000/v1'"


def test_nonsense_options_are_refused():
    with pytest.raises(ConfigError, match=r"^timeout_s is 0; expected a positive number of seconds$"):
        OpenAICompatibleBackend("http://x/v1", timeout_s=0)
    with pytest.raises(ConfigError, match=r"^max_connections is 0; expected at least 1$"):
        OpenAICompatibleBackend("http://x/v1", max_connections=0)
