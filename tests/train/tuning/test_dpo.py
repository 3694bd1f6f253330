"""DPO: whose numbers, which reference, which weights, and what the log says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from instructgym.errors import ConfigError
from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.encoding import EncodedPair, encode_pairs
from instructgym.train.tuning.examples import PreferenceExample
from instructgym.train.tuning.settings import LOSSES, DPOSettings, LoraSettings
from instructgym.train.tuning.student import open_student
from instructgym.types import Message

from .conftest import preferences

DPO = DPOSettings(lr=1e-3, batch_size=4, log_every=1)


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def independent(
    pairs: list[EncodedPair], model: Any, reference: Any, settings: DPOSettings, name: str
) -> tuple[float, float, float]:
    """(loss, summed log-probabilities of chosen, of rejected) of a batch, one sequence after the other."""

    def summed(network: Any, prompt: list[int], answer: list[int]) -> Any:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0]
        shifted = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return shifted[len(prompt) - 1 :].sum()

    losses, chosen, rejected = [], [], []
    mean_weight = sum(pair.weight for pair in pairs) / len(pairs)
    for pair in pairs:
        good, bad = (summed(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids))
        was_good, was_bad = (summed(reference, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids))
        n, m = len(pair.chosen_ids), len(pair.rejected_ids)
        gap = (good - was_good) - (bad - was_bad)
        normed = (good - was_good) / n - (bad - was_bad) / m
        beta, wrong = settings.beta, settings.label_smoothing
        value = {
            "sigmoid": -F.logsigmoid(beta * gap),
            "sigmoid_norm": -F.logsigmoid(beta * normed),
            "hinge": torch.relu(1 - beta * gap),
            "ipo": (normed - 1 / (2 * beta)) ** 2,
            "robust": (-(1 - wrong) * F.logsigmoid(beta * gap) + wrong * F.logsigmoid(-beta * gap)) / (1 - 2 * wrong),
            "sft": -good / n,
        }[name]
        losses.append(float(value) * pair.weight / mean_weight)
        chosen.append(float(good))
        rejected.append(float(bad))
    count = len(pairs)
    return sum(losses) / count, sum(chosen) / count, sum(rejected) / count


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_an_independent_computations(name: str, tiny: Path, tmp_path: Path) -> None:
    """Two steps on one batch: in the second the policy is no longer the reference."""
    settings = DPO.model_copy(
        update={"losses": {name: 1.0}, "label_smoothing": 0.1, "batch_size": 8, "max_steps": 2, "scheduler": "constant"}
    )
    result = train_dpo(tiny, preferences(8), settings, tmp_path / "two", device="cpu")
    after_one = train_dpo(
        tiny, preferences(8), settings.model_copy(update={"max_steps": 1}), tmp_path / "one", device="cpu"
    )
    start, one = open_student(tiny, device="cpu"), open_student(after_one.model, device="cpu")
    pairs, _ = encode_pairs(start, preferences(8), 256)
    for step, policy in enumerate((start.model, one.model)):
        loss, chosen, rejected = independent(pairs, policy, start.model, settings, name)
        row = log_of(result.log)[step]
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        assert row["logps/chosen"] == pytest.approx(chosen, abs=1e-4)
        assert row["logps/rejected"] == pytest.approx(rejected, abs=1e-4)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_trls_where_weights_are_equal(
    name: str, batch_size: int, accumulation: int, tiny: Path, tmp_path: Path
) -> None:
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from instructgym.train.tuning.trainer import quiet_libraries

    # Chosen answers of one length: TRL's likelihood term is a mean over the batch's tokens, ours one over answers.
    equal = [type(each)(each.prompt, "it is ship", each.rejected) for each in preferences(8)]
    settings = DPO.model_copy(
        update={
            "losses": {name: 1.0},
            "label_smoothing": 0.1,
            "batch_size": batch_size,
            "gradient_accumulation": accumulation,
            "max_steps": 2,
            "scheduler": "constant",
        }
    )
    ours = train_dpo(tiny, equal, settings, tmp_path / "ours", device="cpu")
    student, reference = open_student(tiny, device="cpu"), open_student(tiny, device="cpu")
    rows = [
        {
            "prompt": student.prompts.text(each.prompt),
            "chosen": f"{each.chosen}<|end|>",
            "rejected": f"{each.rejected}<|end|>",
        }
        for each in equal
    ]
    with quiet_libraries():
        trainer = DPOTrainer(
            model=student.model,
            ref_model=reference.model,
            args=DPOConfig(
                output_dir=str(tmp_path / "theirs"),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                max_steps=2,
                loss_type=[name],
                beta=settings.beta,
                label_smoothing=0.1,
                logging_steps=1,
                report_to="none",
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                seed=0,
                data_seed=0,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=student.tokenizer,
        )
        trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(theirs) == 2
    assert [row["loss"] for row in log_of(ours.log)] == pytest.approx(theirs, rel=1e-5)


def test_accumulated_batches_are_one_batch(tiny: Path, tmp_path: Path) -> None:
    whole = train_dpo(tiny, preferences(8), DPO.model_copy(update={"batch_size": 8}), tmp_path / "a", device="cpu")
    parts = DPO.model_copy(update={"batch_size": 2, "gradient_accumulation": 4})
    accumulated = train_dpo(tiny, preferences(8), parts, tmp_path / "b", device="cpu")
    one, other = (open_student(result.model, device="cpu").model for result in (whole, accumulated))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "more",
    [
        {"lora": LoraSettings(dropout=0.0)},
        {"lora": LoraSettings(), "gradient_checkpointing": True},
        {"precompute_reference": True},
    ],
)
def test_the_reference_is_the_start_however_it_is_kept(more: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    result = train_dpo(tiny, preferences(8), DPO.model_copy(update=more), tmp_path, device="cpu")
    first = log_of(result.log)[0]
    assert first["loss"] == pytest.approx(0.6931, abs=0.3)  # ln 2, times a batch's weights
    assert (first["rewards/margins"], first["rewards/chosen"]) == (0.0, 0.0)
    assert log_of(result.log)[-1]["rewards/margins"] != 0.0


@pytest.mark.parametrize(
    "more", [{}, {"lora": LoraSettings(r=4, dropout=0.0)}, {"precompute_reference": True}], ids=str
)
def test_the_reference_stays_the_start_while_the_policy_moves(more: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"batch_size": 8, "max_steps": 2, "scheduler": "constant", "lr": 1e-2, **more})
    two = train_dpo(tiny, preferences(8), settings, tmp_path / "two", device="cpu")
    one = train_dpo(tiny, preferences(8), settings.model_copy(update={"max_steps": 1}), tmp_path / "one", device="cpu")
    start, policy = (open_student(folder, device="cpu") for folder in (tiny, one.model))
    pairs, _ = encode_pairs(start, preferences(8), 256)
    _, was_chosen, was_rejected = independent(pairs, start.model, start.model, settings, "sigmoid")
    loss, chosen, rejected = independent(pairs, policy.model, start.model, settings, "sigmoid")
    row = log_of(two.log)[1]
    assert row["loss"] == pytest.approx(loss, abs=1e-5)
    assert row["rewards/chosen"] == pytest.approx(settings.beta * (chosen - was_chosen), abs=1e-5)
    assert row["rewards/rejected"] == pytest.approx(settings.beta * (rejected - was_rejected), abs=1e-5)
    # A reference that moved along would make these 0: the tolerance has to tell the two apart.
    assert settings.beta * abs(chosen - was_chosen) > 100 * 1e-5


def test_adapters_are_merged_into_the_saved_model(tiny: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from instructgym.train.tuning.trainer import quiet_libraries

    settings = DPO.model_copy(update={"lora": LoraSettings(dropout=0.0), "lr": 1e-2})
    result = train_dpo(tiny, preferences(8), settings, tmp_path, device="cpu")
    merged, base = open_student(result.model, device="cpu"), open_student(tiny, device="cpu")
    with quiet_libraries():
        adapted = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter")).eval()
    ids = torch.tensor([base.prompts.ids([Message("user", "say 3")], {})])
    with torch.no_grad():
        with_adapter = adapted(input_ids=ids).logits
        torch.testing.assert_close(merged.model(input_ids=ids).logits, with_adapter, atol=1e-4, rtol=1e-4)
        with adapted.disable_adapter():
            assert float((adapted(input_ids=ids).logits - with_adapter).abs().max()) > 1e-3


def test_the_log_says_chosen_and_rejected_apart(tiny: Path, tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"losses": {"sigmoid": 1.0, "sft": 0.5}})
    result = train_dpo(tiny, preferences(8), settings, tmp_path, device="cpu")
    first = log_of(result.log)[0]
    assert first["loss"] == pytest.approx(first["loss/sigmoid"] + 0.5 * first["loss/sft"], abs=1e-5)
    assert first["tokens/rejected"] > first["tokens/chosen"] > 0


def test_weights_count_relative_to_each_other(tiny: Path, tmp_path: Path) -> None:
    def trained(name: str, weights: list[float]) -> list[dict[str, Any]]:
        rows = [
            PreferenceExample(each.prompt, each.chosen, each.rejected, weight)
            for each, weight in zip(preferences(4), weights, strict=True)
        ]
        return log_of(train_dpo(tiny, rows, DPO, tmp_path / name, device="cpu").log)

    assert trained("ones", [1, 1, 1, 1]) == trained("threes", [3, 3, 3, 3])
    assert trained("apart", [3, 1, 1, 3]) != trained("ones", [1, 1, 1, 1])
    with pytest.raises(ConfigError) as caught:
        trained("none", [0, 0, 0, 0])
    assert str(caught.value) == "the weights of all 4 pairs are 0; expected some above 0."


def test_pairs_that_teach_nothing_are_an_error_with_counts(tiny: Path, tmp_path: Path) -> None:
    prompt = (Message("user", "say 1"),)
    rows = [
        PreferenceExample(prompt, "ship", "ship"),
        PreferenceExample((Message("user", "why " * 400),), "ship", "sky"),
        PreferenceExample(prompt, "ship", "sky " * 400),
    ]
    with pytest.raises(ConfigError) as caught:
        train_dpo(tiny, rows, DPO, tmp_path, device="cpu")
    assert str(caught.value) == (
        "none of the 3 pairs can be learned from (1 equal answers, 1 prompt too long, 1 answer too long; at most 256 "
        "tokens); raise max_length, or give other data."
    )
    assert train_dpo(tiny, [*rows, *preferences(4)], DPO, tmp_path, device="cpu").counts == {
        "pairs": 4,
        "eval": 0,
        "equal answers": 1,
        "prompt too long": 1,
        "answer too long": 1,
    }


def test_the_eval_loss_has_names_and_margins_too(tiny: Path, tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"eval_every": 1, "losses": {"sigmoid": 1.0, "sft": 1.0}})
    result = train_dpo(tiny, preferences(8), settings, tmp_path, eval_examples=preferences(12)[8:], device="cpu")
    evals = [row for row in log_of(result.log) if "eval_loss" in row]
    assert [row["step"] for row in evals] == [1, 2]
    assert result.eval_loss == evals[-1]["eval_loss"] < evals[0]["eval_loss"]
    assert {"eval_loss/sigmoid", "eval_loss/sft", "eval_logps/chosen", "eval_rewards/margins"} <= set(evals[0])


def test_adapters_keep_their_dropout_and_the_reference_has_none(tiny: Path, tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"lora": LoraSettings(r=4, dropout=0.5), "dropout": 0.0, "lr": 1e-2})
    with_dropout = train_dpo(tiny, preferences(8), settings, tmp_path / "with", device="cpu")
    without = settings.model_copy(update={"lora": LoraSettings(r=4, dropout=0.0)})
    plain = train_dpo(tiny, preferences(8), without, tmp_path / "without", device="cpu")
    assert [row["rewards/chosen"] for row in log_of(with_dropout.log)] != [
        row["rewards/chosen"] for row in log_of(plain.log)
    ]
    assert log_of(with_dropout.log)[0]["rewards/chosen"] == 0.0  # an adapter begins as nothing, whatever is dropped
