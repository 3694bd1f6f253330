"""Supervised fine-tuning on answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.progress import Progress
from instructgym.train.tuning.arguments import (
    arguments_of,
    lora_config,
    need_training_packages,
    on_one_gpu,
    student_to_train,
)
from instructgym.train.tuning.encoding import EncodedText, encode_texts
from instructgym.train.tuning.examples import SFTExample
from instructgym.train.tuning.job import CHECKPOINTS, TuningResult, open_job
from instructgym.train.tuning.settings import SFTSettings
from instructgym.train.tuning.student import Student
from instructgym.train.tuning.trainer import guarded, own_draws, quiet_libraries, run_trainer, split_off

__all__ = ["sft_trainer", "train_sft"]


def train_sft(
    model: str | Path,
    examples: Sequence[SFTExample],
    settings: SFTSettings,
    out: Path,
    *,
    chat_template: str = "",
    seed: int = 0,
    eval_examples: Sequence[SFTExample] = (),
    device: str = "auto",
    trust_remote_code: bool = False,
    replace: bool = True,
    progress: Progress | None = None,
) -> TuningResult:
    """Fine-tune a model; the result is ``out/model``, a folder that any tool opens.

    Called again with the same arguments it goes on from its last whole checkpoint to the same log, or gives what is
    there. Examples that do not fit into `max_length` (or the model's context) are left out and counted.

    Args:
        chat_template, device, trust_remote_code: as `open_student` takes them.
        eval_examples: what the eval loss is measured on; without them `settings.eval_share` of the examples is.
        replace: whether what another training has left in `out` may be removed; else it is refused.

    Raises:
        ConfigError: the model cannot be trained, or no example fits.
        TrainingError: a loss that is no number; the last good checkpoint is kept.
        RunFolderError: the folder cannot be written (the last whole checkpoint is kept), or is another training's.
        MissingDependencyError: the extra ``align`` is not installed.
    """
    need_training_packages()
    job = open_job(
        "sft",
        model,
        examples,
        settings,
        out,
        chat_template=chat_template,
        seed=seed,
        eval_examples=eval_examples,
        replace=replace,
    )
    with job.hold():
        done = job.finished()
        if done is not None:
            return done
        with own_draws(), quiet_libraries():
            student = student_to_train(
                model, settings, chat_template=chat_template, device=device, trust_remote_code=trust_remote_code
            )
            train, held, counts = _rows(student, examples, eval_examples, settings, seed)
            trainer = sft_trainer(student, train, held, settings, job.out / CHECKPOINTS, seed)
            return run_trainer(job, trainer, student, counts, progress)


def sft_trainer(
    student: Student,
    train: Sequence[EncodedText],
    held: Sequence[EncodedText],
    settings: SFTSettings,
    folder: Path,
    seed: int,
) -> Any:
    """TRL's trainer on finished ids; checkpoints go into `folder`."""
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    def dataset(rows: Sequence[EncodedText]) -> Any:
        return datasets.Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])

    limit = _limit(student, settings)
    return guarded(SFTTrainer)(
        model=student.model,
        args=on_one_gpu(
            SFTConfig(
                **arguments_of(student, settings, folder, seed),
                max_length=limit if settings.packing else None,
                packing=settings.packing,
                eval_packing=False,
            )
        ),
        train_dataset=dataset(train),
        eval_dataset=dataset(held) if held else None,
        processing_class=student.tokenizer,
        peft_config=lora_config(settings, student),
    )


def _rows(
    student: Student,
    examples: Sequence[SFTExample],
    eval_examples: Sequence[SFTExample],
    settings: SFTSettings,
    seed: int,
) -> tuple[list[EncodedText], list[EncodedText], Mapping[str, int]]:
    """(rows to train on, rows of the eval loss, counts of examples). Raises `ConfigError` if none fits."""
    limit = _limit(student, settings)
    encoded, dropped = encode_texts(student, examples, limit)
    if not encoded:
        raise ConfigError(
            f"none of the {len(examples)} examples fits into {limit} tokens "
            f"({', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'there are none'}); raise "
            "max_length, or give other data."
        )
    if eval_examples:
        own, _ = encode_texts(student, eval_examples, limit)
        train, held = encoded, own
    else:
        places, rest = split_off(len(encoded), settings.eval_share, seed)
        train, held = [encoded[place] for place in places], [encoded[place] for place in rest]
    counts = {"examples": len(train), "eval": len(held), **dropped}
    return [row for each in train for row in each], [row for each in held for row in each], counts


def _limit(student: Student, settings: SFTSettings) -> int:
    return min(settings.max_length, student.context or settings.max_length)
