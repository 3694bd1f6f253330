"""The models of a run, M0 to MT: where each stands, what it is called in a request, and who answers for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from instructgym.errors import UsageError
from instructgym.llm_backends.base import LLMBackend
from instructgym.train.alignment.config import StudentSection
from instructgym.types import Completion, Request

if TYPE_CHECKING:
    from instructgym.llm_backends.local_transformers import TransformersBackend

__all__ = ["Models", "StudentBackend"]


class Models:
    """Folders (or the hub's name, for M0) by the models' names.

    In a request a model is ``NAME@DIGEST`` with the digest of its files, so that the ledger never takes the answers of
    one model for those of another that has stood in the same folder.
    """

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def add(self, name: str, place: str | Path) -> None:
        """Say where a model stands. What was known of the name is forgotten."""
        self._places[name] = str(place)
        self._ids.pop(name, None)

    def place(self, name: str) -> str:
        """A folder, or a name of the hub."""
        return self._places[name]

    def id(self, name: str) -> str:
        """What the model is called in requests and records. Reads its files once."""
        if name not in self._ids:
            from instructgym.train.tuning.student import model_digest

            folder = Path(self._places[name])
            self._ids[name] = f"{name}@{model_digest(folder) if folder.is_dir() else self._places[name]}"
        return self._ids[name]

    def place_of_id(self, model: str) -> str:
        return self._places[model.partition("@")[0]]


class StudentBackend:
    """Answers as whichever model a request names; one is open at a time, for they share one device."""

    name = "student"

    def __init__(self, models: Models, settings: StudentSection, *, run_seed: int) -> None:
        self._models = models
        self._settings = settings
        self._run_seed = run_seed
        self._open: TransformersBackend | None = None
        self._model = ""
        self._in_flight = 0
        self._switch = asyncio.Lock()

    async def complete(self, request: Request) -> Completion:
        async with self._answering(request.model) as backend:
            return await backend.complete(request)

    async def aclose(self) -> None:
        """Give the device's memory back; the next request opens its model again."""
        backend, self._open, self._model = self._open, None, ""
        if backend is not None:
            await backend.aclose()

    @contextlib.asynccontextmanager
    async def _answering(self, model: str) -> AsyncIterator[LLMBackend]:
        async with self._switch:  # whoever comes while a model is closed waits for the next one
            if model != self._model:
                if self._in_flight:
                    raise UsageError(f"{model} was asked while {self._model} answers; ask one model after the other")
                await self.aclose()
                self._model = model
            if self._open is None:
                self._open = self._make(model)
            backend = self._open
            self._in_flight += 1
        try:
            yield backend
        finally:
            self._in_flight -= 1

    def _make(self, model: str) -> TransformersBackend:
        from instructgym.llm_backends.local_transformers import TransformersBackend

        own = self._settings
        place = self._models.place_of_id(model)
        return TransformersBackend(
            Path(place) if Path(place).is_dir() else place,
            device=own.device,
            dtype=own.dtype,
            batch_tokens=own.batch_tokens,
            max_batch=own.max_batch,
            trust_remote_code=own.trust_remote_code,
            run_seed=self._run_seed,
        )
