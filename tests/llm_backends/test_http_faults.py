"""Each fault of an endpoint over real HTTP, through the whole stack with a ledger file."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import (
    BackendError,
    BadRequest,
    CallTimeout,
    ConnectionLost,
    EndpointUnreachable,
    MalformedReply,
    RateLimited,
    ServerError,
    TransientError,
)
from instructgym.llm_backends.budget import Budget
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.server import FAULTS, ServerBehaviour, SimulatedServer
from instructgym.llm_backends.stack import BackendStack, open_stack
from instructgym.types import Completion, Request, Usage

from .fakes import EchoAnswerer, ask
from .raw_http import Handler, error, free_port, http, never_answer, reset_in_the_body, serving
from .tls import certificate

BROKEN = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
LARGE = {"choices": [{"message": {"content": "x" * 10_000_000}}]}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


@asynccontextmanager
async def stack_for(
    url: str, folder: Path, *, timeout_s: float = 10.0, concurrency: int = 64, **options: Any
) -> AsyncIterator[BackendStack]:
    """The stack of a run, with a ledger file and short backoffs."""
    options = {"max_attempts": 3, "backoff_s": 0.01, "backoff_cap_s": 0.05, **options}
    stack = open_stack(
        OpenAICompatibleBackend(url, timeout_s=timeout_s),
        ledger_path=folder / "ledger.sqlite",
        limits=Limits(concurrency=concurrency),
        **options,
    )
    try:
        yield stack
    finally:
        await stack.aclose()


def good(text: str = "hi", **fields: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}], "model": "m", **fields}).encode()


def counts(stack: BackendStack) -> tuple[int, int, int]:
    """Answers, failures and attempts in the ledger."""
    stats = stack.stats().get(("expert", "evolve"))
    return (0, 0, 0) if stats is None else (stats.calls, stats.failed, stats.attempts)


async def end_of(stack: BackendStack, request: Request) -> Completion | BackendError:
    try:
        return await stack.backend.complete(request)
    except BackendError as caught:
        return caught


TRANSIENT: dict[str, tuple[bytes | Handler, type[TransientError], str]] = {
    "429": (error(429, "slow"), RateLimited, "rate limited (HTTP 429: slow)"),
    "429 with Retry-After": (http(429, b"", Retry_After="0.02"), RateLimited, "rate limited (HTTP 429)"),
    "500": (error(500, "oops"), ServerError, "the server failed (HTTP 500: oops)"),
    "503": (error(503, "busy"), ServerError, "the server failed (HTTP 503: busy)"),
    "503 with Retry-After": (http(503, b"", Retry_After_Ms="20"), ServerError, "the server failed (HTTP 503)"),
    "reset in the body": (reset_in_the_body, ConnectionLost, "the connection to {url} was lost in the middle of"),
    "cut JSON": (http(200, good()[:-9]), MalformedReply, "the reply is broken or cut JSON, 50 bytes: "),
    "HTML": (
        http(200, b"<!doctype html><p>Sign in", content_type="text/html"),
        MalformedReply,
        "the endpoint answered with a web page instead of JSON; is the base URL right",
    ),
    "no choices": (http(200, b'{"choices": []}'), MalformedReply, "the reply's list of choices is empty"),
    "no content": (http(200, json.dumps(BROKEN).encode()), MalformedReply, "the reply's message has no content"),
    "never answers": (never_answer, CallTimeout, "no answer from {url} within 0.3 s"),
}


@pytest.mark.parametrize("name", TRANSIENT)
async def test_transient_fault_costs_an_attempt_and_no_call(name: str, tmp_path: Path):
    fault, _, _ = TRANSIENT[name]
    async with serving(fault, http(200, good())) as (url, seen), stack_for(url, tmp_path, timeout_s=0.3) as stack:
        assert (await stack.backend.complete(ask())).text == "hi"
        assert counts(stack) == (1, 0, 2)
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert (await stack.backend.complete(ask())).text == "hi"  # a hit
        assert len(seen) == 2


@pytest.mark.parametrize("name", TRANSIENT)
async def test_fault_that_stays_is_that_items_alone_and_says_what_it_is(name: str, tmp_path: Path):
    fault, kind, words = TRANSIENT[name]
    answers = [http(200, good()), fault]
    options = {"timeout_s": 0.3, "max_attempts": 2, "deadline_s": None}  # without a deadline, 429 counts as well
    async with serving(*answers) as (url, seen), stack_for(url, tmp_path, **options) as stack:
        assert (await stack.backend.complete(ask("first"))).text == "hi"
        end = await end_of(stack, ask("second"))
        assert type(end) is kind
        assert str(end).startswith(words.format(url=url))
        assert str(end).endswith(" (gave up after 2 attempts)")
        assert counts(stack) == (1, 1, 3)
        assert len(seen) == 3


async def test_retry_after_is_waited_for(tmp_path: Path):
    loop = asyncio.get_running_loop()
    for status, header in ((429, {"Retry_After": "0.4"}), (503, {"Retry_After_Ms": "400"})):
        async with (
            serving(http(status, b"", **header), http(200, good())) as (url, _),
            stack_for(url, tmp_path / str(status)) as stack,
        ):
            began = loop.time()
            await stack.backend.complete(ask())
            assert loop.time() - began >= 0.4


async def test_bad_request_is_not_asked_again(tmp_path: Path):
    async with serving(error(400, "no such field")) as (url, seen), stack_for(url, tmp_path) as stack:
        end = await end_of(stack, ask())
        assert type(end) is BadRequest
        assert str(end) == "the endpoint refuses the request (HTTP 400: no such field)"
        assert counts(stack) == (0, 1, 1)
        assert len(seen) == 1


async def test_refused_connection_is_final_before_the_first_success_and_transient_after(tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    async with stack_for(url, tmp_path, max_attempts=40) as stack:
        end = await end_of(stack, ask("before"))
        assert type(end) is EndpointUnreachable
        assert str(end) == f"nobody answers at {url}: connection refused; is the server running there?"
        assert counts(stack) == (0, 0, 0)  # nothing was sent
        async with serving(http(200, good()), port=port):
            await stack.backend.complete(ask("first success"))
        after = asyncio.create_task(stack.backend.complete(ask("after")))
        await asyncio.sleep(0.1)
        assert not after.done()
        async with serving(http(200, good("back")), port=port):
            assert (await after).text == "back"
        assert stack.stats()["expert", "evolve"].calls == 2


async def test_server_that_dies_and_comes_back_costs_attempts_and_no_calls(tmp_path: Path):
    behaviour = ServerBehaviour(latency_s=0.1)
    first = SimulatedServer(EchoAnswerer(), behaviour)
    await first.start()
    port = int(first.base_url.split(":")[2].split("/")[0])
    async with stack_for(first.base_url, tmp_path, concurrency=8, max_attempts=60) as stack:
        calls = [asyncio.create_task(stack.backend.complete(ask(str(i)))) for i in range(32)]
        await asyncio.sleep(0.25)
        await first.stop()  # with eight calls in the middle
        answered = first.stats()["by_status"]["200"]
        await asyncio.sleep(0.1)
        async with SimulatedServer(EchoAnswerer(), behaviour, port=port) as second:
            ends = await asyncio.gather(*calls)
            assert [end.text.split(" / ")[0] for end in ends] == [str(i) for i in range(32)]
            assert second.stats()["by_status"] == {"200": 32 - answered}
        assert 0 < answered < 32
        assert counts(stack)[:2] == (32, 0)


async def test_expired_certificate_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expired = certificate(tmp_path, days=-1)
    monkeypatch.setenv("SSL_CERT_FILE", str(expired.file))
    async with serving(http(200, good()), tls=expired.context) as (url, seen), stack_for(url, tmp_path) as stack:
        end = await end_of(stack, ask())
        assert type(end) is EndpointUnreachable
        assert str(end).startswith(f"no trusted connection to {url}: certificate has expired; check the endpoint's")
        assert counts(stack) == (0, 0, 0)
        assert seen == []


async def test_ten_megabytes_and_a_wrong_content_type_are_answers(tmp_path: Path):
    large, plain = http(200, json.dumps(LARGE).encode()), http(200, good(), content_type="text/plain")
    async with serving(large, plain) as (url, seen), stack_for(url, tmp_path) as stack:
        assert len((await stack.backend.complete(ask("a"))).text) == 10_000_000
        assert (await stack.backend.complete(ask("b"))).text == "hi"
        assert len((await stack.backend.complete(ask("a"))).text) == 10_000_000
        assert len(seen) == 2


async def test_missing_usage_block_leaves_the_budget_at_its_reservation(tmp_path: Path):
    replies = [http(200, good(usage={"prompt_tokens": 5, "completion_tokens": 2})), http(200, good())]
    # "hello": 5 bytes, 16 + 8 of the template, 50 of max_tokens
    async with (
        serving(*replies) as (url, _),
        stack_for(url, tmp_path, budget=Budget(max_tokens=7 + 79 + 78)) as stack,
    ):
        assert (await stack.backend.complete(ask("hello"))).usage == Usage(5, 2)
        assert (await stack.backend.complete(ask("again"))).usage is None
        end = await end_of(stack, ask("third"))
        assert str(end) == (
            "the run's budget: max_tokens = 164, 86 spent, the next attempt may need 79; "
            "run again with a larger budget to go on"
        )


async def test_reply_after_the_deadline_and_none_at_all_are_that_items_alone(tmp_path: Path):
    behaviour = ServerBehaviour(fault_rate=0.5, faults=("slow", "hang"), slow_s=30.0, seed=1)
    async with (
        SimulatedServer(EchoAnswerer(), behaviour) as server,
        stack_for(server.base_url, tmp_path, timeout_s=0.3, max_attempts=1) as stack,
    ):
        ends = await asyncio.gather(*(end_of(stack, ask(str(i))) for i in range(40)))
        late = [end for end in ends if isinstance(end, CallTimeout)]
        answers = [end for end in ends if isinstance(end, Completion)]
        assert len(late) + len(answers) == 40
        assert min(len(late), len(answers)) > 5
        assert {str(end) for end in late} == {
            f"no answer from {server.base_url} within 0.3 s (gave up after 1 attempt)"
        }
        assert counts(stack) == (len(answers), len(late), 40)
        await asyncio.sleep(0.05)  # the server sees them leave
        assert server.stats()["by_status"] == {"200": len(answers), "gone": len(late)}


async def test_at_ten_per_cent_mixed_faults_every_chain_completes_and_nothing_is_paid_twice(tmp_path: Path):
    answered = ("large", "no_usage", "text_plain")
    faults = (*FAULTS, *FAULTS, *FAULTS, "hang", *answered)
    behaviour = ServerBehaviour(latency_s=0.002, retry_after_s=0.02, fault_rate=0.1, faults=faults, seed=3)
    async with (
        SimulatedServer(EchoAnswerer(), behaviour) as server,
        stack_for(server.base_url, tmp_path, timeout_s=3.0, max_attempts=10, budget=Budget(max_tokens=10**9)) as stack,
    ):

        async def chain(i: int) -> str:
            text = f"chain {i}"
            for step in range(4):
                completion = await stack.backend.complete(ask(text, sample=(i, step)))
                assert completion.text.startswith(f"{text} / "), "an answer of another request"
                text = f"{text}.{step}"
            return text

        assert await asyncio.gather(*(chain(i) for i in range(500))) == [f"chain {i}.0.1.2.3" for i in range(500)]
        seen, (calls, failed, attempts) = server.stats(), counts(stack)
        assert (calls, failed) == (2000, 0)
        assert attempts == seen["requests"] == sum(seen["by_status"].values())
        assert seen["distinct_bodies"] == 2000
        assert seen["repeated_answers"] == 0
        assert sum(seen["by_status"].get(name, 0) for name in ("200", *answered)) == 2000
        assert 150 < attempts - 2000 < 300
        assert set(seen["by_status"]) == {"200", *set(faults) - {"429_no_retry_after", "hang"}, "gone"}
        assert len({row.request for row in stack.store.rows()}) == 2000


async def test_at_one_per_cent_bad_requests_only_those_items_fail_each_with_its_own_error(tmp_path: Path):
    behaviour = ServerBehaviour(fault_rate=0.01, faults=("400",), seed=4)
    async with (
        SimulatedServer(EchoAnswerer(), behaviour) as server,
        stack_for(server.base_url, tmp_path) as stack,
    ):
        ends = await asyncio.gather(*(end_of(stack, ask(f"item {i}")) for i in range(1000)))
        lost = [end for end in ends if isinstance(end, BackendError)]
        assert 1 <= len(lost) <= 30
        assert {(type(end), str(end), end.status) for end in lost} == {
            (BadRequest, "the endpoint refuses the request (HTTP 400: this prompt is not to its liking)", 400)
        }
        assert len({id(end) for end in lost}) == len(lost)
        for i, end in enumerate(ends):
            assert isinstance(end, BackendError) or end.text.startswith(f"item {i} / ")
        assert counts(stack) == (1000 - len(lost), len(lost), 1000)
        assert server.stats()["by_status"] == {"200": 1000 - len(lost), "400": len(lost)}
        with contextlib.suppress(BackendError):
            await stack.backend.complete(ask(f"item {ends.index(lost[0])}"))
        assert server.stats()["requests"] == 1000  # what failed for good is known, and not asked again
