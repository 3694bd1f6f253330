"""What the stages of a round hand on: prompts, candidates, judgements, pairs. Each is one JSON line of a file.

Every record names the ones that it was made of, so that a pair leads back to its judgements, answers, prompt and model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from instructgym.types import Instruction

__all__ = ["Candidate", "Judgement", "Pair", "Prompt", "from_row", "to_row"]

R = TypeVar("R", "Prompt", "Candidate", "Judgement", "Pair")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a round. `source` says where it is from: ``generated``, ``evolved``, ``file`` or ``seed``.

    `parents` are the ids of the shots that it was written after, or of the seed that it was evolved from. `reference`
    is a known answer: the human one of a seed set; empty if there is none.
    """

    id: str
    instruction: str
    input: str = ""
    source: str = "file"
    parents: tuple[str, ...] = ()
    reference: str = ""

    @property
    def as_instruction(self) -> Instruction:
        return Instruction(self.instruction, self.input)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer to a prompt. `index` is its number among the answers of `model`; `cut`: it met the token limit.

    `failure` says why there is no answer; the text is then empty.
    """

    prompt: str
    index: int
    text: str
    model: str
    tokens: int | None = None
    cut: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one candidate, by `samples` draws; None is a draw that could not be read.

    `score` is the mean of the valid draws; None where fewer than were asked for are valid. `replies` are the texts
    as they were given, in the order of `samples`.
    """

    prompt: str
    candidate: int
    judge: str
    score: float | None
    samples: tuple[float | None, ...] = ()
    replies: tuple[str, ...] = ()

    @property
    def valid(self) -> int:
        return sum(sample is not None for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference. `chosen_from` and `rejected_from` name the answers: ``MODEL/INDEX``, ``teacher/0`` or ``human``.

    Scores are None where no judge was asked.
    """

    prompt: str
    instruction: str
    input: str
    chosen: str
    rejected: str
    chosen_from: str
    rejected_from: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    weight: float = 1.0

    @property
    def as_instruction(self) -> Instruction:
        return Instruction(self.instruction, self.input)

    @property
    def margin(self) -> float | None:
        """By how much the chosen answer is better; None where no judge was asked."""
        if self.chosen_score is None or self.rejected_score is None:
            return None
        return self.chosen_score - self.rejected_score


def to_row(record: Prompt | Candidate | Judgement | Pair) -> dict[str, Any]:
    """A JSON object of the record's fields."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(record).items()}


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that `to_row` wrote. Raises TypeError for fields that it does not have."""
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return kind(**fields)
