import asyncio
import json
import statistics
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest

from instructgym.errors import ConfigError, ModelNotFound, RateLimited
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


async def test_simulated_backend_says_the_same_over_http_and_in_process():
    request = ask("Explain how a kite flies.", sample=(3, 1))
    async with SimulatedServer(SimulatedBackend(seed=2)) as server:
        backend = OpenAICompatibleBackend(server.base_url, run_seed=5)
        over_http = await backend.complete(request)
        await backend.aclose()
    assert over_http == await SimulatedBackend(seed=2, run_seed=5).complete(request)
