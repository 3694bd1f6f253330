"""`align`: the pipelines of self-learning and teacher guidance, and how far one has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.faults import say
from instructgym.cli.options import (
    ConfigArgument,
    DryRunOption,
    FolderArgument,
    RetryFailedOption,
    SetOption,
    overrides_of,
)
from instructgym.cli.tables import print_table, print_text
from instructgym.train.alignment.pipelines import PIPELINES, Pipeline

if TYPE_CHECKING:
    from instructgym.train.alignment.align import AlignmentResult
    from instructgym.train.alignment.config import AlignmentConfig

__all__ = ["register"]

OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run's folder. [default: runs/PIPELINE, or CONFIG's own]")
]
StudentOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="M0: a folder or a name; 'testbed' makes a tiny one.")
]
RoundsOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="How many rounds of preferences.")]

app = typer.Typer(
    help="Align a student: supervised fine-tuning, then rounds of preferences.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _command_of(pipeline: Pipeline) -> Callable[..., None]:
    """The command that runs one pipeline in every round."""

    def command(
        config: ConfigArgument = "testbed",
        out: OutOption = None,
        student: StudentOption = None,
        rounds: RoundsOption = None,
        given: SetOption = None,
        dry_run: DryRunOption = False,
        retry_failed: RetryFailedOption = False,
    ) -> None:
        _run(pipeline.name, config, out, student, rounds, given, dry_run, retry_failed)

    command.__doc__ = f"{pipeline.summary[0].upper()}{pipeline.summary[1:]}."
    return command


for _pipeline in PIPELINES.values():
    app.command(_pipeline.name.replace("_", "-"))(_command_of(_pipeline))


@app.command("run")
def run_as_configured(
    config: ConfigArgument,
    out: OutOption = None,
    student: StudentOption = None,
    given: SetOption = None,
    dry_run: DryRunOption = False,
    retry_failed: RetryFailedOption = False,
) -> None:
    """What the config says: rounds.pipeline, or rounds.schedule with another pipeline each round."""
    _run(None, config, out, student, None, given, dry_run, retry_failed)


@app.command()
def status(folder: FolderArgument) -> None:
    """How far an alignment has come, and what was measured so far."""
    from instructgym.train.alignment.status import status as read_status

    found = read_status(folder)
    print_table(
        ("stage", "state", "what came of it"), [(s.name, s.state, _facts(s.result)) for s in found.stages], left=3
    )
    if found.halted:
        print_text(f"halted: {found.halted}")
    elif found.next_stage:
        print_text(f"next: {found.next_stage}. The command that began this run goes on from there.")
    else:
        print_text("finished.")


@app.command("config")
def show_config(config: ConfigArgument = "testbed", given: SetOption = None) -> None:
    """Print an alignment's config as it is resolved: a TOML file to begin with."""
    from instructgym.cli.options import config_source
    from instructgym.train.alignment.config import load_alignment
    from instructgym.train.config_text import to_toml

    typer.echo(to_toml(load_alignment(config_source(config), given or [])), nl=False)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="align")


def _run(
    pipeline: str | None,
    name: str,
    out: Path | None,
    student: str | None,
    rounds: int | None,
    given: list[str] | None,
    dry_run: bool,
    retry_failed: bool,
) -> None:
    from instructgym.cli.options import config_source
    from instructgym.cli.progress import open_progress
    from instructgym.cli.traffic import print_traffic, say_failures
    from instructgym.train.alignment.align import align
    from instructgym.train.alignment.config import load_alignment

    values: dict[str, Any] = {
        "rounds.pipeline": pipeline,
        "rounds.count": rounds,
        # absolute: the run's own config.toml must mean the same folder from wherever it is started
        "student.model": _absolute(student),
    }
    overrides = overrides_of(values, given)
    if pipeline is not None:
        overrides = ["rounds.schedule=[]", *overrides]
    config = load_alignment(config_source(name), overrides)
    if dry_run:
        _print_estimate(config)
        return
    folder = out or _default_folder(name, pipeline)
    with open_progress() as progress:
        result = align(config, folder, progress=progress, retry_failed=retry_failed)
    _print_models(result, config)
    print_traffic(result.traffic)
    if any(row.failed for row in result.traffic):
        say_failures(result.out)
    _say_what_is_there(result)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _absolute(student: str | None) -> str | None:
    return str(Path(student).absolute()) if student is not None and Path(student).is_dir() else student


def _default_folder(name: str, pipeline: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    return Path("runs") / (pipeline or Path(name).stem).replace("_", "-")


def _print_estimate(config: AlignmentConfig) -> None:
    from instructgym.train.alignment.estimate import estimate

    rows = estimate(config)
    calls = {role: sum(row.calls for row in rows if row.role == role) for role in ("student", "teacher", "judge")}
    print_table(
        ("stage", "role", "model", "calls", "answer tokens", "examples", "steps"),
        [
            (
                *(row.stage, row.role, row.model),
                *(_count(number) for number in (row.calls, row.answer_tokens, row.examples, row.steps)),
            )
            for row in rows
        ],
        left=3,
        title="Dry run: nothing was asked, trained or written",
        caption="All numbers are the most there can be: a pair for every prompt, every answer as long as it may be, no "
        f"round halted. {', '.join(f'{role}: {count:,} calls' for role, count in calls.items() if count)}.",
    )


def _count(number: int | None) -> str:
    return "no limit" if number is None else f"{number:,}" if number else ""


def _print_models(result: AlignmentResult, config: AlignmentConfig) -> None:
    models: Sequence[Mapping[str, Any]] = result.summary["models"]
    checked = any("check" in model for model in models)
    columns = ("model", "made by", "prompts", "pairs", "judge read", *(("right", "95% interval") if checked else ()))
    rows = []
    for model in models:
        gate = model.get("gate", {})
        row = [model["model"], model["made_by"] if model["trained"] else f"{model['made_by']} (not trained)"]
        row += [_of(model, "prompts", "prompts"), _of(model, "pairs", "pairs"), _percent(gate.get("parse_rate"))]
        if checked:
            check = model.get("check", {})
            row += [_percent(check.get("accuracy")), _interval(check.get("interval"))]
        rows.append(row)
    caption = ""
    if config.in_testbed:
        held_out = config.testbed.held_out
        caption = f"TESTBED: greedy answers to {held_out} held-out tasks, checked. They say nothing of language models."
    print_table(columns, rows, title="Models", caption=caption or None, left=2)
    if result.halted:
        say(f"halted: {result.halted}")


def _say_what_is_there(result: AlignmentResult) -> None:
    trained = [model["model"] for model in result.summary["models"] if model["trained"]]
    for name, note in (
        (f"{trained[-1]}/model" if trained else "", "the last model"),
        ("preferences", "the pairs of all rounds, with their card"),
        ("lineage.jsonl", "what led to each pair"),
        ("summary.json", ""),
    ):
        path = result.out / name
        if name and path.exists():
            typer.echo(f"wrote {path}{'/' if path.is_dir() else ''}{f' ({note})' if note else ''}")


def _facts(result: Mapping[str, Any]) -> str:
    """The plain facts of a stage on one line."""
    return ", ".join(
        f"{key} {_short(value)}"
        for key, value in result.items()
        if (isinstance(value, (int, float, str, bool)) and key != "lost") or (key == "lost" and value)
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _of(model: Mapping[str, Any], stage: str, key: str) -> Any:
    return model.get(stage, {}).get(key)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _interval(value: Sequence[float] | None) -> str:
    return "" if not value else f"{100 * value[0]:.1f} to {100 * value[1]:.1f}"
