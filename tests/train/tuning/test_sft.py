"""Supervised fine-tuning: which loss, on what, and what is left of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from instructgym.errors import ConfigError
from instructgym.train.tuning.arguments import set_dropout
from instructgym.train.tuning.encoding import EncodedText, encode_texts
from instructgym.train.tuning.examples import SFTExample
from instructgym.train.tuning.job import TuningResult
from instructgym.train.tuning.settings import LoraSettings, SFTSettings
from instructgym.train.tuning.sft import sft_trainer, train_sft
from instructgym.train.tuning.student import model_digest, open_student
from instructgym.train.tuning.trainer import quiet_libraries
from instructgym.types import Message
from tests.llm_backends.tiny_models import save

from .conftest import conversations, turn

TURNS = SFTExample(
    (
        Message("user", "Name a ship."),
        Message("assistant", "north"),
        Message("user", "And a book about it?"),
        Message("assistant", "The story of the north."),
    )
)
FAST = SFTSettings(lr=1e-3, batch_size=4, log_every=2, save_every=None)


def log_of(result: TuningResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.log.read_text("utf-8").splitlines()]


def independent_loss(model: Any, rows: list[EncodedText]) -> float:
    """Mean of -log p over all answer tokens, each row alone."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row.input_ids])).logits[0].double()
            for place, label in enumerate(row.labels):
                if label != -100:
                    total -= float(torch.log_softmax(logits[place - 1], dim=-1)[label])
                    count += 1
    return total / count


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"packing": True, "max_length": 120},
        {"gradient_accumulation": 2, "batch_size": 2},
        {"gradient_checkpointing": True},
    ],
)
def test_the_first_loss_agrees_with_torch_alone(tiny: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    examples = [*conversations(2), TURNS, turn("Name a morning.", "Good morning, and thank you.")]
    settings = SFTSettings(
        **{"lr": 1e-3, "max_steps": 1, "batch_size": 4, "log_every": 1, "save_every": None, **change}
    )
    result = train_sft(tiny, examples, settings, tmp_path / "out", device="cpu")
    student = open_student(tiny)
    encoded, _ = encode_texts(student, examples, 256)
    expected = independent_loss(student.model, [row for rows in encoded for row in rows])
    assert log_of(result)[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert log_of(result)[0]["step"] == 1


def test_batches_of_four_and_twice_two_train_the_same_model(tiny: Path, tmp_path: Path) -> None:
    one = train_sft(tiny, conversations(8), FAST, tmp_path / "one", device="cpu")
    halves = FAST.model_copy(update={"batch_size": 2, "gradient_accumulation": 2})
    two = train_sft(tiny, conversations(8), halves, tmp_path / "two", device="cpu")
    for row, other in zip(log_of(one), log_of(two), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, alpha=8, dropout=0.1)])
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(
    tiny: Path, tmp_path: Path, lora: LoraSettings | None
) -> None:
    settings = FAST.model_copy(update={"lora": lora, "dropout": 0.1, "epochs": 2.0})
    results = [
        train_sft(tiny, conversations(8), settings, tmp_path / str(number), seed=seed, device="cpu")
        for number, seed in enumerate((0, 0, 1))
    ]
    logs = [result.log.read_bytes() for result in results]
    digests = [model_digest(result.model) for result in results]
    assert logs[0] == logs[1] != logs[2]
    assert digests[0] == digests[1] != digests[2]


def test_what_is_finished_is_not_done_again(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = train_sft(tiny, conversations(8), FAST, out, device="cpu")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert train_sft(tiny, conversations(8), FAST, out, device="cpu") == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "inputs.json",
        "log.jsonl",
        "model",
        "training.json",
    ]
    other = train_sft(tiny, conversations(9), FAST, out, device="cpu")
    assert (other.counts, first.counts) == ({"examples": 9, "eval": 0}, {"examples": 8, "eval": 0})


def test_adapters_are_merged_into_a_model_that_any_tool_opens(tiny: Path, tmp_path: Path) -> None:
    import peft

    settings = FAST.model_copy(update={"lora": LoraSettings(r=4), "epochs": 4.0})
    result = train_sft(tiny, conversations(8), settings, tmp_path / "out", device="cpu")
    whole = transformers.AutoModelForCausalLM.from_pretrained(result.model)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    ids = transformers.AutoTokenizer.from_pretrained(result.model)("Name a ship.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base(ids).logits
        with quiet_libraries():
            adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out/adapter").eval()(ids).logits
        merged = whole(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-3)
    assert not any("lora" in name for name in whole.state_dict())


def test_the_eval_loss_is_that_of_examples_kept_apart(tiny: Path, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"eval_share": 0.25, "eval_every": 2, "epochs": 2.0})
    result = train_sft(tiny, conversations(16), settings, tmp_path / "share", device="cpu")
    assert result.counts == {"examples": 12, "eval": 4}
    evals = [row for row in log_of(result) if "eval_loss" in row]
    assert [row["step"] for row in evals] == [2, 4, 6]
    assert result.eval_loss == evals[-1]["eval_loss"]
    student = open_student(tiny)
    own = conversations(20)[16:]
    given = train_sft(tiny, conversations(16), FAST, tmp_path / "own", eval_examples=own, device="cpu")
    encoded, _ = encode_texts(student, own, 256)
    trained = transformers.AutoModelForCausalLM.from_pretrained(given.model)
    assert given.counts == {"examples": 16, "eval": 4}
    assert given.eval_loss == pytest.approx(independent_loss(trained, [r for rows in encoded for r in rows]), abs=1e-5)


def test_the_log_covers_every_step_and_holds_no_times(tiny: Path, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"max_steps": 5, "save_every": 3})
    result = train_sft(tiny, conversations(8), settings, tmp_path / "out", device="cpu")
    rows = log_of(result)
    assert [row["step"] for row in rows] == [2, 3, 4, 5]  # every second one, each checkpoint, and the last
    single = train_sft(
        tiny, conversations(8), settings.model_copy(update={"log_every": 1}), tmp_path / "each", device="cpu"
    )
    losses = [row["loss"] for row in log_of(single)]
    assert rows[0]["loss"] == pytest.approx((losses[0] + losses[1]) / 2, abs=1e-6)
    assert result.train_loss == pytest.approx(sum(losses) / 5, abs=1e-6)
    assert result.steps == 5
    assert {"loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "step"} <= set(rows[0])
    assert not any("runtime" in key or "second" in key for row in rows for key in row)


def test_weights_in_half_precision_are_trained_in_full_and_saved_as_they_came(tmp_path: Path) -> None:
    folder = save(tmp_path / "m0", spread=0.05)
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    for name, lora in (("full", None), ("lora", LoraSettings(r=4))):
        settings = FAST.model_copy(update={"lora": lora})
        result = train_sft(folder, conversations(8), settings, tmp_path / name, device="cpu")
        assert json.loads((result.model / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"
        trained = transformers.AutoModelForCausalLM.from_pretrained(result.model, dtype="auto")
        assert trained.dtype == torch.bfloat16
    student = open_student(folder, dtype="float32")
    encoded, _ = encode_texts(student, conversations(4), 256)
    with quiet_libraries():
        trainer = sft_trainer(student, [rows[0] for rows in encoded], [], FAST, tmp_path / "one", 0)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_dropout_is_what_the_settings_say_in_any_architecture(tmp_path: Path) -> None:
    for family, layers in (("llama", 2), ("gpt2", 7)):
        student = open_student(save(tmp_path / family, family, spread=0.05))
        encoded, _ = encode_texts(student, conversations(2), 256)
        settings = FAST.model_copy(update={"dropout": 0.25, "lora": LoraSettings(r=2, dropout=0.5)})
        set_dropout(student.model, settings.dropout)
        with quiet_libraries():
            trainer = sft_trainer(student, [rows[0] for rows in encoded], [], settings, tmp_path / "out", 0)
        modules = dict(trainer.model.named_modules())
        own = [m.p for n, m in modules.items() if isinstance(m, torch.nn.Dropout) and "lora" not in n]
        own += [
            m.attention_dropout for m in modules.values() if isinstance(getattr(m, "attention_dropout", None), float)
        ]
        assert own == [0.25] * layers
        assert {m.p for n, m in modules.items() if isinstance(m, torch.nn.Dropout) and "lora_dropout" in n} == {0.5}


def test_the_global_generators_are_left_as_they_were(tiny: Path, tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    train_sft(tiny, conversations(4), FAST, tmp_path / "out", device="cpu")
    assert (random.random(), np.random.random(), torch.rand(1).item()) == before


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gemma3", "gpt2", "bloom"])
def test_any_decoder_learns(tmp_path: Path, family: str) -> None:
    settings = FAST.model_copy(update={"lr": 3e-3, "epochs": 5.0})
    result = train_sft(
        save(tmp_path / "m0", family, spread=0.05), conversations(8), settings, tmp_path / "out", device="cpu"
    )
    losses = [row["loss"] for row in log_of(result)]
    assert losses[-1] < losses[0] - 0.5


def test_data_that_does_not_fit_is_an_error_with_counts(tiny: Path, tmp_path: Path) -> None:
    examples = [turn("ship " * 300, "sky"), turn("ship", "sky " * 300), turn("ship", "")]
    with pytest.raises(ConfigError) as caught:
        train_sft(tiny, examples, FAST, tmp_path / "out", device="cpu")
    assert str(caught.value) == (
        "none of the 3 examples fits into 256 tokens (1 prompt too long, 1 answer too long, 1 empty answer); "
        "raise max_length, or give other data."
    )
    with pytest.raises(ConfigError) as caught:
        train_sft(tiny, [], FAST, tmp_path / "out", device="cpu")
    assert "none of the 0 examples fits into 256 tokens (there are none);" in str(caught.value)
    kept = train_sft(tiny, [*examples, *conversations(4)], FAST, tmp_path / "out", device="cpu")
    assert kept.counts == {"examples": 4, "eval": 0, "prompt too long": 1, "answer too long": 1, "empty answer": 1}
