import asyncio
import json
import statistics
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from instructgym.errors import CallTimeout, ConfigError, ModelNotFound, RateLimited
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.server import FAULTS, ServerBehaviour, SimulatedServer, serve_forever
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Sampling

from .fakes import EchoAnswerer, ask


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


def fetch(url: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def test_answer_over_http_is_the_answer_in_process():
    async with SimulatedServer(EchoAnswerer()) as server:
        backend = OpenAICompatibleBackend(server.base_url, run_seed=4)
        request = ask("instruct 指令", sample=(2, 3), sampling=Sampling(temperature=0.25, max_tokens=9))
        over_http = await backend.complete(request)
        assert over_http == EchoAnswerer().answer(request.messages, request.sampling, request_seed(4, (2, 3)))
        assert await backend.check() == ["simulated"]
        with pytest.raises(ModelNotFound, match="The model 'gpt-9' does not exist"):
            await backend.complete(ask(model="gpt-9"))
        await backend.aclose()


def test_server_in_a_thread_answers_plain_http():
    with SimulatedServer(EchoAnswerer()).in_thread() as server:
        url = server.base_url
        body = {"model": "simulated", "messages": [{"role": "user", "content": "x"}], "seed": 7, "n": 2}
        status, reply = fetch(f"{url}/chat/completions", body)
        assert status == 200
        assert [choice["message"]["content"] for choice in reply["choices"]] == ["x / 7 / 1", "x / 8 / 1"]
        assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}
        assert fetch(f"{url}/chat/completions", body)[0] == 200
        assert fetch(f"{url}/chat/completions", {"messages": 5})[0] == 400
        assert fetch(url.removesuffix("/v1") + "/stats")[1] == {
            "requests": 3,
            "by_status": {"200": 2, "400": 1},
            "distinct_bodies": 2,
            "repeated_bodies": 1,
            "repeated_answers": 1,
            "in_flight": 0,
            "max_in_flight": 1,
        }


async def test_requests_beyond_capacity_are_turned_away_with_retry_after():
    behaviour = ServerBehaviour(latency_s=0.2, capacity=2, retry_after_s=0.5)
    async with SimulatedServer(EchoAnswerer(), behaviour) as server:
        backend = OpenAICompatibleBackend(server.base_url)
        ends = await asyncio.gather(*(backend.complete(ask(str(i))) for i in range(5)), return_exceptions=True)
        turned_away = [end for end in ends if isinstance(end, RateLimited)]
        assert len(turned_away) == 3
        assert {error.retry_after_s for error in turned_away} == {0.5}
        assert server.stats()["by_status"] == {"200": 2, "429": 3}
        assert server.stats()["max_in_flight"] == 3
        await backend.aclose()


def test_latency_is_a_function_of_seed_and_prompt_with_the_stated_mean():
    behaviour = ServerBehaviour(latency_s=0.5, sigma=1.0, seed=1)
    latencies = [behaviour.latency_of(str(i).encode()) for i in range(20_000)]
    assert latencies == [behaviour.latency_of(str(i).encode()) for i in range(20_000)]
    assert statistics.fmean(latencies) == pytest.approx(0.5, rel=0.05)
    assert statistics.median(latencies) == pytest.approx(0.5 * 2.718281828**-0.5, rel=0.05)
    assert latencies[0] != ServerBehaviour(latency_s=0.5, sigma=1.0, seed=2).latency_of(b"0")
    assert ServerBehaviour(latency_s=0.5).latency_of(b"0") == 0.5


def test_faults_come_at_their_rate_are_of_every_kind_and_pass_on_repetition():
    behaviour = ServerBehaviour(fault_rate=0.1)
    faults = [behaviour.fault_of(str(i).encode(), 0) for i in range(10_000)]
    assert sum(fault is not None for fault in faults) == pytest.approx(1000, rel=0.15)
    assert set(faults) == {None, *FAULTS}
    faulty = next(i for i, fault in enumerate(faults) if fault is not None)
    assert None in [behaviour.fault_of(str(faulty).encode(), seen) for seen in range(5)]


async def test_faults_on_demand_are_what_they_say():
    body = {"model": "simulated", "messages": [{"role": "user", "content": "x"}]}

    async def answers_of(fault: str) -> tuple[int, str, bytes, Mapping[str, Any]]:
        behaviour = ServerBehaviour(fault_rate=1.0, faults=(fault,), slow_s=0.3)
        async with (
            SimulatedServer(EchoAnswerer(), behaviour) as server,
            aiohttp.ClientSession() as session,
            session.post(f"{server.base_url}/chat/completions", json=body) as response,
        ):
            return response.status, response.content_type, await response.read(), server.stats()

    status, _, content, stats = await answers_of("400")
    assert (status, json.loads(content)["error"]["message"]) == (400, "this prompt is not to its liking")
    assert (stats["by_status"], stats["repeated_answers"]) == ({"400": 1}, 0)
    _, _, content, _ = await answers_of("large")
    assert len(content) > 10_000_000
    assert json.loads(content)["choices"][0]["message"]["content"] == "x / 0 / 1"
    _, _, content, _ = await answers_of("no_usage")
    assert "usage" not in json.loads(content)
    status, content_type, content, stats = await answers_of("text_plain")
    assert (status, content_type, stats["by_status"]) == (200, "text/plain", {"text_plain": 1})
    assert json.loads(content)["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    began = asyncio.get_running_loop().time()
    assert (await answers_of("slow"))[0] == 200
    assert asyncio.get_running_loop().time() - began >= 0.3


async def test_client_that_leaves_is_counted_and_frees_its_place():
    behaviour = ServerBehaviour(fault_rate=1.0, faults=("hang",))
    async with SimulatedServer(EchoAnswerer(), behaviour) as server:
        backend = OpenAICompatibleBackend(server.base_url, timeout_s=0.1)
        with pytest.raises(CallTimeout):
            await backend.complete(ask())
        await asyncio.sleep(0.05)
        assert server.stats()["by_status"] == {"gone": 1}
        assert (server.stats()["requests"], server.stats()["in_flight"]) == (1, 0)
        await backend.aclose()


async def test_rate_limit_is_kept_and_said_in_headers():
    behaviour = ServerBehaviour(rate_limit=2, rate_window_s=0.4)
    said: list[tuple[str, ...]] = []
    async with SimulatedServer(EchoAnswerer(), behaviour) as server:
        backend = OpenAICompatibleBackend(server.base_url)
        backend.on_headers = lambda headers: said.append(
            tuple(headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset"))
        )
        await backend.complete(ask("1"))
        await backend.complete(ask("2"))
        with pytest.raises(RateLimited) as caught:
            await backend.complete(ask("3"))
        assert [(limit, left) for limit, left, _ in said] == [("2", "1"), ("2", "0"), ("2", "0")]
        assert all(reset.endswith("s") and 0.0 < float(reset[:-1]) <= 0.4 for _, _, reset in said)
        assert 0.0 < caught.value.retry_after_s <= 0.4
        await asyncio.sleep(caught.value.retry_after_s)
        await backend.complete(ask("3"))
        assert server.stats()["by_status"] == {"200": 3, "429": 1}
        await backend.aclose()


def test_fault_named_twice_comes_twice_as_often():
    behaviour = ServerBehaviour(fault_rate=1.0, faults=("500", "500", "400"))
    faults = Counter(behaviour.fault_of(str(i).encode(), 0) for i in range(3000))
    assert faults["500"] == pytest.approx(2000, rel=0.1)
    assert faults["400"] == pytest.approx(1000, rel=0.1)


async def test_at_ten_per_cent_mixed_faults_every_call_completes_and_the_counts_agree(tmp_path):
    behaviour = ServerBehaviour(fault_rate=0.1, retry_after_s=0.01, latency_s=0.002, seed=5)
    async with SimulatedServer(EchoAnswerer(), behaviour) as server:
        backend = OpenAICompatibleBackend(server.base_url)
        stack = open_stack(
            backend, ledger_path=tmp_path / "ledger.sqlite", limits=Limits(concurrency=64), max_attempts=10
        )
        ends = await asyncio.gather(*(stack.backend.complete(ask(f"{i}")) for i in range(300)))
        assert [end.text.split(" / ")[0] for end in ends] == [str(i) for i in range(300)]
        stats, seen = stack.stats()["expert", "evolve"], server.stats()
        assert (stats.calls, stats.failed) == (300, 0)
        assert stats.attempts == seen["requests"] > 300
        assert seen["by_status"]["200"] == 300
        assert len(seen["by_status"]) >= 6
        assert seen["max_in_flight"] <= 64
        assert len(list(stack.store.rows())) == 300
        await stack.aclose()


async def test_serve_forever_says_when_it_listens_and_stops_when_cancelled():
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = SimulatedServer(EchoAnswerer())
    task = asyncio.create_task(serve_forever(server, lambda server: ready.set_result(server.base_url)))
    url = await ready
    assert (await asyncio.to_thread(fetch, f"{url}/models"))[1]["data"][0]["id"] == "simulated"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_port_in_use_and_nonsense_knobs_are_refused():
    async with SimulatedServer(EchoAnswerer()) as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=rf"^cannot listen on 127.0.0.1 port {port}: "):
            await SimulatedServer(EchoAnswerer(), port=port).start()
    with pytest.raises(ConfigError, match=r"^fault_rate is 2; expected a share between 0 and 1$"):
        ServerBehaviour(fault_rate=2)
    with pytest.raises(ConfigError, match=r"^unknown fault 'flood'; expected one of 429, "):
        ServerBehaviour(faults=("flood",))
    with pytest.raises(ConfigError, match=r"^rate_limit is 0; expected at least 1, or none at all$"):
        ServerBehaviour(rate_limit=0)
    with pytest.raises(ConfigError, match=r"^rate_window_s is 0; expected a positive number of seconds$"):
        ServerBehaviour(rate_window_s=0)


async def test_simulated_backend_says_the_same_over_http_and_in_process():
    request = ask("Explain how a kite flies.", sample=(3, 1))
    async with SimulatedServer(SimulatedBackend(seed=2)) as server:
        backend = OpenAICompatibleBackend(server.base_url, run_seed=5)
        over_http = await backend.complete(request)
        await backend.aclose()
    assert over_http == await SimulatedBackend(seed=2, run_seed=5).complete(request)
