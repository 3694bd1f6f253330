"""A training that was killed, interrupted or refused goes on to the same log and the same model."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructgym.errors import RunFolderError, TrainingError
from instructgym.train.progress import Silent
from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.job import TuningResult
from instructgym.train.tuning.settings import DPOSettings, LoraSettings, SFTSettings
from instructgym.train.tuning.sft import train_sft
from instructgym.train.tuning.student import model_digest

from .conftest import conversations, preferences

# Real processes, forked from one that has imported what takes seconds: the moments fall into the training.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "peft", "datasets", "instructgym.train.tuning.dpo"]
)
SETTINGS = SFTSettings(lr=1e-3, batch_size=2, epochs=6.0, log_every=3, save_every=4, dropout=0.1)


def program(model: Path, out: Path) -> None:
    """What the killed process runs."""
    import torch

    torch.set_num_threads(1)
    train_sft(model, conversations(16), SETTINGS, out, device="cpu")


def steps_logged(out: Path) -> int:
    log = out / "log.jsonl"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.mark.slow
def test_training_goes_on_after_sigkill_to_the_same_log_and_model(tiny: Path, tmp_path: Path) -> None:
    whole = train_sft(tiny, conversations(16), SETTINGS, tmp_path / "whole", device="cpu")
    out = tmp_path / "killed"
    for kill_at in (10, 30, 10**6):
        child = PROCESSES.Process(target=program, args=(tiny, out))
        child.start()
        while child.is_alive() and steps_logged(out) < kill_at:
            time.sleep(0.002)
        if kill_at < 10**6:
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join(60)
        assert child.exitcode == (-signal.SIGKILL if kill_at < 10**6 else 0)
    assert (out / "log.jsonl").read_bytes() == whole.log.read_bytes()
    assert model_digest(out / "model") == model_digest(whole.model)
    assert not (out / "checkpoints").exists()
    assert program_result(out) == program_result(tmp_path / "whole")


def program_result(out: Path) -> Any:
    return json.loads((out / "training.json").read_text("utf-8"))


class StopAt(Silent):
    """Interrupts at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def advance(self, stage: str, done: int, note: str = "") -> None:
        if done == self.step:
            raise KeyboardInterrupt


def sft(change: dict[str, Any]) -> Callable[..., TuningResult]:
    settings = SFTSettings(**{"lr": 1e-3, "batch_size": 2, "log_every": 3, "save_every": 4, "max_steps": 14, **change})
    return lambda model, out, **more: train_sft(model, conversations(20), settings, out, device="cpu", **more)


def dpo(change: dict[str, Any]) -> Callable[..., TuningResult]:
    settings = DPOSettings(**{"lr": 1e-3, "batch_size": 2, "log_every": 3, "save_every": 4, "max_steps": 14, **change})
    return lambda model, out, **more: train_dpo(model, preferences(20), settings, out, device="cpu", **more)


@pytest.mark.parametrize(
    "train",
    [
        sft({"eval_share": 0.2, "eval_every": 4, "gradient_accumulation": 2}),
        sft({"packing": True, "max_length": 64, "lora": LoraSettings(r=2)}),
        dpo({"lora": LoraSettings(r=2, dropout=0.2), "losses": {"sigmoid": 1.0, "sft": 1.0}}),
        dpo({"precompute_reference": True, "min_lr": 1e-5, "warmup_steps": 3, "eval_share": 0.2}),
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_log_and_model(
    train: Callable[..., TuningResult], tiny: Path, tmp_path: Path
) -> None:
    whole = train(tiny, tmp_path / "whole")
    for step in (6, 13):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "cut", progress=StopAt(step))
    again = train(tiny, tmp_path / "cut")
    assert again.log.read_bytes() == whole.log.read_bytes()
    assert model_digest(again.model) == model_digest(whole.model)
    assert (again.train_loss, again.eval_loss, again.steps) == (whole.train_loss, whole.eval_loss, whole.steps)


class StopBeforeTheModel(Silent):
    """Interrupts after the last step's checkpoint, before the model is written."""

    def finished(self, stage: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "train",
    [
        sft({"scheduler": "constant"}),  # 14 steps end within the second epoch
        sft({"scheduler": "constant", "max_steps": 20}),  # 20 at its end
        dpo({"scheduler": "constant", "lora": LoraSettings(r=2), "eval_share": 0.2}),
    ],
)
def test_a_training_with_all_its_steps_taken_takes_no_other(
    train: Callable[..., TuningResult], tiny: Path, tmp_path: Path
) -> None:
    whole = train(tiny, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "cut", progress=StopBeforeTheModel())
        assert not (tmp_path / "cut/model").exists()
    again = train(tiny, tmp_path / "cut")
    assert again.log.read_bytes() == whole.log.read_bytes()
    assert model_digest(again.model) == model_digest(whole.model)
    assert (again.train_loss, again.eval_loss, again.steps) == (whole.train_loss, whole.eval_loss, whole.steps)


def test_a_checkpoint_that_is_not_whole_is_not_gone_on_from(tiny: Path, tmp_path: Path) -> None:
    train, out = sft({}), tmp_path / "cut"
    whole = train(tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny, out, progress=StopAt(13))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-8"]
    (out / "checkpoints/checkpoint-12/whole").unlink()
    (out / "checkpoints/checkpoint-12/model.safetensors").write_bytes(b"half")
    again = train(tiny, out)
    assert again.log.read_bytes() == whole.log.read_bytes()
    assert model_digest(again.model) == model_digest(whole.model)


@pytest.mark.parametrize("train", [sft, dpo])
def test_what_is_no_number_stops_the_training_and_the_last_good_checkpoint_stays(
    train: Callable[..., Callable[..., TuningResult]], tiny: Path, tmp_path: Path
) -> None:
    # A rate that grows for 1000 steps: the first ones are sane.
    wild = train({"lr": 1e22, "max_grad_norm": 1e30, "warmup_steps": 10**22 // 10**4, "save_every": 1, "log_every": 1})
    with pytest.raises(TrainingError) as caught:
        wild(tiny, tmp_path)
    kept = sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    assert len(kept) == 2, str(caught.value)
    # The step after the last checkpoint is the one that failed: the one before has been gone on from.
    step = int(kept[-1].name.rpartition("-")[2])
    found = str(caught.value)
    assert found.startswith(f"training in '{tmp_path}' stopped: the ")
    assert f" of step {step + 1} is " in found
    assert found.endswith(
        f". Lower the learning rate or max_grad_norm, or look at the data; the last good checkpoint is {kept[0]}."
    )
    from safetensors.torch import load_file

    for path in kept:
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path / "model.safetensors").values())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("save_every", [1, None])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)])
@pytest.mark.parametrize("train", [sft, dpo])
def test_weights_that_a_last_step_has_broken_are_never_saved(
    train: Callable[..., Callable[..., TuningResult]],
    lora: LoraSettings | None,
    save_every: int | None,
    tiny: Path,
    tmp_path: Path,
) -> None:
    # Loss and gradient of the only step are numbers; the weights after it are not.
    wild = train({"lr": 1e39, "scheduler": "constant", "max_steps": 1, "save_every": save_every, "lora": lora})
    with pytest.raises(TrainingError) as caught:
        wild(tiny, tmp_path)
    assert str(caught.value) == (
        f"training in '{tmp_path}' stopped: the weights are no longer numbers. Lower the learning rate or "
        "max_grad_norm, or look at the data; there is no good checkpoint yet."
    )
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)])
def test_weights_that_are_too_large_for_the_saved_type_are_never_saved(
    lora: LoraSettings | None, tiny: Path, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "half"
    shutil.copytree(tiny, folder)
    transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype="float16").save_pretrained(folder)
    wild = sft({"lr": 1e6, "scheduler": "constant", "max_steps": 1, "save_every": 1, "lora": lora})
    with pytest.raises(TrainingError) as caught:
        wild(folder, tmp_path / "out")
    assert str(caught.value) == (
        f"training in '{tmp_path / 'out'}' stopped: the weights are too large for float16, the type that the model "
        "came in. Lower the learning rate or max_grad_norm, or look at the data; the last good checkpoint is "
        f"{tmp_path / 'out/checkpoints/checkpoint-1'}."
    )
    assert not (tmp_path / "out/model").exists()


def full_disk(model: Path, out: Path, limit: int, change: dict[str, Any]) -> None:
    """Trains where a file cannot be longer than `limit` bytes, which stands in for a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        sft(change)(model, out)
    except RunFolderError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (out / "said").write_text(str(error), "utf-8")
        raise SystemExit(2) from error


@pytest.mark.parametrize(
    ("share", "reason", "change", "last"),
    [
        (0.5, "file too large", {}, 4),  # the weights do not fit
        (1.5, "a file could not be written to its end", {}, 4),  # they do, and the optimiser's state does not
        (0.8, "file too large", {"lora": LoraSettings(r=1)}, 14),  # all checkpoints do, and the merged model does not
    ],
)
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    tiny: Path, tmp_path: Path, share: float, reason: str, change: dict[str, Any], last: int
) -> None:
    out = tmp_path / "full"
    with pytest.raises(KeyboardInterrupt):
        sft(change)(tiny, out, progress=StopAt(5))
    limit = int(share * (tiny / "model.safetensors").stat().st_size)
    child = PROCESSES.Process(target=full_disk, args=(tiny, out, limit, change))
    child.start()
    child.join(60)
    assert child.exitcode == 2
    said = (out / "said").read_text("utf-8")
    assert said == (
        f"cannot write to '{out}': {reason}; the last whole checkpoint, checkpoint-{last}, is kept. Make room and run "
        "the same command again: it goes on from there."
    )
    whole = sft(change)(tiny, tmp_path / "whole")
    again = sft(change)(tiny, out)
    assert again.log.read_bytes() == whole.log.read_bytes()
    assert model_digest(again.model) == model_digest(whole.model)


def test_two_trainings_do_not_share_a_folder(tiny: Path, tmp_path: Path) -> None:
    said = []

    class Second(Silent):
        def started(self, stage: str, total: int | None) -> None:
            with pytest.raises(RunFolderError) as caught:
                sft({})(tiny, tmp_path)
            said.append(str(caught.value))

    sft({})(tiny, tmp_path, progress=Second())
    assert said == [f"'{tmp_path}' is in use by another training. Wait for it, or choose another folder."]


def test_another_training_is_replaced_only_where_that_is_wanted(tiny: Path, tmp_path: Path) -> None:
    first = sft({})(tiny, tmp_path)
    before = model_digest(first.model)
    for change, words in (
        ({"lr": 2e-3}, "settings.lr is 0.001, here 0.002"),
        ({"lora": LoraSettings(r=2)}, "settings.lora.r is null, here 2"),
    ):
        with pytest.raises(RunFolderError) as caught:
            sft(change)(tiny, tmp_path, replace=False)
        assert str(caught.value) == (
            f"'{tmp_path}' holds another training: its {words}. Choose another folder, or remove that one."
        )
    with pytest.raises(RunFolderError) as caught:
        train_sft(tiny, conversations(3), SFTSettings(), tmp_path, device="cpu", replace=False)
    assert "holds another training: its examples differs." in str(caught.value)
    assert model_digest(first.model) == before
    assert sft({})(tiny, tmp_path, replace=False) == first
    assert model_digest(sft({"lr": 2e-3})(tiny, tmp_path).model) != before
