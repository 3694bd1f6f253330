"""`LocalScorer`: what a text costs under a local model, for rewards that read log-probabilities of given texts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from instructgym.errors import ConfigError, UsageError
from instructgym.llm_backends.local_transformers.loading import ModelSource, load, model_source
from instructgym.llm_backends.local_transformers.scoring_rows import TextLoss, Unscored
from instructgym.llm_backends.local_transformers.scoring_worker import LossCache, Pair, ScoringWorker

__all__ = ["LocalScorer", "TextLoss", "Unscored", "close_scorers", "open_scorer"]


class LocalScorer:
    """Losses of given texts under a causal language model of transformers, in a thread of this process.

    **Which tokens.** The text is always tokenised by itself, so it is the same tokens after every prefix, and the loss
    is over these tokens only. A prefix is a user's message: written by the tokenizer's chat template up to where the
    answer begins, or, where there is no template, as BOS, the prefix and a blank line. The empty prefix is BOS alone.
    A tokenizer without BOS cannot predict the first token of a text with nothing in front; there the first token is
    left out after every prefix, so that losses with and without one compare the same tokens.

    **Batches.** Callers that wait are joined, and rows of like length share a pass, padded on the right. With
    `max_batch` None that is so on GPUs and in low precision (32 rows). On the CPU in float32 a row runs alone: sharing
    would gain little there (measured with 110 million parameters on two cores: a tenth of the time at 256 tokens, half
    at 32), and the last bits of a loss would depend on who else happened to wait, so that an interrupted run could not
    repeat itself to the byte.

    Args:
        model, device, dtype, revision, trust_remote_code: as for `TransformersBackend`.
        max_batch: rows a pass.
        batch_tokens: tokens a pass, padding included; a longer text runs alone.
        cache_pairs: losses kept, by (prefix, text), the least recently asked for leaving first.

    The model loads at the first use.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int | None = None,
        batch_tokens: int = 4096,
        cache_pairs: int = 20_000,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._source = model_source(
            model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        for name, value in (("max_batch", max_batch), ("batch_tokens", batch_tokens), ("cache_pairs", cache_pairs)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        self.name = self._source.model
        self._max_batch = max_batch
        self._batch_tokens = batch_tokens
        self._cache = LossCache(cache_pairs)
        self._worker: ScoringWorker | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"LocalScorer({self.name!r})"

    async def losses(self, pairs: Sequence[Pair]) -> list[TextLoss | Unscored]:
        """The loss of each (prefix, text), in order; an `Unscored` says why one has none.

        Raises `ConfigError` if the model cannot be loaded, `BadRequest` if the template refuses a prefix, a text does
        not fit into memory or its log-probabilities are no numbers, `ServerError` if the model failed otherwise, and
        `UsageError` in a process other than the one that opened the scorer.
        """
        if self._process != os.getpid():
            raise UsageError(
                f"{self!r} was opened in process {self._process} and used in process {os.getpid()}; "
                "open it inside the worker, and spawn workers instead of forking them"
            )
        found = self._cache.get(pairs)
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in found]
        if missing:
            with self._lock:
                future = self._opened().submit(missing)
            losses = await asyncio.wrap_future(future)
            found.update(zip(missing, losses, strict=True))
        return [found[pair] for pair in pairs]

    def close(self) -> None:
        """Release thread and model, after the pass that runs; the scorer may be used again."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None and self._process == os.getpid():
            worker.close()
            worker.thread.join()

    def _opened(self) -> ScoringWorker:
        if self._worker is None:
            self._worker = ScoringWorker(
                partial(load, self._source),
                max_batch=self._max_batch,
                batch_tokens=self._batch_tokens,
                cache=self._cache,
                name=self.name,
            )
        return self._worker


_shared: dict[tuple[int, ModelSource], LocalScorer] = {}
_shared_lock = threading.Lock()


def open_scorer(model: str | Path, device: str = "auto", dtype: str = "auto") -> LocalScorer:
    """The process's scorer of that model, made at the first call: rewards that name the same model share one.

    Nothing is loaded yet. Raises `ConfigError` for words that cannot be right.
    """
    source = model_source(model, device=device, dtype=dtype, revision=None, trust_remote_code=False)
    key = (os.getpid(), source)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = LocalScorer(source.model, device=device, dtype=dtype)
        return _shared[key]


def close_scorers() -> None:
    """Close every scorer that `open_scorer` gave out in this process. They may be used again."""
    with _shared_lock:
        scorers = [scorer for (process, _), scorer in _shared.items() if process == os.getpid()]
    for scorer in scorers:
        scorer.close()
