"""One alignment, as its stages see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from instructgym.errors import BackendError
from instructgym.llm_backends.base import LLM
from instructgym.train.alignment.config import AlignmentConfig
from instructgym.train.alignment.models import Models, StudentBackend
from instructgym.train.alignment.pipelines import Pipeline
from instructgym.train.alignment.records import Candidate, Judgement, Pair, Prompt, from_row, to_row
from instructgym.train.bounded import ENDS_THE_RUN, map_bounded
from instructgym.train.connection import Connection, sampling_of
from instructgym.train.progress import Progress
from instructgym.train.run_folder import Manifest, RunFolder, canonical_json
from instructgym.types import Sampling

__all__ = ["FIRST", "AlignmentContext", "Round", "words_of"]

FIRST = "M1"
"""The model that supervised fine-tuning makes."""

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", Prompt, Candidate, Judgement, Pair)


@dataclass(frozen=True, slots=True)
class Round:
    """One iteration: DPO makes `model` of `before`, by the pairs of `pipeline`. The first round makes M2."""

    number: int
    pipeline: Pipeline

    @property
    def model(self) -> str:
        return f"M{self.number}"

    @property
    def before(self) -> str:
        return f"M{self.number - 1}"

    @property
    def index(self) -> int:
        """0 for the first round."""
        return self.number - 2

    def file(self, name: str) -> str:
        """A file of the round, as it is called in the run's folder."""
        return f"{self.model}/{name}"


@dataclass(frozen=True)
class AlignmentContext:
    """What a stage works with. `manifests` are the finished stages before it."""

    config: AlignmentConfig
    folder: RunFolder
    connection: Connection
    student: StudentBackend
    models: Models
    progress: Progress
    manifests: Mapping[str, Manifest] = field(default_factory=dict)

    def ask_student(self, model: str, stage: str, sampling: Sampling) -> LLM:
        """A model of this run as an LLM."""
        return self.connection.llm_of("student", self.models.id(model), sampling, stage)

    def ask_guide(self, role: str, stage: str, sampling: Sampling | None = None, model: str = "") -> LLM:
        """The teacher or the judge as an LLM; `model` is another one of its backend."""
        settings = self.config.llm.for_role(role)
        model = model or settings.model or settings.backend
        return self.connection.llm_of(role, model, sampling or sampling_of(settings), stage)

    def each(self, stage: str, work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """``[await work(item) for item in items]``, many at a time, with progress."""
        self.progress.started(stage, len(items))
        done = 0

        def on_done(_index: int, _result: R) -> None:
            nonlocal done
            done += 1
            self.progress.advance(stage, done)

        width = self.config.limits.width
        return self.connection.call(lambda: map_bounded(work, items, width=width, on_done=on_done))

    def free_device(self) -> None:
        """Close the student, so that training has the memory."""
        if self.connection.connected:
            self.connection.call(self.student.aclose)

    def write(self, name: str, rows: Sequence[Prompt | Candidate | Judgement | Pair]) -> None:
        self.folder.write_lines(name, [canonical_json(to_row(row)) for row in rows])

    def read(self, kind: type[K], name: str) -> list[K]:
        return [from_row(kind, row) for row in self.folder.read_lines(name)]

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.folder.write_lines(name, [canonical_json(dict(row)) for row in rows])


def words_of(error: BackendError) -> str:
    """A failure as it stands in a record; one that ends the run is raised again."""
    if isinstance(error, ENDS_THE_RUN):
        raise error
    return f"{type(error).__name__}: {error}"
