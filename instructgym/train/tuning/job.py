"""One training in one folder: whether it is done, where it goes on, and what it leaves.

::

    OUT/inputs.json      what decides the result: settings, seed, digests of model and data
    OUT/checkpoints/     while it trains; the two last ones, each marked when all of it is there
    OUT/log.jsonl        a line a logged step, without times
    OUT/adapter/         with LoRA
    OUT/model/           the trained model, as a whole
    OUT/training.json    written last
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instructgym.errors import InstructGymError, RunFolderError
from instructgym.train.run_folder import canonical_json, is_full_disk
from instructgym.train.tuning.settings import TrainingSettings
from instructgym.train.tuning.student import model_digest

__all__ = ["ADAPTER", "CHECKPOINTS", "LOG", "MODEL", "Job", "TuningResult", "is_main_process", "mark_whole", "open_job"]

SCHEMA = 1
CHECKPOINTS, LOG, RESULT, MODEL, ADAPTER, INPUTS, LOCK = (
    "checkpoints",
    "log.jsonl",
    "training.json",
    "model",
    "adapter",
    "inputs.json",
    ".lock",
)
_WHOLE = "whole"  # written into a checkpoint when all of it is there
_REFUSED = ("no space left", "file too large", "quota exceeded")  # what safetensors says
_CUT_OFF = ("iostream error", "inline_container", "PytorchStreamWriter")  # what torch says


@dataclass(frozen=True)
class TuningResult:
    """What a training left: the model's folder, its log (a JSON line a logged step), and what was learned from.

    `train_loss` is the mean over all steps. `counts` holds the examples that were used and, by reason, those that were
    not.
    """

    model: Path
    steps: int
    train_loss: float
    eval_loss: float | None
    log: Path
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training, by all that goes in. With `replace` it may take the place of another one in its folder."""

    out: Path
    inputs: Mapping[str, Any]
    replace: bool = True

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(self.inputs).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Have the folder for this process alone. Raises `RunFolderError`."""
        if not is_main_process():
            yield
            return
        with self.disk_words():
            self.out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.out / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(
                    f"'{self.out}' is in use by another training. Wait for it, or choose another folder."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def finished(self) -> TuningResult | None:
        """What an equal training has left here, if it came to its end.

        Raises `RunFolderError` where another training is, and must not be replaced.
        """
        self._refuse_others()
        held = _read(self.out / RESULT)
        if held is None or held.get("key") != self.key or not (self.out / MODEL).is_dir():
            return None
        return TuningResult(
            self.out / MODEL, held["steps"], held["train_loss"], held["eval_loss"], self.out / LOG, held["counts"]
        )

    def begin(self) -> None:
        """Claim the folder. What another training has left here is removed."""
        with self.disk_words():
            held = _read(self.out / INPUTS)
            if held is None or held.get("key") != self.key:
                for name in (CHECKPOINTS, MODEL, ADAPTER):
                    shutil.rmtree(self.out / name, ignore_errors=True)
                for name in (RESULT, LOG):
                    (self.out / name).unlink(missing_ok=True)
                _write(self.out / INPUTS, {"key": self.key, "inputs": dict(self.inputs)})
            whole = self._whole()
            for path in (self.out / CHECKPOINTS).glob("checkpoint-*"):
                if path not in whole:  # cut off while it was written
                    shutil.rmtree(path)

    def checkpoint(self, before: int | None = None) -> Path | None:
        """The last whole checkpoint, or the last one of a step before `before`."""
        steps = {int(path.name.rpartition("-")[2]): path for path in self._whole()}
        last = max((step for step in steps if before is None or step < before), default=None)
        return None if last is None else steps[last]

    def finish(self, result: TuningResult) -> None:
        """Say that the model is whole; checkpoints are no longer needed."""
        facts = {"key": self.key, **asdict(result)}
        with self.disk_words():
            _write(self.out / RESULT, {name: value for name, value in facts.items() if name not in ("model", "log")})
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)

    @contextlib.contextmanager
    def disk_words(self) -> Iterator[None]:
        """Turns what the file system refuses into `RunFolderError`, whichever library has met it."""
        try:
            yield
        except InstructGymError:
            raise
        except Exception as error:
            reason = _refusal(error)
            if reason is None:
                raise
            last = self.checkpoint()
            kept = "nothing was saved before" if last is None else f"the last whole checkpoint, {last.name}, is kept"
            raise RunFolderError(
                f"cannot write to '{self.out}': {reason}; {kept}. Make room and run the same command again: it goes on "
                "from there."
            ) from error

    def _whole(self) -> list[Path]:
        return [path for path in (self.out / CHECKPOINTS).glob("checkpoint-*") if (path / _WHOLE).is_file()]

    def _refuse_others(self) -> None:
        held = _read(self.out / INPUTS)
        if self.replace or held is None or held.get("key") == self.key:
            return
        there, here = _flat(held.get("inputs", {})), _flat(self.inputs)
        names = [name for name in [*here, *there] if there.get(name) != here.get(name)]
        name = names[0] if names else "schema"
        said = (
            "" if name.endswith(_DIGESTS) else f" is {json.dumps(there.get(name))}, here {json.dumps(here.get(name))}"
        )
        raise RunFolderError(
            f"'{self.out}' holds another training: its {name}{said or ' differs'}. Choose another folder, or remove "
            "that one."
        )


_DIGESTS = ("model", "examples", "template")


def open_job(
    kind: str,
    place: str | Path,
    examples: Sequence[Any],
    settings: TrainingSettings,
    out: Path,
    *,
    chat_template: str,
    seed: int,
    eval_examples: Sequence[Any] = (),
    replace: bool = True,
) -> Job:
    """The job of these inputs. The model is known by what its folder holds, examples by what they say."""
    folder = Path(place)
    inputs = {
        "schema": SCHEMA,
        "kind": kind,
        "model": model_digest(folder) if folder.is_dir() else str(place),
        "examples": [_digest(examples), _digest(eval_examples)],
        "settings": settings.model_dump(mode="json"),
        "template": _template_digest(chat_template),
        "seed": seed,
    }
    return Job(out, inputs, replace)


def mark_whole(checkpoint: Path) -> None:
    """Say that all of a checkpoint is there."""
    (checkpoint / _WHOLE).touch()


def is_main_process() -> bool:
    """False in the other processes of `accelerate launch`: one of them writes the folder."""
    return int(os.environ.get("RANK", "0")) == 0


def _digest(examples: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{canonical_json(asdict(example))}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _template_digest(chat_template: str) -> str:
    if chat_template in ("", "plain"):
        return chat_template
    try:
        return hashlib.sha256(Path(chat_template).read_bytes()).hexdigest()
    except OSError:
        return chat_template  # whoever opens it says what is wrong


def _refusal(error: BaseException) -> str | None:
    """Why the file system refused, in words; None for an error of another kind.

    Besides `OSError` there are the errors of torch and safetensors, which say it only in their text.
    """
    if is_full_disk(error):
        return "no space left on the device"
    if isinstance(error, OSError) and error.errno is not None:
        # Of other errors only those of writing: a model that cannot be fetched is an OSError, too.
        writing = (errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR)
        return error.strerror if error.errno in writing else None
    text = str(error)
    if isinstance(error, RuntimeError) and any(word in text for word in _CUT_OFF):
        return "a file could not be written to its end"
    if type(error).__name__ == "SafetensorError":
        return next((word for word in _REFUSED if word in text.lower()), None)
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(dict(value), indent=2) + "\n", "utf-8")
    os.replace(beside, path)
