"""The pipelines: where a pair's chosen and rejected answers come from, and who judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instructgym.errors import ConfigError
from instructgym.plugins import nearest

__all__ = ["PIPELINES", "Pipeline", "pipeline_of"]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How a round makes its pairs.

    `chosen` is ``best`` (of the student's answers), ``teacher`` (one answer of the teacher) or ``reference`` (the
    prompt's known answer); `rejected` is ``worst`` or ``own`` (one answer of the student). `judge` is the student
    itself, the judge of section `llm.judge`, or nobody.
    """

    name: str
    chosen: Literal["best", "teacher", "reference"]
    judge: Literal["student", "judge", None]
    summary: str

    @property
    def judged(self) -> bool:
        return self.judge is not None


PIPELINES = {
    pipeline.name: pipeline
    for pipeline in (
        Pipeline(
            "self_reward",
            "best",
            "student",
            "the student's best answer against its worst, as it judges itself (arXiv 2401.10020)",
        ),
        Pipeline(
            "teacher_reward",
            "best",
            "judge",
            "the student's best answer against its worst, as a judge of yours scores them",
        ),
        Pipeline("teacher_demo", "teacher", None, "the teacher's answer against one of the student's own"),
        Pipeline("spin", "reference", None, "the human answer against one of the student's own (arXiv 2401.01335)"),
        Pipeline(
            "oracle_reward", "best", "judge", "the student's best answer against its worst, by a checker: testbed only"
        ),
    )
}


def pipeline_of(name: str) -> Pipeline:
    """The pipeline of a name; dashes are underscores. Raises `ConfigError`."""
    plain = name.replace("-", "_")
    if plain not in PIPELINES:
        raise ConfigError(f"there is no pipeline '{name}'; {nearest(plain, PIPELINES)}")
    return PIPELINES[plain]
