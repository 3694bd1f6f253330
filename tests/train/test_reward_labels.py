"""Rewards against labels: on sets written here, and on the public ones where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import AnswerReward, InstructionReward, Reward
from instructgym.train.reward_bench import measure_labels
from instructgym.train.reward_bench.label_files import (
    read_difficulty,
    read_judge_runs,
    read_preferences,
    read_rated,
)
from instructgym.types import Completion, Score

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def write(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    write(
        tmp_path,
        "evolved/wizardlm_testset_150.jsonl",
        [{"Instruction": "word " * number, "Difficulty": str(number)} for number in range(1, 9)],
    )
    pairs = [("a long good answer", "bad", "1"), ("bad", "a long good answer", "2"), ("good", "a long bad answer", "1")]
    write(
        tmp_path,
        "judges/llmbar_pairs.jsonl",
        [
            {"subset": "Natural", "id": str(i), "input": "Ask.", "output_1": one, "output_2": two, "label": label}
            for i, (one, two, label) in enumerate(pairs)
        ],
    )
    write(
        tmp_path,
        "judges/llmbar_judgments.jsonl",
        [
            {
                "subset": "Natural",
                "evaluator": "M",
                "strategy": "plain",
                "winner_swap_false": ["1", "2", "None"],
                "winner_swap_true": ["1", "1", "1"],
                "published": {},
            }
        ],
    )
    votes = [(1, 1, 2), (0, 1, 2), (2, 2, 2)]
    write(
        tmp_path,
        "judges/pandalm_testset.jsonl",
        [
            {
                "instruction": "Ask.",
                "input": "",
                "response1": "good",
                "response2": "bad",
                **{f"annotator{i + 1}": vote for i, vote in enumerate(vote3)},
            }
            for vote3 in votes
        ],
    )
    write(
        tmp_path,
        "judges/autoj_pairwise.jsonl",
        [{"prompt": "Ask.", "response_1": "good", "response_2": "bad", "label": label} for label in (0, 1, 2)],
    )
    write(
        tmp_path,
        "judges/prometheus_mtbench_scores.jsonl",
        [
            {"instruction": "Ask.", "response": "good " * score, "gpt4_score": [score, None, score]}
            for score in range(1, 6)
        ],
    )
    return tmp_path


class Words(InstructionReward):
    name = "words"

    async def score_instruction(self, instruction):
        return Score(float(len(instruction.text.split())))


class Good(AnswerReward):
    """Counts the word "good"; fails on one answer."""

    name = "good"

    async def score_answer(self, instruction, answer):
        if answer == "a long bad answer":
            raise CallTimeout("no answer in 5 s")
        return Score(float(answer.split().count("good")))


class Transitional(Reward):
    name = "transitional"


class FirstWins:
    """A pairwise judge that always prefers the answer that it sees first."""

    name = "first"

    async def complete(self, request):
        assert len(fenced_blocks(request.messages[-1].content)) >= 2
        return Completion("A")

    async def aclose(self):
        pass


async def rows_of(data, **options):
    rewards = {"words": Words(), "good": Good(), "transitional": Transitional()}
    rows = await measure_labels(rewards, data, **options)
    return {(row.who, row.dataset, row.measure): row for row in rows}


async def test_every_reward_is_asked_for_what_it_can_say(data):
    rows = await rows_of(data)
    assert rows["words", "WizardLM difficulty", "Spearman"].value == pytest.approx(1.0)
    assert rows["length (words)", "WizardLM difficulty", "Kendall tau-b"].value == pytest.approx(1.0)
    found = rows["good", "Natural", "accuracy (ties half)"]
    assert (found.value, found.n, found.missing) == (1.0, 3, 1)  # the failed call is missing, not wrong
    assert rows["length (words)", "Natural", "accuracy (ties half)"].value == pytest.approx(2 / 3)
    assert rows["good", "Prometheus MT-bench scores", "Spearman"].value == pytest.approx(1.0)
    assert rows["the labels themselves", "Prometheus MT-bench scores", "test-retest exact agreement"].value == 1.0
    assert rows["best stored judge", "Natural", "accuracy, both orders"].value == pytest.approx(4 / 6)
    assert "scores a rewrite against its parent" in rows["transitional", "", ""].note
    assert ("words", "Natural", "accuracy (ties half)") not in rows


async def test_ties_in_labels_are_left_out_of_accuracy_and_count_in_kappa(data):
    rows = await rows_of(data)
    pandalm = rows["good", "PandaLM", "accuracy (ties half)"]
    assert (pandalm.value, pandalm.n) == (0.5, 2)  # no majority of three different votes is a tie
    assert rows["good", "Auto-J", "Cohen's kappa"].n == 3


async def test_a_pairwise_judge_is_asked_in_both_orders(data):
    rows = await rows_of(data, preference_llm=LLM(FirstWins(), "reviewer", "m"))
    assert rows["pairwise judge", "Natural", "accuracy (ties half)"].value == 0.5
    assert rows["pairwise judge", "Natural", "accuracy (ties half)"].note.startswith("ties 100%")
    assert rows["pairwise judge", "LLMBar", "agreement of the orders"].value == 0.0


async def test_a_limit_takes_items_evenly(data):
    rows = await rows_of(data, limit=4)
    assert rows["words", "WizardLM difficulty", "Spearman"].n == 4


async def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no evolved/wizardlm_testset_150\.jsonl; docs/rewards\.md says what it"):
        await measure_labels({"words": Words()}, tmp_path)


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.is_dir(), reason="the optional public data are not beside the checkout")
def test_the_public_sets_are_read():
    assert len(read_difficulty(DATA)) == 150
    assert {1.0, 10.0} <= {item.difficulty for item in read_difficulty(DATA)}
    preferences = read_preferences(DATA)
    assert {name: len(items) for name, items in preferences.items()} == {"LLMBar": 526, "PandaLM": 697, "Auto-J": 600}
    assert {item.label for item in preferences["LLMBar"]} == {0.0, 1.0}
    assert len(read_rated(DATA)) == 320
    assert len(read_judge_runs(DATA)) == 203
