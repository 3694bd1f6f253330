"""Doubles for the environments' tests: an LLM that is a pure function of the request, and ways for it to fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from instructgym.envs import ActionSet, Dynamics, EliminationRules, Rewrite, load_action_set
from instructgym.errors import BackendError
from instructgym.llm_backends import LLM
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import HashingEncoder, as_reward
from instructgym.types import Completion, Instruction, Request, Seed, Transition, Usage

CLAUSES = (
    "Keep it under fifty words.",
    "Name two sources that a reader can check.",
    "Compare it with how it was done a century ago.",
    "Explain each step before the next one begins.",
    "Assume that the reader is a nurse on a night shift.",
)


class FakeLLM:
    """Appends a clause that the request's hash picks; every ninth reply is a copy, every thirteenth a refusal.

    `script` maps an operation's name to what happens instead: an error to raise or a completion to return.
    """

    name = "fake"

    def __init__(self, script: dict[str, BackendError | Completion] | None = None) -> None:
        self.script = script or {}
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        system, user = request.messages[0].content, request.messages[-1].content
        role = "reviewer" if system.startswith("You compare") else system.rpartition(": ")[2]
        if role in self.script:
            outcome = self.script[role]
            if isinstance(outcome, BackendError):
                raise outcome
            return outcome
        text = f"{request.role}|{request.model}|{request.messages}|{request.sample}"
        draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
        blocks = fenced_blocks(user)
        if role == "reviewer":
            return Completion("Not Equal" if draw % 3 else "Equal", usage=Usage(50, 2))
        parent = blocks["instruction"]
        if draw % 9 == 0:
            reply = parent
        elif draw % 13 == 0:
            reply = "I'm sorry, but I can't help with that request."
        else:
            reply = f"{parent} {CLAUSES[draw % len(CLAUSES)]}"
        return Completion(reply, usage=Usage(len(user) // 4, len(reply) // 4))

    async def aclose(self) -> None:
        pass


def words_added(transition: Transition) -> float:
    assert transition.child is not None
    return float(len(transition.child.text.split()) - len(transition.parent.text.split()))


SEEDS = (
    Seed("sky", Instruction("Explain why the sky is blue to a child."), topic="science"),
    Seed("bread", Instruction("Write a recipe for rye bread."), topic="cooking"),
    Seed("rows", Instruction("Which town is the largest?", "town,people\nA,10\nB,20"), topic="data"),
)


@pytest.fixture
def fake_llm() -> type[FakeLLM]:
    return FakeLLM


@pytest.fixture
def seeds() -> tuple[Seed, ...]:
    return SEEDS


@pytest.fixture
def env_options() -> Callable[..., dict[str, Any]]:
    """Keyword arguments of an env on the doubles."""

    def build(script: dict[str, BackendError | Completion] | None = None, **changes: Any) -> dict[str, Any]:
        backend = FakeLLM(script)
        llm = LLM(backend, role="expert", model="fake", stage="test")
        encoder = HashingEncoder(32)
        return {"expert": llm, "seeds": SEEDS, "reward": words_added, "encoder": encoder, **changes}

    return build


@pytest.fixture
def make_dynamics() -> Callable[..., tuple[Dynamics, FakeLLM]]:
    def build(
        script: dict[str, BackendError | Completion] | None = None,
        *,
        reward: Any = words_added,
        rules: tuple[str, ...] = ("empty", "copy", "refusal"),
        action_set: ActionSet | None = None,
        horizon: int = 3,
        penalty: float = 0.25,
        **more: Any,
    ) -> tuple[Dynamics, FakeLLM]:
        backend = FakeLLM(script)
        llm = LLM(backend, role="expert", model="fake")
        dynamics = Dynamics(
            expert=llm,
            action_set=action_set or load_action_set("evol_instruct").with_stop(),
            reward=as_reward(reward),
            elimination=EliminationRules(rules, reviewer=llm),
            horizon=horizon,
            penalty=penalty,
            **more,
        )
        return dynamics, backend

    return build


@pytest.fixture
def only_at_start() -> Rewrite:
    class OnlyAtStart(Rewrite):
        def legal(self, state: Any) -> bool:
            return state.step == 0

    return OnlyAtStart("only_at_start", "Do it once.")


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Registers envs to close at the test's end."""
    opened: list[Any] = []

    def register(env: Any) -> Any:
        opened.append(env)
        return env

    yield register
    for env in opened:
        env.close()
