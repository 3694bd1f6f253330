"""`TransformersBackend`: a local model as a transport."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

from instructgym.errors import ConfigError, UsageError
from instructgym.llm_backends.clock import waiting_for_leave
from instructgym.llm_backends.local_transformers.loading import load, model_source
from instructgym.llm_backends.local_transformers.worker import Worker
from instructgym.types import Completion, Request

__all__ = ["TransformersBackend"]


class TransformersBackend:
    """A transport: a causal language model of Hugging Face transformers, in a thread of this process.

    Requests that wait are joined into batches: one starts whenever the model is idle, with the oldest request in it
    and those nearest in length, up to `max_batch` rows and `batch_tokens` tokens, padding and room to generate
    included. A request larger than that runs alone. Each has its own temperature, top-p, `max_tokens`, stop strings,
    seed and `n`; `top_logprobs` are the model's own, before temperature and top-p. `Sampling.extra` may hold
    ``chat_template_kwargs``, such as ``{"enable_thinking": false}``. Without `max_tokens` a request may fill the
    context. `Request.model` is a name only: there is one model.

    **Same text in every batch** is promised for dense models on the CPU in float32: a draw depends on the request's
    seed and the position alone, and where two outcomes are too close for float32, the logits are computed again for
    that row alone (see `sampling`). Log-probabilities may differ in the sixth digit. On other devices, in other dtypes
    and where a router picks experts, a near tie may fall otherwise with the batch's shape; there the ledger is the
    record.

    Args:
        model: a folder, or a name that is in the local Hugging Face cache or can be downloaded (HF_HUB_OFFLINE is
            obeyed).
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (float32 on the CPU, elsewhere what the checkpoint says), ``float32``, ``bfloat16``,
            ``float16``.
        run_seed: the seed of a request is a hash of it and `Request.sample`; choice i adds i.
        trust_remote_code: run Python code that comes with the model.

    The model is loaded at the first request, which raises `ConfigError` if it cannot be. While a request waits for a
    batch, its deadline stands still; if it is cancelled there, it never runs. One cancelled in a running batch leaves
    it after the token that is being computed.
    """

    name = "transformers"

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 16_384,
        max_batch: int = 64,
        run_seed: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._source = model_source(
            model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        for name, value in (("batch_tokens", batch_tokens), ("max_batch", max_batch)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        self._batch_tokens = batch_tokens
        self._max_batch = max_batch
        self._run_seed = run_seed
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"TransformersBackend({self._source.model!r})"

    async def complete(self, request: Request) -> Completion:
        job = self._open().submit(request)
        try:
            with waiting_for_leave():
                await asyncio.wrap_future(job.started)
            return await asyncio.wrap_future(job.answered)
        finally:
            job.answered.cancel()  # does nothing to an answer

    async def aclose(self) -> None:
        worker, self._worker, self._loop = self._worker, None, None
        if worker is not None and self._process == os.getpid():
            worker.close()
            await asyncio.wrap_future(worker.ended)

    def _open(self) -> Worker:
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._process = os.getpid()
            self._loop = loop
            self._worker = Worker(
                partial(load, self._source),
                batch_tokens=self._batch_tokens,
                max_batch=self._max_batch,
                run_seed=self._run_seed,
                name=self._source.model,
            )
        elif self._process != os.getpid():
            raise UsageError(
                f"{self!r} was opened in process {self._process} and used in process {os.getpid()}; "
                "open it inside the worker, and spawn workers instead of forking them"
            )
        elif self._loop is not loop:
            raise UsageError(f"{self!r} is open in another event loop; close it there before it is used in this one")
        return self._worker
