from __future__ import annotations

import pytest

from instructgym.errors import EndpointUnreachable
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.server import SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.train.config_text import load_config
from instructgym.train.transports import Transports
from instructgym.types import Message, Request, Sampling

NOBODY = "http://127.0.0.1:9/v1"


def transports(*overrides: str) -> Transports:
    return Transports(load_config("quickstart", overrides), Limits())


def ask(role: str) -> Request:
    return Request(role, "simulated", (Message("user", "Say something."),), Sampling(), "test/1")


def test_roles_that_mean_the_same_endpoint_share_one_pool() -> None:
    shared = transports("llm.backend=openai", "llm.model=m", "llm.reviewer.model=small")
    assert len(shared.pools) == 1
    apart = transports("llm.backend=openai", "llm.model=m", f"llm.reviewer.base_url={NOBODY}")
    assert len(apart.pools) == 2


def test_roles_may_be_answered_by_different_backends() -> None:
    mixed = transports("llm.expert.backend=openai", "llm.expert.model=m")
    assert mixed.name == "openai+simulated"


async def test_of_several_endpoints_one_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    async with SimulatedServer(SimulatedBackend()) as server:
        found = transports(
            "llm.backend=openai", "llm.model=simulated", f'llm.base_urls=["{NOBODY}", "{server.base_url}"]'
        )
        try:
            assert await found.check() == {server.base_url: ["simulated"]}
            for role in ("expert", "reviewer"):
                assert (await found.complete(ask(role))).text
        finally:
            await found.aclose()
        assert server.stats()["requests"] == 2


async def test_endpoints_none_of_which_answers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    found = transports("llm.backend=openai", "llm.model=m", f'llm.base_urls=["{NOBODY}"]')
    try:
        with pytest.raises(EndpointUnreachable, match=r"nobody answers at http://127\.0\.0\.1:9/v1"):
            await found.check()
    finally:
        await found.aclose()
