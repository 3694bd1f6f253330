"""`SimulatedBackend`: a pure function of (its seed, messages, parameters, request seed)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.expert import rewrite
from instructgym.llm_backends.simulated.instructor import QUESTION, pick_operation
from instructgym.llm_backends.simulated.judge import Judged, judge, token_logprobs
from instructgym.llm_backends.simulated.respond import respond
from instructgym.llm_backends.simulated.reviewer import equality
from instructgym.types import Choice, Completion, Message, Request, Sampling, Usage

__all__ = ["SIMULATOR_VERSION", "SimulatedBackend"]

SIMULATOR_VERSION = "1"
_OPERATION = re.compile(r"^Operation: ([a-z0-9_]+)$", re.M)


class SimulatedBackend:
    """Stands in for an LLM where there is no key, model or network.

    It reads the prompt's first system line to tell a rewrite, a comparison, an instructor's choice and a judge's
    question from each other; whatever is none of them is answered as an instruction. Nothing that it yields says
    anything of a language model's quality.
    """

    name = "simulated"

    def __init__(self, seed: int = 0, *, run_seed: int = 0) -> None:
        self.seed = seed
        self.run_seed = run_seed

    @property
    def instant(self) -> bool:
        """True of this class; a subclass may wait, or fail in passing."""
        return type(self) is SimulatedBackend

    async def complete(self, request: Request) -> Completion:
        seed = request_seed(self.run_seed, request.sample)
        first = self.answer(request.messages, request.sampling, seed)
        if request.sampling.n == 1:
            return first
        rest = [self.answer(request.messages, request.sampling, seed + i) for i in range(1, request.sampling.n)]
        return replace(
            first,
            usage=sum((Usage(0, one.usage.completion_tokens) for one in rest if one.usage), first.usage or Usage()),
            others=tuple(Choice(one.text, one.finish_reason, one.logprobs) for one in rest),
        )

    async def aclose(self) -> None:
        """Nothing is open."""

    def answer(self, messages: tuple[Message, ...], sampling: Sampling, seed: int) -> Completion:
        """One answer to `messages` under a request seed (ignored at temperature 0); `sampling.n` is the caller's."""
        system = next((message.content for message in messages if message.role == "system"), "")
        user = next((message.content for message in reversed(messages) if message.role == "user"), "")
        draws = Draws(self._key(messages, seed if sampling.temperature > 0 else 0))
        if system.startswith("You rewrite instructions"):
            blocks = fenced_blocks(user)
            operation = _OPERATION.search(system)
            name = operation[1] if operation else ""
            text = rewrite(name, blocks.get("instruction", ""), blocks.get("input", ""), draws)
        elif system.startswith("You compare two instructions"):
            blocks = fenced_blocks(user)
            text = equality(blocks.get("first", ""), blocks.get("second", ""), draws)
        elif system.startswith(QUESTION):
            text = pick_operation(user, draws)
        else:
            judged = judge(system, user, draws)
            if judged is not None:
                return _judgement(judged, messages, sampling)
            text = respond(user, draws)
        return _completion(text, messages, sampling)

    def _key(self, messages: tuple[Message, ...], seed: int) -> bytes:
        digest = hashlib.blake2b(f"{SIMULATOR_VERSION}\x1f{self.seed}\x1f{seed}".encode(), digest_size=32)
        for message in messages:
            digest.update(f"\x1e{message.role}\x1f{message.content}".encode("utf-8", "surrogatepass"))
        return digest.digest()


def _completion(text: str, messages: tuple[Message, ...], sampling: Sampling) -> Completion:
    """A simulated token is four characters; a text beyond `max_tokens` is cut there, as endpoints do."""
    prompt_tokens = sum(len(message.content) // 4 + 4 for message in messages)
    finish_reason = "stop"
    if sampling.max_tokens is not None and len(text) > 4 * sampling.max_tokens:
        text, finish_reason = text[: 4 * sampling.max_tokens], "length"
    usage = Usage(prompt_tokens, len(text) // 4 + 1)
    return Completion(text, finish_reason, usage, model=f"simulated-{SIMULATOR_VERSION}")


def _judgement(judged: Judged, messages: tuple[Message, ...], sampling: Sampling) -> Completion:
    """The judge's reply, with log-probabilities if they are asked for; a reply that was cut carries none."""
    completion = _completion(judged.text, messages, sampling)
    if sampling.top_logprobs is None or completion.finish_reason == "length":
        return completion
    return replace(completion, logprobs=token_logprobs(judged, sampling.top_logprobs))
