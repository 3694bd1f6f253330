"""`instructgym sft` and `instructgym dpo`: the training stages on any model and data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra align")

import torch

from tests.llm_backends.tiny_models import save

from .conftest import Invoke

FAST = ("--device", "cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "m0", spread=0.05)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [{"instruction": f"say {number}", "output": f"it is {number}"} for number in range(15)]
    return write(tmp_path / "answers.jsonl", [*rows, {"instruction": "why " * 300, "output": "so"}])


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    rows = [{"prompt": f"say {n}", "chosen": f"it is {n}", "rejected": "nothing"} for n in range(8)]
    return write(tmp_path / "pairs.jsonl", [*rows, {"prompt": "say", "chosen": "it is", "rejected": "it is"}])


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_model_is_fine_tuned_and_then_prefers(
    invoke: Invoke, model: Path, answers: Path, preferences: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m1"
    options = ("--set", "sft.lr=1e-3", "--set", "sft.eval_share=0.2", "--set", "sft.lora={r = 4}", *FAST)
    result = invoke("sft", "--model", model, "--data", answers, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    log = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    assert result.stdout.splitlines() == [
        "learned from 12 examples in 2 steps; 3 kept for the eval loss; left out: 1 prompt too long",
        f"loss {log[0]['loss']:.4g}; eval loss {log[1]['eval_loss']:.4g}",
        f"wrote {out}/model/ (the model)",
        f"wrote {out}/adapter/ (its adapter alone)",
        f"wrote {out}/log.jsonl",
        f"next: instructgym dpo --model {out}/model --data PREFERENCES --out DIR",
    ]
    assert result.stderr.startswith(f"read 16 examples from {answers}\ntrain: 2 of 2 in ")

    again = invoke("sft", "--model", model, "--data", answers, "--out", out, *options)
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    other = invoke("sft", "--model", model, "--data", answers, "--out", out, *options, "--seed", "1")
    assert (other.exit_code, other.stdout) == (2, "")
    assert other.stderr.endswith(
        f"error: '{out}' holds another training: its seed is 0, here 1. Choose another folder, or remove that one.\n"
    )

    after = tmp_path / "m2"
    more = ("--set", "dpo.lr=1e-3", "--set", "dpo.log_every=1", "--set", "dpo.batch_size=4", *FAST)
    second = invoke("dpo", "--model", out / "model", "--data", preferences, "--out", after, *more)
    assert second.exit_code == 0, second.stderr
    lines = second.stdout.splitlines()
    assert lines[0] == "learned from 8 pairs in 2 steps; left out: 1 equal answers"
    assert lines[1].startswith("loss 0.6931 -> 0.")
    assert lines[2].startswith("log-probability of chosen answers -")
    assert lines[3:] == [
        f"wrote {after}/model/ (the model)",
        f"wrote {after}/log.jsonl",
        f"next: instructgym evolve --backend transformers --model {after}/model",
    ]


def test_settings_come_from_an_alignments_config(
    invoke: Invoke, model: Path, preferences: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--config", "phi2_study", "--set", "dpo.warmup_steps=0", *FAST)
    result = invoke("dpo", "--model", model, "--data", preferences, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    held = json.loads((out / "inputs.json").read_text("utf-8"))["inputs"]
    assert held["template"] == "plain"
    own = {
        name: held["settings"][name] for name in ("lr", "beta", "batch_size", "gradient_accumulation", "warmup_steps")
    }
    assert own == {"lr": 5e-5, "beta": 0.1, "batch_size": 4, "gradient_accumulation": 4, "warmup_steps": 0}
    assert held["settings"]["lora"] == {"r": 16, "alpha": 16, "dropout": 0.05, "target_modules": "auto"}
    assert "User: " in (out / "model/chat_template.jinja").read_text("utf-8")


def test_bad_input_is_said_and_nothing_is_written(
    invoke: Invoke, model: Path, answers: Path, preferences: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refusal(command: str, data: Path, *options: str, student: Path = model) -> str:
        result = invoke(command, "--model", student, "--data", data, "--out", out, *options, *FAST)
        assert (result.exit_code, result.stdout) == (2, "")
        assert not (out / "model").exists()
        return result.stderr.splitlines()[-1]

    assert refusal("sft", answers, "--set", "judging.samples=2") == (
        "error: --set judging.samples means nothing to `sft`; expected sft.KEY, student.KEY or run.seed."
    )
    assert "sft.batchsize" in refusal("sft", answers, "--set", "sft.batchsize=2")
    assert "there is no loss 'dpo'; there are sigmoid, sigmoid_norm, ipo, robust, hinge, sft" in refusal(
        "dpo", preferences, "--set", "dpo.losses={dpo = 1}"
    )
    assert refusal("dpo", answers) == (
        f"error: {answers}, record 1: has no 'chosen'; expected prompt (or instruction), chosen and rejected."
    )
    assert refusal("sft", tmp_path / "none.jsonl") == (
        f"error: '{tmp_path / 'none.jsonl'}' cannot be read: No such file or directory."
    )
    ties = write(tmp_path / "ties.jsonl", [{"prompt": "say", "chosen": "it", "rejected": "it"}] * 3)
    assert refusal("dpo", ties) == (
        "error: none of the 3 pairs can be learned from (3 equal answers; at most 256 tokens); raise max_length, or "
        "give other data."
    )
    bare = save(tmp_path / "bare", template=None)
    assert refusal("sft", answers, student=bare) == (
        f"error: the tokenizer of '{bare}' has no chat template, so nobody would know how it was trained to be asked; "
        "set chat_template = 'plain', or a file with a Jinja template"
    )
    assert refusal("sft", answers, "--set", "sft.lr=1e30", "--set", "sft.max_grad_norm=1e30").startswith(
        f"error: training in '{out}' stopped: the "
    )
