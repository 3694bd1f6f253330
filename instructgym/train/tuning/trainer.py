"""What both kinds of training share: how a trainer is run, watched, stopped and resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import TrainingError
from instructgym.train.progress import Progress, Silent
from instructgym.train.tuning.job import LOG, MODEL, Job, TuningResult, is_main_process, mark_whole
from instructgym.train.tuning.saving import NotANumber, all_finite, save_whole
from instructgym.train.tuning.student import Student

__all__ = ["guarded", "own_draws", "quiet_libraries", "run_trainer", "split_off"]

_FIRST = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
_TIMES = ("runtime", "per_second", "flos")


def split_off(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(places to train on, places of the eval loss), both ascending; one at least is trained on."""
    held = min(round(share * count), count - 1)
    out = set(np.random.default_rng([seed, 3]).permutation(count)[:held].tolist()) if held > 0 else set()
    return [place for place in range(count) if place not in out], sorted(out)


def guarded(base: Any) -> Any:
    """A trainer class of TRL's that stops at what is no number, and says nothing to anybody."""
    import torch

    class Guarded(base):  # type: ignore[misc]  # TRL is not followed
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            _check("loss", loss, self.state.global_step)
            return loss

        def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
            # Before the weights are changed: a checkpoint never holds what is no number.
            norm = super()._get_grad_norm(*args, **kwargs)
            if norm is not None:
                _check("gradient", norm, self.state.global_step)
            return norm

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            # A step can take weights out of their range although its gradient was a number.
            own = torch.tensor([float(all_finite(self.model))], device=self.accelerator.device)
            if not bool(self.accelerator.gather(own).all()):  # each process has its own part of a sharded model
                raise NotANumber("the weights are no longer numbers", self.state.global_step)
            super()._save_checkpoint(*args, **kwargs)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: checkpoints are for going on, and the model is not TRL's to describe."""

        def _send_telemetry(self) -> None:
            """Nothing is told to anybody."""

    return Guarded


def run_trainer(
    job: Job, trainer: Any, student: Student, counts: Mapping[str, int], progress: Progress | None = None
) -> TuningResult:
    """Train to the end from the last whole checkpoint, save the model, and say that it is whole."""
    import accelerate
    from transformers import PrinterCallback

    processes = accelerate.PartialState()
    if is_main_process():
        job.begin()
    processes.wait_for_everyone()
    resume = job.checkpoint()
    log = LogFile(job.out / LOG)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watcher(trainer, log, progress or Silent()))
    with job.disk_words(), _words_of_nan(job):
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except _AllStepsTaken:
            (progress or Silent()).finished("train")
        if trainer.eval_dataset is not None and _eval_loss(trainer) is None:
            trainer.evaluate()
        log.write(trainer.state.log_history)
        save_whole(trainer, student, job.out)
        processes.wait_for_everyone()
    result = TuningResult(
        job.out / MODEL,
        int(trainer.state.global_step),
        _mean_loss(trainer.state.log_history),
        _eval_loss(trainer),
        job.out / LOG,
        dict(counts),
    )
    if is_main_process():
        job.finish(result)
    processes.wait_for_everyone()
    return result


class _AllStepsTaken(Exception):
    """What was resumed has nothing left to train."""


@contextlib.contextmanager
def _words_of_nan(job: Job) -> Iterator[None]:
    try:
        yield
    except NotANumber as error:
        last = job.checkpoint(before=error.step)
        kept = "there is no good checkpoint yet" if last is None else f"the last good checkpoint is {last}"
        raise TrainingError(
            f"training in '{job.out}' stopped: {error}. Lower the learning rate or max_grad_norm, or look at the data; "
            f"{kept}."
        ) from error


def _check(what: str, value: Any, step: int) -> None:
    number = float(value)
    if not math.isfinite(number):
        raise NotANumber(f"the {what} of step {step + 1} is {number}", step)


class LogFile:
    """The trainer's log without times, rewritten as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file. What sums a training up is left out: it covers the steps of one process only."""
        if not is_main_process():
            return
        rows = [
            {key: row[key] for key in sorted(row, key=_order) if not any(word in key for word in _TIMES)}
            for row in history
            if "train_runtime" not in row
        ]
        beside = self._path.with_name(f"{self._path.name}.tmp")
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        os.replace(beside, self._path)


def _order(key: str) -> tuple[int, str]:
    """Where a value stands in a line: a checkpoint does not keep the order that the trainer wrote in."""
    return (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)


def _watcher(trainer: Any, log: LogFile, progress: Progress) -> Any:
    import accelerate
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
        """Keeps the log on the disk, and marks checkpoints that are whole."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.started("train", state.max_steps)
            progress.advance("train", state.global_step)
            # TRL counts tokens from 0 in every process; a log that goes on has to go on with its count.
            seen = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
            trainer._total_train_tokens = seen[-1] if seen else 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # From the checkpoint of the last step, transformers would take one step more if it lies within an epoch.
            if state.global_step >= state.max_steps:
                raise _AllStepsTaken

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A mean that goes over a checkpoint would be another one after a resume; the last steps are logged, too.
            if control.should_save or state.global_step >= state.max_steps:
                control.should_log = True
            progress.advance("train", state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.write(state.log_history)
            if "loss" in state.log_history[-1]:
                progress.advance("train", state.global_step, f"loss {state.log_history[-1]['loss']:.4g}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            accelerate.PartialState().wait_for_everyone()
            if is_main_process():
                mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.finished("train")

    return Watcher()


def _eval_loss(trainer: Any) -> float | None:
    """The eval loss of the last step, if it has been measured."""
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    return float(rows[-1]["eval_loss"]) if rows and rows[-1]["step"] == trainer.state.global_step else None


def _mean_loss(history: Sequence[Mapping[str, Any]]) -> float:
    """The mean loss over all steps, those before a resume included; each line of the log is the mean of its steps."""
    total, last = 0.0, 0
    for row in history:
        if "loss" in row:
            total += float(row["loss"]) * (row["step"] - last)
            last = row["step"]
    return total / max(last, 1)


@contextlib.contextmanager
def own_draws() -> Iterator[None]:
    """Trainers seed and use the global generators; afterwards they are as they were."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars of progress of datasets, TRL and transformers, and not what peft is told of transformers' next version:
    library code prints nothing."""
    import datasets
    from transformers.utils import logging as transformers_logging

    showed, hid = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    verbosity = transformers_logging.get_verbosity()
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if showed:
            transformers_logging.enable_progress_bar()
        if not hid:
            datasets.enable_progress_bars()
        if before is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = before
