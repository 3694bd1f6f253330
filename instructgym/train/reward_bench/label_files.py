"""Readers of the label sets: public data that people put into one folder; none of it is shipped."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from instructgym.errors import ConfigError
from instructgym.types import Instruction

__all__ = [
    "Difficulty",
    "JudgeRun",
    "Preference",
    "Published",
    "Rated",
    "check_files",
    "read_difficulty",
    "read_judge_runs",
    "read_preferences",
    "read_rated",
]

T = TypeVar("T")

DIFFICULTY = "evolved/wizardlm_testset_150.jsonl"
LLMBAR = "judges/llmbar_pairs.jsonl"
LLMBAR_RUNS = "judges/llmbar_judgments.jsonl"
PANDALM = "judges/pandalm_testset.jsonl"
AUTO_J = "judges/autoj_pairwise.jsonl"
PROMETHEUS = "judges/prometheus_mtbench_scores.jsonl"
FILES = (DIFFICULTY, LLMBAR, LLMBAR_RUNS, PANDALM, AUTO_J, PROMETHEUS)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """An instruction and how difficult it is said to be, 1 to 10."""

    instruction: Instruction
    difficulty: float


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers and which is better: 1.0 the first, 0.0 the second, 0.5 a tie. `votes` are the single annotators',
    where the set has them."""

    subset: str
    instruction: Instruction
    first: str
    second: str
    label: float
    votes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer, scored 1 to 5 several times by the same judge; None where its reply could not be read."""

    instruction: Instruction
    answer: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What LLMBar published of a run: accuracies and the agreement of the orders in percent, kappas as they stand, None
    where undefined."""

    accuracy_forward: float
    accuracy_backward: float
    accuracy_average: float
    accuracy_both: float
    agreement: float
    kappa_forward: float | None
    kappa_backward: float | None
    kappa_average: float | None
    kappa_orders: float | None


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """A stored run of a judge on a subset of LLMBar: its winners (1, 2, None) in both orders, mapped back, the labels,
    and what was published of it, if anything."""

    subset: str
    judge: str
    strategy: str
    forward: tuple[int | None, ...]
    backward: tuple[int | None, ...]
    labels: tuple[int, ...]
    published: Published | None


def check_files(data: Path) -> None:
    """Raise `ConfigError` unless all label sets are there; what is in them is not read."""
    missing = [name for name in FILES if not (data / name).is_file()]
    if missing:
        raise ConfigError(
            f"the folder of label sets {data} has no {', '.join(missing)}; docs/rewards.md says what it holds."
        )


def read_difficulty(data: Path) -> list[Difficulty]:
    """WizardLM's test instructions (arXiv 2304.12244) with their difficulty labels.

    Raises ConfigError, as all readers here do, for a file that is not there or holds something else.
    """
    return _read(
        data, DIFFICULTY, lambda row: Difficulty(Instruction(_text(row["Instruction"])), float(row["Difficulty"]))
    )


def read_preferences(data: Path) -> dict[str, list[Preference]]:
    """Human or objective preferences by set: LLMBar and its subsets (arXiv 2310.07641), PandaLM (2306.05087; the
    majority of three annotators, a tie where there is none), Auto-J (2310.05470)."""
    return {
        "LLMBar": _read(data, LLMBAR, _llmbar_pair),
        "PandaLM": _read(data, PANDALM, _pandalm_pair),
        "Auto-J": _read(data, AUTO_J, _auto_j_pair),
    }


def read_rated(data: Path) -> list[Rated]:
    """Answers to MT-bench prompts with GPT-4's scores, three each (Prometheus, arXiv 2310.08491)."""
    return _read(
        data,
        PROMETHEUS,
        lambda row: Rated(
            Instruction(_text(row["instruction"])),
            _text(row["response"]),
            tuple(_number(score) for score in row["gpt4_score"]),
        ),
    )


def read_judge_runs(data: Path) -> list[JudgeRun]:
    """The stored verdicts of real judges on LLMBar."""
    labels: dict[str, list[int]] = {}
    for subset, label in _read(data, LLMBAR, lambda row: (row["subset"], int(row["label"]))):
        labels.setdefault(subset, []).append(label)

    def run(row: dict[str, Any]) -> JudgeRun:
        gold = tuple(labels[row["subset"]])
        forward, backward = tuple(map(_winner, row["winner_swap_false"])), tuple(map(_winner, row["winner_swap_true"]))
        if not len(forward) == len(backward) == len(gold):
            raise ValueError(f"{len(forward)} and {len(backward)} winners for {len(gold)} pairs of {row['subset']}")
        return JudgeRun(
            row["subset"],
            row["evaluator"],
            row["strategy"],
            forward,
            backward,
            gold,
            _published(row["published"]) if row["published"] else None,
        )

    return _read(data, LLMBAR_RUNS, run)


def _llmbar_pair(row: dict[str, Any]) -> Preference:
    label = {1: 1.0, 2: 0.0}[int(row["label"])]
    first, second = _text(row["output_1"]), _text(row["output_2"])
    return Preference(row["subset"], Instruction(_text(row["input"])), first, second, label)


def _pandalm_pair(row: dict[str, Any]) -> Preference:
    votes = tuple({0: 0.5, 1: 1.0, 2: 0.0}[int(row[f"annotator{number}"])] for number in (1, 2, 3))
    vote, count = Counter(votes).most_common(1)[0]
    # An answer that says nothing but "True" stands in the file as the JSON value.
    first, second = (
        str(answer) if isinstance(answer, bool) else _text(answer) for answer in (row["response1"], row["response2"])
    )
    instruction = Instruction(_text(row["instruction"]), _text(row["input"]))
    return Preference("PandaLM", instruction, first, second, vote if count > 1 else 0.5, votes)


def _auto_j_pair(row: dict[str, Any]) -> Preference:
    label = {0: 1.0, 1: 0.0, 2: 0.5}[int(row["label"])]
    first, second = _text(row["response_1"]), _text(row["response_2"])
    return Preference("Auto-J", Instruction(_text(row["prompt"])), first, second, label)


def _published(row: dict[str, Any]) -> Published:
    def percent(key: str) -> float:  # "81 / 100 = 81.0%" or "82.0%"
        return float(row[key].rpartition("=")[2].strip().removesuffix("%"))

    return Published(
        percent("correct_False"),
        percent("correct_True"),
        percent("correct_average"),
        percent("correct_both"),
        percent("equal"),
        _number(row["kappa_False"]),
        _number(row["kappa_True"]),
        _number(row["kappa_average"]),
        _number(row["kappa_agreement"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _winner(value: Any) -> int | None:
    return int(value) if str(value) in ("1", "2") else None


def _read(data: Path, name: str, build: Callable[[dict[str, Any]], T]) -> list[T]:
    path = data / name
    if not path.is_file():
        raise ConfigError(f"the folder of label sets {data} has no {name}; docs/rewards.md says what it holds.")
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(build(json.loads(line)))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{path}, line {number} is not a record of that label set ({type(error).__name__}: {error}); "
                    "docs/rewards.md says what it holds."
                ) from error
    if not rows:
        raise ConfigError(f"{path} is empty; docs/rewards.md says what it holds.")
    return rows
