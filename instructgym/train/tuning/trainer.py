"""What both kinds of training share: arguments, resuming, the log, and saving a model as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import ConfigError, TrainingError
from instructgym.plugins import require
from instructgym.train.run_folder import canonical_json, disk_words
from instructgym.train.tuning.settings import TrainingSettings
from instructgym.train.tuning.student import Student, model_digest

__all__ = ["Job", "TuningResult", "arguments_of", "open_job", "split_off"]

CHECKPOINTS, LOG, RESULT, MODEL, ADAPTER, INPUTS = (
    "checkpoints",
    "log.jsonl",
    "training.json",
    "model",
    "adapter",
    "inputs.json",
)
_WHOLE = "whole"  # written into a checkpoint when all of it is there
_TIMES = ("runtime", "per_second", "flos", "epoch_time")


@dataclass(frozen=True)
class TuningResult:
    """What a training left: the model's folder, its log (a JSON line a logged step), and what was learned from.

    `counts` holds the examples that were used and, by reason, those that were not.
    """

    model: Path
    steps: int
    train_loss: float
    eval_loss: float | None
    log: Path
    counts: Mapping[str, int] = field(default_factory=dict)


def need_training_packages() -> None:
    """Raise `MissingDependencyError` where TRL, peft, datasets or accelerate is not installed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for package in ("trl", "peft", "datasets", "accelerate"):
        require(package, extra="align")


def split_off(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(places to train on, places of the eval loss), both ascending; one at least is trained on."""
    held = min(round(share * count), count - 1)
    out = set(np.random.default_rng([seed, 3]).permutation(count)[:held].tolist()) if held > 0 else set()
    return [place for place in range(count) if place not in out], sorted(out)


@dataclass(frozen=True)
class Job:
    """One training in one folder, by the digest of all that goes in."""

    out: Path
    key: str

    def finished(self) -> TuningResult | None:
        """What an equal training has left here, if it came to its end."""
        held = _read(self.out / RESULT)
        if held is None or held["key"] != self.key or not (self.out / MODEL).is_dir():
            return None
        return TuningResult(
            self.out / MODEL, held["steps"], held["train_loss"], held["eval_loss"], self.out / LOG, held["counts"]
        )

    def begin(self) -> str | None:
        """The checkpoint to go on from, or None. What another training has left here is removed."""
        with disk_words(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            held = _read(self.out / INPUTS)
            if held is None or held["key"] != self.key:
                for name in (CHECKPOINTS, MODEL, ADAPTER):
                    shutil.rmtree(self.out / name, ignore_errors=True)
                for name in (RESULT, LOG):
                    (self.out / name).unlink(missing_ok=True)
                _write(self.out / INPUTS, {"key": self.key})
        whole = [path for path in (self.out / CHECKPOINTS).glob("checkpoint-*") if (path / _WHOLE).is_file()]
        last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        for path in (self.out / CHECKPOINTS).glob("checkpoint-*"):
            if path not in whole:  # cut off while it was written
                shutil.rmtree(path)
        return None if last is None else str(last)

    def last_checkpoint(self) -> str:
        """For messages: where the last good state is."""
        whole = [path for path in (self.out / CHECKPOINTS).glob("checkpoint-*") if (path / _WHOLE).is_file()]
        last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        return "there is no checkpoint yet" if last is None else f"the last good checkpoint is {last}"

    def run(
        self, trainer: Any, student: Student, settings: TrainingSettings, counts: Mapping[str, int]
    ) -> TuningResult:
        """Train to the end, save the model and say that it is whole."""
        resume = self.begin()
        log = LogFile(self.out / LOG)
        trainer.add_callback(_callback(log))
        with disk_words(self.out), self._words_of_nan():
            output = trainer.train(resume_from_checkpoint=resume)
            eval_loss = trainer.evaluate()["eval_loss"] if trainer.eval_dataset is not None else None
            log.write(trainer.state.log_history)
            self._save(trainer, student, settings)
        result = TuningResult(
            self.out / MODEL,
            int(output.global_step),
            _mean_loss(trainer.state.log_history, float(output.training_loss)),
            eval_loss,
            self.out / LOG,
            dict(counts),
        )
        facts = {**asdict(result), "key": self.key}
        _write(self.out / RESULT, {name: value for name, value in facts.items() if name not in ("model", "log")})
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        return result

    @contextlib.contextmanager
    def _words_of_nan(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            raise TrainingError(
                f"training in '{self.out}' stopped: {error}. Lower the learning rate or max_grad_norm, or look at the "
                f"data; {self.last_checkpoint()}."
            ) from error

    def _save(self, trainer: Any, student: Student, settings: TrainingSettings) -> None:
        """Write the whole model beside its place, then put it there."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        beside = self.out / f"{MODEL}.new"
        shutil.rmtree(beside, ignore_errors=True)
        if settings.lora is not None:
            model.save_pretrained(self.out / ADAPTER)
            model = _merged(model, student, settings)
        model.save_pretrained(beside)
        student.tokenizer.save_pretrained(beside)
        shutil.rmtree(self.out / MODEL, ignore_errors=True)
        beside.rename(self.out / MODEL)


def open_job(
    kind: str,
    place: str | Path,
    examples: Sequence[Any],
    settings: TrainingSettings,
    out: Path,
    *,
    chat_template: str,
    seed: int,
) -> Job:
    """The job of these inputs. The model is known by what its folder holds, examples by what they say."""
    folder = Path(place)
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{canonical_json(asdict(example))}\x1e".encode("utf-8", "surrogatepass"))
    inputs = {
        "kind": kind,
        "model": model_digest(folder) if folder.is_dir() else str(place),
        "examples": digest.hexdigest(),
        "settings": settings.model_dump(mode="json"),
        "template": _template_digest(chat_template),
        "seed": seed,
    }
    return Job(out, hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:32])


def _template_digest(chat_template: str) -> str:
    if chat_template in ("", "plain"):
        return chat_template
    try:
        return hashlib.sha256(Path(chat_template).read_bytes()).hexdigest()
    except OSError:
        return chat_template  # whoever opens it says what is wrong


def arguments_of(student: Student, settings: TrainingSettings, out: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments of `transformers.TrainingArguments`."""
    import torch

    device = student.model.device
    on_gpu = device.type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported() if settings.bf16 == "auto" else settings.bf16
    if bf16 and not on_gpu:
        raise ConfigError(f"bf16 = true needs a GPU, and the model is on {device}; leave it at 'auto'")
    scheduler: dict[str, Any] = {"lr_scheduler_type": settings.scheduler}
    if settings.min_lr is not None:
        scheduler = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": settings.min_lr}}
    return {
        "output_dir": str(out / CHECKPOINTS),
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.lr,
        **scheduler,
        "warmup_steps": settings.warmup_steps,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # it would show the last good loss in place of one that is no number
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": settings.save_every or 500,
        "save_total_limit": 2,  # the one before stands until the next is whole
        "eval_strategy": "steps" if settings.eval_every else "no",
        "eval_steps": settings.eval_every,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not on_gpu and device.type == "cpu",
        "bf16": bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
    }


def set_dropout(model: Any, share: float) -> None:
    """The model's own dropout: every layer of it, whatever the architecture calls it."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)


def lora_config(settings: TrainingSettings) -> Any:
    """The peft config, or None."""
    if settings.lora is None:
        return None
    import peft

    own = settings.lora
    return peft.LoraConfig(
        r=own.r,
        lora_alpha=own.alpha,
        lora_dropout=own.dropout,
        target_modules="all-linear" if own.target_modules == "auto" else list(own.target_modules),
        task_type="CAUSAL_LM",
    )


def check_finite(loss: Any, step: int) -> None:
    """Raise FloatingPointError for a loss that is no number."""
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss of step {step + 1} is {value}")


class LogFile:
    """The trainer's log without times, rewritten as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        rows = [
            {key: value for key, value in row.items() if not any(word in key for word in _TIMES)} for row in history
        ]
        text = "".join(f"{json.dumps(row)}\n" for row in rows if set(row) - {"step", "epoch"})
        beside = self._path.with_name(f"{self._path.name}.tmp")
        beside.write_text(text, "utf-8")
        os.replace(beside, self._path)


def _callback(log: LogFile) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
        """Keeps the log on the disk, and marks checkpoints that are whole."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.write(state.log_history)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _WHOLE).touch()

    return Watcher()


def _mean_loss(history: Sequence[Mapping[str, Any]], otherwise: float) -> float:
    """The mean of the logged losses: what a resumed trainer reports covers its own steps only."""
    losses = [float(row["loss"]) for row in history if "loss" in row]
    return sum(losses) / len(losses) if losses else otherwise


def _merged(model: Any, student: Student, settings: TrainingSettings) -> Any:
    """The adapters merged into the weights; four-bit weights are loaded again in full for it."""
    if settings.quantization is None:
        return model.merge_and_unload()
    import peft
    import torch
    import transformers

    whole = transformers.AutoModelForCausalLM.from_pretrained(student.name, dtype=torch.bfloat16)
    merged = peft.PeftModel(whole, model.peft_config["default"])
    peft.set_peft_model_state_dict(merged, peft.get_peft_model_state_dict(model))
    return merged.merge_and_unload()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    with disk_words(path):
        beside = path.with_name(f"{path.name}.tmp")
        beside.write_text(json.dumps(dict(value), indent=2) + "\n", "utf-8")
        os.replace(beside, path)
