"""The label sets and what is measured on them: readers, missing values, stored judges, and the public sets."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from instructgym.errors import AuthenticationFailed, ConfigError, RewardError, ServerError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import AnswerReward, InstructionReward, Reward
from instructgym.train.reward_bench import label_files, label_rows
from instructgym.train.reward_bench.judge_runs import measure_judge_run
from instructgym.train.reward_bench.label_files import read_difficulty, read_judge_runs, read_preferences, read_rated
from instructgym.train.reward_bench.labels import LabelRow, measure_labels
from instructgym.types import Completion, Sampling, Score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the optional public label sets are not beside the checkout"
)
ACCURACY = "accuracy (ties half)"
PAIRS = [
    {"subset": "A", "input": "one", "output_1": "good and long", "output_2": "bad", "label": 1},
    {"subset": "A", "input": "two", "output_1": "bad and long", "output_2": "good", "label": 2},
    {"subset": "A", "input": "three", "output_1": "good", "output_2": "bad and long", "label": "1"},
    {"subset": "B", "input": "four", "output_1": "bad", "output_2": "good", "label": 2},
]
PUBLISHED = {
    "correct_False": "1 / 3 = 33.33333333333333%",
    "correct_True": "2 / 3 = 66.66666666666666%",
    "correct_average": "50.0%",
    "correct_both": "0 / 3 = 0.0%",
    "equal": "1 / 3 = 33.33333333333333%",
    "kappa_False": 0.0,
    "kappa_True": 0.0,
    "kappa_average": 0.0,
    "kappa_agreement": float("nan"),
}


def votes(*given: int) -> dict[str, object]:
    pair = {"instruction": "do", "input": "it", "response1": "good", "response2": "bad"}
    return pair | {f"annotator{number}": vote for number, vote in enumerate(given, 1)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    sets = {
        label_files.DIFFICULTY: [
            {"Instruction": "word " * (difficulty + (difficulty == 3)), "Difficulty": str(difficulty)}
            for difficulty in range(1, 8)
        ],
        label_files.LLMBAR: PAIRS,
        label_files.LLMBAR_RUNS: [
            {
                "subset": "A",
                "evaluator": "Somebody",
                "strategy": "CoT",
                "winner_swap_false": ["1", "1", None],
                "winner_swap_true": ["2", "2", "1"],
                "published": PUBLISHED,
            }
        ],
        label_files.PANDALM: [votes(1, 1, 2), votes(0, 1, 2), votes(2, 2, 2), votes(0, 0, 1)],
        label_files.AUTO_J: [
            {"prompt": "p", "response_1": "good", "response_2": "bad", "label": label} for label in (0, 1, 2)
        ],
        label_files.PROMETHEUS: [
            {"instruction": "rate", "response": "so " * score, "gpt4_score": [score, score, last]}
            for score, last in ((1, 1), (2, 2), (3, 3), (4, 4), (5, None))
        ],
    }
    for name, rows in sets.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


class Depth(InstructionReward):
    """The number of words; missing or failing where the test says so."""

    name = "depth"

    def __init__(self, instead=None) -> None:
        self.instead, self.asked = instead or {}, []

    async def score_instruction(self, instruction):
        words = len(instruction.text.split())
        self.asked.append(words)
        found = self.instead.get(words, np.float32(words))
        if isinstance(found, Exception):
            raise found
        return Score(found)


class Good(AnswerReward):
    """1 for an answer that says good; no answer for the instruction `four`."""

    name = "good"

    async def score_answer(self, instruction, answer):
        if instruction.text == "four":
            raise ServerError("no answer")
        return Score(float(len(answer)) if instruction.text == "rate" else float("good" in answer))


class Rewrites(Reward):
    """Compares a rewrite with its parent."""

    name = "rewrites"


class PairJudge:
    """Prefers the answer that says good; of `three` whatever stands first, and of `one` it says nothing readable."""

    name = "scripted"

    async def complete(self, request):
        question = request.messages[1].content
        first, second = (re.search(rf"Answer {name}:\n(.+?)\n\n", question, re.S)[1] for name in "AB")
        if ">\nthree\n<" in question:
            return Completion("A")
        if ">\none\n<" in question:
            return Completion("Well.")
        return Completion("A" if "good" in first and "good" not in second else "B")


def row(rows: list[LabelRow], who: str, dataset: str, measure: str) -> LabelRow:
    (found,) = [one for one in rows if (one.who, one.dataset, one.measure) == (who, dataset, measure)]
    return found


async def test_a_missing_score_and_a_failed_call_are_counted_and_never_a_number(data: Path) -> None:
    rows = await measure_labels({"depth": Depth({2: None, 5: ServerError("down")})}, data)
    found = row(rows, "depth", label_rows.DIFFICULTY, "Spearman")
    # Of the words 1, 2, 4, 4, 5, 6, 7 two are missing; 4 and 4 are a tie against 3 and 4.
    assert found.value == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4, 5], [1, 2, 3, 4, 5])[0, 1])
    assert (found.n, found.missing) == (7, 2)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert row(rows, "depth", label_rows.DIFFICULTY, "Kendall tau-b").value == pytest.approx(9 / np.sqrt(90))


async def test_all_missing_is_undefined_with_the_count(data: Path) -> None:
    rows = await measure_labels({"depth": Depth(dict.fromkeys(range(1, 8)))}, data)
    found = row(rows, "depth", label_rows.DIFFICULTY, "Spearman")
    assert (found.value, found.n, found.missing, found.low) == (None, 7, 7, None)


async def test_strict_accuracy_tie_rate_and_coverage_stand_apart_by_subset(data: Path) -> None:
    rows = await measure_labels({"good": Good()}, data)
    found = row(rows, "good", "A", ACCURACY)
    assert (found.value, found.n, found.missing) == (1.0, 3, 0)
    assert found.parts == {"strict": 1.0, "tie_rate": 0.0, "coverage": 1.0}
    assert row(rows, "good", "A", "Cohen's kappa").value == 1.0
    failed = row(rows, "good", "B", ACCURACY)
    assert (failed.value, failed.n, failed.missing, failed.parts) == (None, 1, 1, {"coverage": 0.0})
    tied = row(rows, label_rows.LENGTH, "B", ACCURACY)
    assert (tied.value, tied.note) == (0.5, "ties 100%, strictly 0.000")
    assert tied.parts == {"strict": 0.0, "tie_rate": 1.0, "coverage": 1.0}
    longer = row(rows, label_rows.LENGTH, "A", ACCURACY)
    assert (longer.value, longer.low is not None) == (1 / 3, True)


async def test_scores_are_held_against_what_the_labels_agree_with_themselves(data: Path) -> None:
    rows = await measure_labels({"good": Good()}, data)
    assert row(rows, "good", label_rows.SCORES, "Spearman").value == pytest.approx(1.0)
    ceiling = row(rows, label_rows.LABELS, label_rows.SCORES, "Spearman")
    assert (ceiling.value, ceiling.n, ceiling.missing) == (pytest.approx(1.0), 5, 1)
    assert row(rows, label_rows.LABELS, label_rows.SCORES, "test-retest ICC(2,1)").value == pytest.approx(1.0)


async def test_pairwise_judge_is_compared_order_by_order_and_subset_by_subset(data: Path) -> None:
    judge = LLM(PairJudge(), "reviewer", "some-model", Sampling(temperature=0.0))
    rows = await measure_labels({}, data, preference_llm=judge)
    found = row(rows, label_rows.JUDGE, "A", ACCURACY)
    assert (found.value, found.n, found.missing) == (0.75, 3, 1)
    assert found.parts == {"strict": 0.5, "tie_rate": 0.5, "coverage": 2 / 3}
    for dataset, agreed, n, missing in (("A", 1 / 2, 3, 1), ("B", 1.0, 1, 0), ("LLMBar", 2 / 3, 4, 1)):
        orders = row(rows, label_rows.JUDGE, dataset, "agreement of the orders")
        assert (orders.value, orders.n, orders.missing) == (agreed, n, missing)


async def test_reward_that_can_do_neither_is_listed_with_the_reason(data: Path) -> None:
    rows = await measure_labels({"rewrites": Rewrites()}, data)
    assert rows[-1] == LabelRow("rewrites", "", "", None, 0, note="scores a rewrite against its parent")


async def test_limit_takes_records_from_everywhere_in_the_set(data: Path) -> None:
    reward = Depth()
    await measure_labels({"depth": reward}, data, limit=3)
    assert reward.asked == [1, 4, 5]


async def test_rows_are_plain_json(data: Path) -> None:
    rows = await measure_labels({"depth": Depth(), "good": Good(), "rewrites": Rewrites()}, data)
    text = json.dumps([dataclasses.asdict(one) for one in rows], allow_nan=False)
    assert [LabelRow(**one) for one in json.loads(text)] == rows


async def test_a_failure_that_ends_every_run_is_raised(data: Path) -> None:
    with pytest.raises(AuthenticationFailed, match="no key"):
        await measure_labels({"depth": Depth({1: AuthenticationFailed("no key")})}, data)


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (float("nan"), "reward 'depth' returned nan for a labelled text; expected one finite float or None."),
        ("high", "reward 'depth' returned a str for a labelled text; expected one finite float or None."),
        (ZeroDivisionError("by zero"), "reward 'depth' raised ZeroDivisionError on a labelled text: by zero"),
    ],
)
async def test_what_is_no_score_is_an_error_that_names_the_reward(data: Path, instead: object, message: str) -> None:
    with pytest.raises(RewardError) as caught:
        await measure_labels({"depth": Depth({6: instead})}, data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (label_files.DIFFICULTY, read_difficulty),
        (label_files.LLMBAR, read_preferences),
        (label_files.PANDALM, read_preferences),
        (label_files.AUTO_J, read_preferences),
        (label_files.PROMETHEUS, read_rated),
        (label_files.LLMBAR_RUNS, read_judge_runs),
    ],
)
def test_file_that_is_missing_empty_or_something_else_is_named(data: Path, name: str, read) -> None:
    path = data / name
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"other": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(data)
    line = len(whole.splitlines()) + 1
    assert str(caught.value).startswith(f"{path}, line {line} is not a record of that label set (KeyError: ")
    path.write_text(whole + "no JSON\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="JSONDecodeError"):
        read(data)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(data)
    assert str(caught.value) == f"{path} is empty; docs/rewards.md says what it holds."
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        read(data)
    assert str(caught.value) == f"the folder of label sets {data} has no {name}; docs/rewards.md says what it holds."


def test_majority_of_the_annotators_decides_and_without_one_it_is_a_tie(data: Path) -> None:
    pairs = read_preferences(data)["PandaLM"]
    assert [pair.label for pair in pairs] == [1.0, 0.5, 0.0, 0.5]
    assert pairs[1].votes == (0.5, 1.0, 0.0)
    assert pairs[0].instruction.render() == "do\n\nit"


@pytest.mark.parametrize(("stored", "expected"), [(True, "True"), (False, "False")])
def test_answer_that_stands_as_a_json_value_is_the_word(data: Path, stored: bool, expected: str) -> None:
    (data / label_files.PANDALM).write_text(json.dumps(votes(1, 1, 1) | {"response1": stored}) + "\n", encoding="utf-8")
    assert read_preferences(data)["PandaLM"][0].first == expected


def test_run_whose_verdicts_do_not_match_the_pairs_is_refused(data: Path) -> None:
    path = data / label_files.LLMBAR_RUNS
    path.write_text(path.read_text(encoding="utf-8").replace('["2", "2", "1"]', '["2"]'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 1 is not a record .*ValueError: 3 and 1 winners for 3 pairs of A"):
        read_judge_runs(data)


def test_stored_run_counts_the_unread_as_wrong_and_a_wrong_publication_is_noticed(data: Path) -> None:
    (run,) = read_judge_runs(data)
    found = measure_judge_run(run)
    assert (run.labels, run.forward) == ((1, 2, 1), (1, 1, None))
    own = found.as_published
    assert (own.accuracy_forward, own.accuracy_backward, own.accuracy_average) == (1 / 3 * 100, 2 / 3 * 100, 50.0)
    assert (own.accuracy_both, own.agreement, found.unread) == (0.0, 0.0, 1)
    assert run.published is not None
    assert run.published.kappa_orders is None
    assert not found.equals_published(run.published)
    assert found.equals_published(dataclasses.replace(run.published, agreement=0.0))


# --- the public sets --------------------------------------------------------------------------------------------------
@pytest.mark.shared_data
@needs_shared
def test_accuracies_and_agreement_of_all_stored_runs_equal_the_published_ones() -> None:
    runs = read_judge_runs(SHARED)
    assert len(runs) == 203
    measured = [measure_judge_run(run) for run in runs]
    assert all(found.equals_published(run.published) for found, run in zip(measured, runs, strict=True))
    assert sum(found.unread for found in measured) == 121


@pytest.mark.shared_data
@needs_shared
def test_published_kappas_come_only_out_of_the_faulty_functions() -> None:
    correct_is_published: Counter[str] = Counter()
    for run in read_judge_runs(SHARED):
        found = measure_judge_run(run)
        for name in ("kappa_forward", "kappa_backward", "kappa_average", "kappa_orders"):
            assert getattr(found.as_published, name) == pytest.approx(getattr(run.published, name), abs=1e-12)
        correct_is_published["labels"] += abs(found.kappa - run.published.kappa_average) < 1e-9
        same_orders = abs(found.kappa_orders - run.published.kappa_orders) < 1e-9
        correct_is_published["orders"] += same_orders
        assert same_orders or found.unread
    assert correct_is_published == {"labels": 0, "orders": 154}


@pytest.mark.shared_data
@needs_shared
def test_public_sets_are_read_whole() -> None:
    assert {item.difficulty for item in read_difficulty(SHARED)} == set(range(1, 11))
    pairs = read_preferences(SHARED)
    assert Counter(pair.subset for pair in pairs["LLMBar"]) == {
        "LLMBar/Natural": 100,
        "LLMBar/Adversarial/Neighbor": 134,
        "LLMBar/Adversarial/GPTInst": 92,
        "Processed/MT-Bench": 200,
    }
    assert Counter(pair.label for pair in pairs["PandaLM"]) == {0.0: 356, 1.0: 274, 0.5: 67}
    assert Counter(pair.label for pair in pairs["Auto-J"]) == {1.0: 217, 0.0: 220, 0.5: 163}
    assert {len(item.scores) for item in read_rated(SHARED)} == {3}


@pytest.mark.shared_data
@needs_shared
async def test_what_length_alone_and_the_labels_themselves_reach() -> None:
    rows = await measure_labels({}, SHARED)
    reached = {(one.dataset, one.measure): one.value for one in rows if one.who == label_rows.LENGTH}
    expected = {
        (label_rows.DIFFICULTY, "Spearman"): 0.320,
        ("LLMBar/Natural", ACCURACY): 0.550,
        ("LLMBar/Adversarial/Neighbor", ACCURACY): 0.134,
        ("LLMBar/Adversarial/GPTInst", ACCURACY): 0.163,
        ("Processed/MT-Bench", ACCURACY): 0.6825,
        ("PandaLM", ACCURACY): 0.690,
        ("Auto-J", ACCURACY): 0.696,
        (label_rows.SCORES, "Spearman"): 0.307,
    }
    assert {key: reached[key] for key in expected} == pytest.approx(expected, abs=6e-4)
    assert row(rows, label_rows.LABELS, label_rows.SCORES, "Spearman").value == pytest.approx(0.844, abs=6e-4)
    assert row(rows, label_rows.LABELS, "PandaLM", "Cohen's kappa").value == pytest.approx(0.846, abs=6e-4)
    assert row(rows, "stored judges", "LLMBar", "runs reproduced").value == 1.0
