"""Settings as what transformers and peft take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.plugins import require
from instructgym.train.tuning.settings import TrainingSettings
from instructgym.train.tuning.student import Student, open_student

__all__ = ["arguments_of", "lora_config", "need_training_packages", "on_one_gpu", "set_dropout", "student_to_train"]


def need_training_packages() -> None:
    """Raise `MissingDependencyError` where TRL, peft, datasets or accelerate is not installed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for package in ("trl", "peft", "datasets", "accelerate"):
        require(package, extra="align")


def student_to_train(
    model: str | Path,
    settings: TrainingSettings,
    *,
    chat_template: str,
    device: str,
    trust_remote_code: bool,
) -> Student:
    """The student, its dropout as the settings say.

    Weights that are trained themselves are held in float32: a step of 1e-6 would be lost in bfloat16. Those under an
    adapter keep their own type.
    """
    student = open_student(
        model,
        chat_template=chat_template,
        device=_own_device(device),
        dtype="float32" if settings.lora is None else "auto",
        trust_remote_code=trust_remote_code,
        quantization=settings.quantization,
    )
    set_dropout(student.model, settings.dropout)
    return student


def _own_device(device: str) -> str:
    """The GPU of this process. Raises `ConfigError` for one that a trainer of transformers would not take."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return device
    launched = os.environ.get("LOCAL_RANK")  # one of the processes of `accelerate launch`
    if launched is not None:
        torch.cuda.set_device(int(launched))
        return f"cuda:{launched}"
    if device not in ("cuda", "cuda:0"):
        raise ConfigError(
            f"training takes the first GPU that it sees, and device is '{device}'; set CUDA_VISIBLE_DEVICES="
            f"{device.partition(':')[2]} and leave the device at 'auto'."
        )
    return device


def arguments_of(student: Student, settings: TrainingSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments of `transformers.TrainingArguments`; checkpoints go into `folder`."""
    import dataclasses

    import torch
    import transformers

    device = student.model.device
    on_gpu = device.type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported() if settings.bf16 == "auto" else settings.bf16
    if bf16 and not on_gpu:
        raise ConfigError(f"bf16 = true needs a GPU, and the model is on {device}; leave it at 'auto'.")
    names = {each.name for each in dataclasses.fields(transformers.TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    scheduler: dict[str, Any] = {"lr_scheduler_type": settings.scheduler}
    if settings.scheduler == "constant" and settings.warmup_steps:
        scheduler = {"lr_scheduler_type": "constant_with_warmup"}  # plain "constant" would leave the warm-up out
    if settings.min_lr is not None:
        scheduler = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": settings.min_lr}}
    return {
        "output_dir": str(folder),
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
        "use_cpu": device.type == "cpu",
        "bf16": bf16,
        checkpointing: settings.gradient_checkpointing,  # the name until transformers 5 and the one after
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
    }


def on_one_gpu(arguments: Any) -> Any:
    """The arguments, with one GPU where several are seen by one process.

    transformers would split each batch over them in threads, which TRL refuses; `accelerate launch` is the way to
    use them all.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def set_dropout(model: Any, share: float) -> None:
    """The model's own dropout: every layer of it, whatever the architecture calls it."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)


def lora_config(settings: TrainingSettings, student: Student) -> Any:
    """The peft config, or None. Raises `ConfigError` for modules that the model does not have."""
    if settings.lora is None:
        return None
    import peft

    own = settings.lora
    if own.target_modules != "auto":
        names = [name for name, _ in student.model.named_modules()]
        for wanted in own.target_modules:
            if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
                linear = sorted({name.rpartition(".")[2] for name in names if name.endswith(("_proj", "dense", "fc1"))})
                raise ConfigError(
                    f"lora.target_modules names '{wanted}', which is no module of {type(student.model).__name__}; "
                    f"leave it at 'auto'{', or take some of ' + ', '.join(linear) if linear else ''}."
                )
    return peft.LoraConfig(
        r=own.r,
        lora_alpha=own.alpha,
        lora_dropout=own.dropout,
        target_modules="all-linear" if own.target_modules == "auto" else list(own.target_modules),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in student.model.modules()),  # GPT-2's layers
        task_type="CAUSAL_LM",
    )
