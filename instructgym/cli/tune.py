"""`sft` and `dpo`: the two training stages on their own, on any model and data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.options import SetOption, config_source, overrides_of
from instructgym.cli.tables import print_text

if TYPE_CHECKING:
    from instructgym.train.alignment.config import AlignmentConfig
    from instructgym.train.progress import Progress
    from instructgym.train.tuning.job import TuningResult

__all__ = ["register"]

ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="The model to train: a folder or a name.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the trained model and its log go.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="CONFIG", help="Settings: an alignment's config (a name, a file, a run's folder)."
    ),
]
EvalOption = Annotated[
    Path | None, typer.Option("--eval-data", metavar="FILE", help="What the eval loss is measured on.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="NAME", help="'plain', or a file, for a model that has none."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Decides every draw.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]


def sft(
    model: ModelOption,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Alpaca, chat or prompt and completion; or a run's folder.")
    ],
    out: OutOption,
    config: ConfigOption = None,
    given: SetOption = None,
    eval_data: EvalOption = None,
    chat_template: TemplateOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Fine-tune a model on answers.

    The loss is on the assistant's turns only. Settings are those of section `sft`, e.g. --set sft.lr=1e-5. A training
    that was cut off goes on when the same command is given again.
    """
    from instructgym.train.tuning.examples import read_sft
    from instructgym.train.tuning.sft import train_sft

    options = _Given(model, data, out, config, given, eval_data, chat_template, seed, device)
    result = options.train("sft", "examples", read_sft, train_sft)
    if _is_shown():
        _report(result, "examples")
        typer.echo(f"next: instructgym dpo --model {result.model} --data PREFERENCES --out DIR")


def dpo(
    model: ModelOption,
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="FILE", help="JSON lines or Parquet of prompt, chosen, rejected; or a run's folder."
        ),
    ],
    out: OutOption,
    config: ConfigOption = None,
    given: SetOption = None,
    eval_data: EvalOption = None,
    chat_template: TemplateOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Train a model on preferences (DPO); the reference is the model as it is given.

    Settings are those of section `dpo`, e.g. --set "dpo.losses={sigmoid = 1, sft = 1}". A training that was cut off
    goes on when the same command is given again.
    """
    from instructgym.train.tuning.dpo import train_dpo
    from instructgym.train.tuning.examples import read_preferences

    options = _Given(model, data, out, config, given, eval_data, chat_template, seed, device)
    result = options.train("dpo", "pairs", read_preferences, train_dpo)
    if _is_shown():
        _report(result, "pairs")
        typer.echo(f"next: instructgym evolve --backend transformers --model {result.model}")


def register(app: typer.Typer) -> None:
    app.command()(sft)
    app.command()(dpo)


@dataclass(frozen=True)
class _Given:
    """What either command was told."""

    model: str
    data: Path
    out: Path
    config: str | None
    given: Sequence[str] | None
    eval_data: Path | None
    chat_template: str | None
    seed: int | None
    device: str | None

    def train(
        self,
        section: str,
        what: str,
        read: Callable[[Path], Sequence[Any]],
        train: Callable[..., TuningResult],
    ) -> TuningResult:
        resolved = self._resolved(section)
        examples = read(self.data)
        held = read(self.eval_data) if self.eval_data else ()
        with _shown() as progress:
            progress.say(f"read {len(examples):,} {what} from {self.data}")
            return train(
                _absolute(self.model),
                examples,
                getattr(resolved, section),
                self.out,
                chat_template=resolved.student.chat_template,
                seed=resolved.run.seed,
                eval_examples=held,
                device=resolved.student.device,
                trust_remote_code=resolved.student.trust_remote_code,
                replace=False,
                progress=progress,
            )

    def _resolved(self, section: str) -> AlignmentConfig:
        """The settings, in the form that an alignment has them in. Raises `ConfigError`."""
        from instructgym.errors import ConfigError
        from instructgym.train.alignment.config import AlignmentConfig, load_alignment
        from instructgym.train.config import build
        from instructgym.train.config_text import apply_overrides

        for override in self.given or ():
            key = override.partition("=")[0].strip()
            if not key.startswith((f"{section}.", "student.")) and key != "run.seed":
                raise ConfigError(
                    f"--set {key} means nothing to `{section}`; expected {section}.KEY, student.KEY or run.seed."
                )
        values = {"student.chat_template": self.chat_template, "run.seed": self.seed, "student.device": self.device}
        overrides = overrides_of(values, list(self.given or ()))
        if self.config is not None:
            return load_alignment(config_source(self.config), overrides)
        return build(AlignmentConfig, apply_overrides({}, overrides), "--set")


def _is_shown() -> bool:
    """One of the processes of `accelerate launch` speaks for all."""
    from instructgym.train.tuning.job import is_main_process

    return is_main_process()


@contextlib.contextmanager
def _shown() -> Iterator[Progress]:
    from instructgym.cli.progress import open_progress
    from instructgym.train.progress import Silent

    if not _is_shown():
        yield Silent()
        return
    with open_progress() as progress:
        yield progress


def _absolute(model: str) -> str | Path:
    """A folder as a path: whatever its name looks like, it is no name of a hub."""
    return Path(model) if Path(model).is_dir() else model


def _report(result: TuningResult, what: str) -> None:
    """What was learned from, how the loss went, and what was written."""
    from instructgym.train.tuning.job import ADAPTER

    counts = dict(result.counts)
    used, held = counts.pop(what), counts.pop("eval")
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    parts = [f"learned from {used:,} {what} in {result.steps:,} steps"]
    if held:
        parts.append(f"{held:,} kept for the eval loss")
    if left_out:
        parts.append(f"left out: {left_out}")
    print_text("; ".join(parts))
    rows = [json.loads(line) for line in result.log.read_text("utf-8").splitlines()]
    train = [row for row in rows if "loss" in row]
    line = f"loss {_change(train, 'loss')}"
    if result.eval_loss is not None:
        line += f"; eval loss {result.eval_loss:.4g}"
    print_text(line)
    if "logps/chosen" in train[-1]:
        print_text(
            f"log-probability of chosen answers {_change(train, 'logps/chosen')}, of rejected "
            f"{_change(train, 'logps/rejected')}; chosen above rejected {100 * train[-1]['rewards/accuracies']:.0f}%"
        )
    typer.echo(f"wrote {result.model}/ (the model)")
    if (result.model.parent / ADAPTER).is_dir():
        typer.echo(f"wrote {result.model.parent / ADAPTER}/ (its adapter alone)")
    typer.echo(f"wrote {result.log}")


def _change(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    first, last = rows[0][key], rows[-1][key]
    return f"{last:.4g}" if len(rows) == 1 else f"{first:.4g} -> {last:.4g}"
