"""sentence-transformers models as encoders, in a thread of their own."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import ConfigError, UsageError
from instructgym.rewards.encoders.base import CACHE_TEXTS, Encoder

__all__ = ["SentenceTransformerEncoder"]


_JOINED_TEXTS = 256
_LENGTH_STEP = 16
# Tokens of a pass. Twice as many would be a tenth faster on thousands of texts, but slower on a few, as in a rollout.
_TOKENS_ON_CPU = 128
_LEAST_ROWS = 2  # a lone row of 128 tokens costs a sixth more than each of two
_ROWS_ON_CUDA = 32
_Job = tuple[Sequence[str], "Future[NDArray[np.float32]]"]


class SentenceTransformerEncoder(Encoder):
    """A sentence-transformers model by name or folder.

    One worker thread owns the model. It takes whatever waits, up to 256 texts at once, sorts them by length, and runs
    them in passes of one fixed shape for each length (rows x a multiple of 16 tokens, empty rows filled up; on a CPU
    about 128 tokens a pass, 2 to 8 rows). So a vector does not depend on which other texts happened to wait: with free
    shapes its last bits could, and a run that was interrupted could not repeat itself to the byte.

    The model loads at the first use, or with `load`. Raises `ConfigError` if it cannot be loaded, `UsageError` in a
    process other than the one that opened it. Downloads obey HF_HUB_OFFLINE; `local_files_only` forbids them.
    """

    related_cosine = 0.2

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        local_files_only: bool = False,
        cache_texts: int = CACHE_TEXTS,
    ) -> None:
        super().__init__(cache_texts=cache_texts)
        self.name = model
        self._device = device
        self._local_files_only = local_files_only
        self._model: Any = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._start = threading.Lock()

    def load(self) -> None:
        """Load the model now, in the worker thread; sets `dim`. Raises `ConfigError`."""
        self._submit(()).result()

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        missing = self._missing(texts)
        if missing or not self.dim:
            vectors = await asyncio.wrap_future(self._submit(missing))
            return self._gather(texts, dict(zip(missing, vectors, strict=True)))
        return self._gather(texts, {})

    def encode_sync(self, texts: Sequence[str]) -> NDArray[np.float32]:
        missing = self._missing(texts)
        if missing or not self.dim:
            return self._gather(texts, dict(zip(missing, self._submit(missing).result(), strict=True)))
        return self._gather(texts, {})

    def close(self) -> None:
        with self._start:
            thread, self._thread = self._thread, None
            if thread is not None and self._process == os.getpid():
                self._jobs.put(None)
                thread.join()
            self._model = None

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._submit(texts).result()

    def _submit(self, texts: Sequence[str]) -> Future[NDArray[np.float32]]:
        if self._process != os.getpid():
            raise UsageError(
                f"encoder '{self.name}' was opened in process {self._process} and used in process {os.getpid()}; "
                "open it inside the worker."
            )
        future: Future[NDArray[np.float32]] = Future()
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"encoder {self.name}", daemon=True)
                self._thread.start()
            self._jobs.put((texts, future))
        return future

    # Everything below runs in the worker thread.

    def _work(self) -> None:
        held: _Job | None = None
        while True:
            job = held if held is not None else self._jobs.get()
            held = None
            if job is None:
                return
            jobs = [job]
            waiting = len(job[0])
            stop = False
            while waiting < _JOINED_TEXTS and not stop:
                try:
                    following = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                elif waiting + len(following[0]) > _JOINED_TEXTS:
                    held = following
                    break
                else:
                    jobs.append(following)
                    waiting += len(following[0])
            self._answer(jobs)
            if stop:
                return

    def _answer(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
        try:
            if self._model is None:
                self._open()
            texts = list(dict.fromkeys(text for job in jobs for text in job[0]))
            vectors = dict(zip(texts, self._run(texts), strict=True))
        except BaseException as error:  # whoever waits gets the error; the thread lives on
            for _, future in jobs:
                future.set_exception(error)
            return
        for wanted, future in jobs:
            rows = [vectors[text] for text in wanted]
            future.set_result(np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32))

    def _open(self) -> None:
        try:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(self.name, device=self._device, local_files_only=self._local_files_only)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"encoder '{self.name}' cannot be loaded: {reason} Expected the name or the folder of a "
                "sentence-transformers model, 'hashing', 'hashing:DIM' or 'auto'."
            ) from error
        self._model.eval()
        dim = self._model.encode(["dimension"], show_progress_bar=False).shape[1]
        self.dim = int(dim)

    def _run(self, texts: list[str]) -> NDArray[np.float32]:
        result = np.zeros((len(texts), self.dim), dtype=np.float32)
        tokenizer = getattr(self._model, "tokenizer", None)
        if not texts:
            return result
        if not callable(tokenizer) or getattr(tokenizer, "pad_token_id", None) is None:
            # Not a padded transformer (a static table of words, say): one text at a time is exact, and cheap there.
            for row, text in enumerate(texts):
                result[row] = self._model.encode([text], show_progress_bar=False)[0]
            return _unit(result)
        limit = self._model.max_seq_length or 512
        ids = tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
        lengths = [-(-max(len(row), 1) // _LENGTH_STEP) * _LENGTH_STEP for row in ids]
        order = sorted(range(len(texts)), key=lambda row: lengths[row])
        start = 0
        while start < len(order):
            length = lengths[order[start]]
            rows = self._rows(length)
            group = [row for row in order[start : start + rows] if lengths[row] == length]
            vectors = self._pass([ids[row] for row in group], (rows, min(length, limit)), tokenizer.pad_token_id)
            result[group] = vectors
            start += len(group)
        return _unit(result)

    def _rows(self, length: int) -> int:
        """The rows of every pass of that length, however few texts there are."""
        if str(self._model.device).startswith("cuda"):
            return _ROWS_ON_CUDA
        return max(_LEAST_ROWS, _TOKENS_ON_CPU // length)

    def _pass(self, ids: list[list[int]], shape: tuple[int, int], pad: int) -> NDArray[np.float32]:
        """One forward pass of the fixed shape (rows, length); returns the rows that were asked for."""
        import torch

        tokens = torch.full(shape, pad, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        mask[:, 0] = 1  # an empty row must attend to something, or its mean is 0 / 0
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        device = self._model.device
        with torch.inference_mode():
            output = self._model({"input_ids": tokens.to(device), "attention_mask": mask.to(device)})
        vectors: NDArray[np.float32] = output["sentence_embedding"][: len(ids)].float().cpu().numpy()
        return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return unit
