"""What goes wrong in a thread that owns a model, as errors that callers know; and how such threads end."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Protocol

from instructgym.errors import InstructGymError, ServerError

__all__ = ["close_at_exit", "free_memory", "is_out_of_memory", "typed_error"]

_EXIT_GRACE_S = 5.0


class _Worker(Protocol):
    thread: threading.Thread

    def close(self) -> None: ...


def typed_error(error: Exception, what: str) -> Exception:
    """Errors of ours as they are; any other is transient: a batch of other rows may well pass."""
    if isinstance(error, InstructGymError):
        return error
    mapped = ServerError(f"{what}: {type(error).__name__}: {error}")
    mapped.__cause__ = error
    return mapped


def is_out_of_memory(error: Exception) -> bool:
    """True if the device, or this machine, could not hold the tensors."""
    import torch

    # The allocator of the CPU raises a bare RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def free_memory(device: object) -> None:
    """Hand memory that nothing uses back to the device."""
    import torch

    if getattr(device, "type", "") == "cuda":
        torch.cuda.empty_cache()


_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()


def close_at_exit(worker: _Worker) -> None:
    """Close `worker` when the interpreter ends, and wait a little for its thread."""
    _workers.add(worker)


@atexit.register
def _end_at_exit() -> None:
    """The interpreter aborts if it ends under a thread that is inside of torch; a step is over soon."""
    workers = list(_workers)
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.thread.join(_EXIT_GRACE_S)
