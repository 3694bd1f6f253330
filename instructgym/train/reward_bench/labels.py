"""Rewards against people and labels."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from instructgym.errors import BackendError, InstructGymError, RewardError
from instructgym.llm_backends.base import LLM
from instructgym.metrics.agreement import order_agreement
from instructgym.metrics.text import count_words
from instructgym.rewards.base import AnswerReward, InstructionReward, Reward
from instructgym.rewards.judging.preference import ask_preference
from instructgym.train.bounded import ENDS_THE_RUN, map_bounded
from instructgym.train.reward_bench.label_files import (
    Preference,
    Rated,
    read_difficulty,
    read_preferences,
    read_rated,
)
from instructgym.train.reward_bench.label_rows import (
    DIFFICULTY,
    JUDGE,
    LENGTH,
    SCORES,
    LabelRow,
    accuracy_rows,
    annotator_rows,
    by_subset,
    correlation_rows,
    mean,
    retest_rows,
    stored_rows,
)
from instructgym.types import Score

__all__ = ["LabelRow", "measure_labels"]

T = TypeVar("T")


async def measure_labels(
    rewards: Mapping[str, Reward],
    data: Path,
    *,
    limit: int | None = None,
    preference_llm: LLM | None = None,
    width: int = 64,
) -> list[LabelRow]:
    """What each reward agrees with, as far as it can be asked.

    An `InstructionReward` is compared with labels of difficulty, an `AnswerReward` with preferences between answers and
    with scores of them. Of the others nothing can be said: they score a rewrite against its parent, and get a row
    without a dataset that says so. `preference_llm` is asked which of two answers is better, in both orders. The length
    of the text, what the labels agree with themselves, and the stored verdicts of real judges stand beside them.

    Args:
        data: the folder of label sets.
        limit: at most so many items of each set, evenly spread.
        width: items in work at the same time.

    Raises:
        ConfigError: a file is missing or holds something else. RewardError: a reward raised, or gave what is not one
            finite number. BackendError: one that ends every run; other failed calls are missing scores.
    """
    of_instructions = {name: one for name, one in rewards.items() if isinstance(one, InstructionReward)}
    of_answers = {name: one for name, one in rewards.items() if isinstance(one, AnswerReward)}
    rows = await _difficulty(of_instructions, data, limit, width)
    for dataset, pairs in read_preferences(data).items():
        rows += await _preferences(of_answers, dataset, _spread(pairs, limit), width, preference_llm)
    rows += await _rated(of_answers, _spread(read_rated(data), limit), width)
    rows += stored_rows(data)
    for name in rewards:
        if name not in of_instructions and name not in of_answers:
            rows.append(LabelRow(name, "", "", None, 0, note="scores a rewrite against its parent"))
    return rows


async def _difficulty(
    rewards: Mapping[str, InstructionReward], data: Path, limit: int | None, width: int
) -> list[LabelRow]:
    items = _spread(read_difficulty(data), limit)
    labels = [item.difficulty for item in items]
    rows = correlation_rows(LENGTH, DIFFICULTY, [float(count_words(item.instruction.text)) for item in items], labels)
    for name, reward in rewards.items():
        calls = [partial(reward.score_instruction, item.instruction) for item in items]
        rows += correlation_rows(name, DIFFICULTY, await _scores(name, calls, width), labels)
    return rows


async def _preferences(
    rewards: Mapping[str, AnswerReward], dataset: str, items: Sequence[Preference], width: int, judge: LLM | None
) -> list[LabelRow]:
    rows = annotator_rows(dataset, items)
    longer = [_prefers(count_words(item.first), count_words(item.second)) for item in items]
    rows += accuracy_rows(LENGTH, items, longer)
    for name, reward in rewards.items():
        calls = [
            partial(reward.score_answer, item.instruction, answer)
            for item in items
            for answer in (item.first, item.second)
        ]
        found = await _scores(name, calls, width)
        rows += accuracy_rows(name, items, [_prefers(*pair) for pair in zip(found[::2], found[1::2], strict=True)])
    if judge is not None:
        rows += await _judged(judge, dataset, items, width)
    return rows


async def _judged(judge: LLM, dataset: str, items: Sequence[Preference], width: int) -> list[LabelRow]:
    orders: list[tuple[float | None, float | None]] = [(None, None)] * len(items)

    async def ask(number: int) -> Score:
        item = items[number]
        found = await ask_preference(judge, item.instruction, item.first, item.second)
        orders[number] = (found.forward, found.backward)
        return Score(found.value)

    rows = accuracy_rows(
        JUDGE, items, await _scores(JUDGE, [partial(ask, number) for number in range(len(items))], width)
    )
    for subset, places in ({dataset: list(range(len(items)))} | by_subset(items)).items():
        chosen = [orders[place] for place in places]
        agreed = order_agreement([one for one, _ in chosen], [two for _, two in chosen])
        unread = sum(None in pair for pair in chosen)
        rows.append(LabelRow(JUDGE, subset, "agreement of the orders", agreed, len(chosen), unread))
    return rows


async def _rated(rewards: Mapping[str, AnswerReward], items: Sequence[Rated], width: int) -> list[LabelRow]:
    rows = retest_rows(items)
    scored = [item for item in items if any(score is not None for score in item.scores)]
    labels = [mean(item.scores) for item in scored]
    rows += correlation_rows(LENGTH, SCORES, [float(count_words(item.answer)) for item in scored], labels)
    for name, reward in rewards.items():
        calls = [partial(reward.score_answer, item.instruction, item.answer) for item in scored]
        rows += correlation_rows(name, SCORES, await _scores(name, calls, width), labels)
    return rows


async def _scores(who: str, calls: Sequence[Callable[[], Awaitable[Score]]], width: int) -> list[float | None]:
    """The values, finite numbers; None for what is missing or whose call failed."""

    async def one(call: Callable[[], Awaitable[Score]]) -> float | None:
        try:
            score = await call()
        except ENDS_THE_RUN:
            raise
        except BackendError:
            return None
        except InstructGymError:
            raise
        except Exception as error:
            raise RewardError(f"reward '{who}' raised {type(error).__name__} on a labelled text: {error}") from error
        return None if score.value is None else _finite(who, score.value)

    return await map_bounded(one, calls, width=width)


def _finite(who: str, value: Any) -> float:
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    got = str(value) if isinstance(value, Real) else f"a {type(value).__name__}"
    raise RewardError(f"reward '{who}' returned {got} for a labelled text; expected one finite float or None.")


def _prefers(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def _spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of them, evenly spread."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[place * len(items) // limit] for place in range(limit)]
