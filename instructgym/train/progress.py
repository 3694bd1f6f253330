"""How a run tells whoever watches; library code prints nothing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Told of a run's course. `advance` may be called from the event loop's thread, and must return at once."""

    def say(self, text: str) -> None:
        """One line about a choice that the run made (the seeds' format, the encoder)."""
        ...

    def started(self, stage: str, total: int | None) -> None:
        """A stage begins; `total` units of work if known."""
        ...

    def advance(self, stage: str, done: int, note: str = "") -> None:
        """`done` units are finished, of those that `started` announced."""
        ...

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        """A stage ended; `skipped`: it was finished before, with the same inputs."""
        ...


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None: ...

    def started(self, stage: str, total: int | None) -> None: ...

    def advance(self, stage: str, done: int, note: str = "") -> None: ...

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None: ...
