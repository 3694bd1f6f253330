"""Supervised fine-tuning on answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.tuning.encoding import encode_texts
from instructgym.train.tuning.examples import SFTExample
from instructgym.train.tuning.settings import SFTSettings
from instructgym.train.tuning.student import open_student
from instructgym.train.tuning.trainer import (
    TuningResult,
    arguments_of,
    check_finite,
    lora_config,
    need_training_packages,
    open_job,
    set_dropout,
    split_off,
)

__all__ = ["train_sft"]


def train_sft(
    model: str | Path,
    examples: Sequence[SFTExample],
    settings: SFTSettings,
    out: Path,
    *,
    chat_template: str = "",
    seed: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> TuningResult:
    """Fine-tune a model; the result is ``out/model``, a folder that any tool opens.

    Called again with the same arguments it goes on from its last whole checkpoint to the same log, or gives what is
    there. Examples that do not fit into `max_length` are left out and counted.

    Raises:
        ConfigError: the model cannot be trained, or no example fits.
        TrainingError: a loss that is no number; the last good checkpoint is kept.
        RunFolderError: the folder cannot be written.
        MissingDependencyError: the extra ``align`` is not installed.
    """
    need_training_packages()
    job = open_job("sft", model, examples, settings, out, chat_template=chat_template, seed=seed)
    done = job.finished()
    if done is not None:
        return done
    student = open_student(
        model,
        chat_template=chat_template,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=settings.quantization,
    )
    limit = min(settings.max_length, student.context or settings.max_length)
    encoded, dropped = encode_texts(student, examples, limit)
    if not encoded:
        raise ConfigError(
            f"none of the {len(examples)} examples fits into {limit} tokens "
            f"({', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'there are none'}); raise "
            "max_length, or give other data."
        )
    import datasets

    train, held = split_off(len(encoded), settings.eval_share, seed)
    rows = [{"input_ids": each.input_ids, "labels": each.labels} for each in encoded]
    set_dropout(student.model, settings.dropout)
    trainer = _trainer_class()(
        model=student.model,
        args=_arguments(student, settings, out, seed),
        train_dataset=datasets.Dataset.from_list([rows[place] for place in train]),
        eval_dataset=datasets.Dataset.from_list([rows[place] for place in held]) if held else None,
        processing_class=student.tokenizer,
        peft_config=lora_config(settings),
    )
    return job.run(trainer, student, settings, {"examples": len(train), "eval": len(held), **dropped})


def _arguments(student: Any, settings: SFTSettings, out: Path, seed: int) -> Any:
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(
        **arguments_of(student, settings, out, seed),
        max_length=settings.max_length if settings.packing else None,
        packing=settings.packing,
    )


def _trainer_class() -> Any:
    from trl.trainer.sft_trainer import SFTTrainer

    class AnswerTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is not followed
        """TRL's, which stops at a loss that is no number."""

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            check_finite(loss, self.state.global_step)
            return loss

    return AnswerTrainer
