"""Contract 1: who answers. One request, one answer; wrappers have the same signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from instructgym.types import Completion, Message, Request, Sample, Sampling

__all__ = ["LLM", "LLMBackend", "is_instant"]


@runtime_checkable
class LLMBackend(Protocol):
    """Turns requests into answers.

    `complete` raises a typed `BackendError` when a call fails; it never returns an empty string, a zero or a neutral
    verdict instead. It opens what it needs (client, model, file) at its first call, inside the running event loop,
    and `aclose` releases that in the same loop; a closed backend may be used again. `name` is for people and logs.

    A backend with an attribute `instant` that is True answers before it gives control back, and does not fail in
    passing: nobody needs a task to wait for it in, a deadline or a second attempt.
    """

    name: str

    async def complete(self, request: Request) -> Completion: ...

    async def aclose(self) -> None: ...


def is_instant(part: object) -> bool:
    """Whether `part` (a backend, an LLM, an encoder, a reward, or rules) never makes its caller wait."""
    return bool(getattr(part, "instant", False))


@dataclass(frozen=True)
class LLM:
    """A backend bound to a role, a model and sampling parameters: what operations, rewards and stages hold."""

    backend: LLMBackend
    role: str
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    stage: str = ""

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        prompt_version: str,
        sample: Sample = (0,),
        sampling: Sampling | None = None,
    ) -> Completion:
        """Ask once. Raises `BackendError`."""
        return await self.backend.complete(
            Request(
                role=self.role,
                model=self.model,
                messages=tuple(messages),
                sampling=sampling or self.sampling,
                prompt_version=prompt_version,
                sample=sample,
                stage=self.stage,
            )
        )

    @property
    def instant(self) -> bool:
        """Whether an answer is there before control is given back."""
        return is_instant(self.backend)

    def for_stage(self, stage: str) -> LLM:
        """The same LLM, whose calls are accounted to `stage`."""
        return replace(self, stage=stage)
