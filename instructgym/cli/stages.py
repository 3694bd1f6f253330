"""`run`, and its stages one by one: `train`, `evolve`, `respond`, `filter`, `export`."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.faults import LOST_ITEMS, say
from instructgym.cli.options import (
    ActionSetOption,
    BackendOption,
    BaseUrlOption,
    ConcurrencyOption,
    ConfigArgument,
    DryRunOption,
    FolderArgument,
    FormatOption,
    InstructionFieldOption,
    LimitOption,
    ModelOption,
    OutOption,
    RetryFailedOption,
    SeedLicenseOption,
    SeedsOption,
    SetOption,
    SkipBadOption,
    config_source,
    resolve,
)

if TYPE_CHECKING:
    from instructgym.train.config import Config
    from instructgym.train.pipeline import RunResult

__all__ = ["default_folder", "register", "run_stages"]

ALL: tuple[str, ...] = ()  # every stage, in the pipeline's order


class ReviewerChoice(StrEnum):
    """Whether the reviewer is asked."""

    config = "config"
    none = "none"


def run(
    config: ConfigArgument = "quickstart",
    seeds: SeedsOption = None,
    out: OutOption = None,
    given: SetOption = None,
    format: FormatOption = None,
    instruction_field: InstructionFieldOption = None,
    skip_bad: SkipBadOption = False,
    limit: LimitOption = None,
    seed_license: SeedLicenseOption = None,
    action_set: ActionSetOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
    retry_failed: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """The main job: train, evolve, respond, filter, export.

    Trains an instructor, evolves the seeds with it, asks the expert for answers, filters and exports a dataset.

    A run that was cut off goes on when the same command is given again.
    """
    resolved = resolve(
        config,
        seeds=seeds,
        format=format,
        instruction_field=instruction_field,
        skip_bad=skip_bad,
        limit=limit,
        seed_license=seed_license,
        action_set=action_set,
        backend=backend,
        base_url=base_url,
        model=model,
        concurrency=concurrency,
        given=given,
    )
    run_stages(resolved, out or default_folder(config), ALL, retry_failed, dry_run)


def train(
    context: typer.Context,
    config: ConfigArgument = "quickstart",
    seeds: SeedsOption = None,
    out: OutOption = None,
    given: SetOption = None,
    format: FormatOption = None,
    instruction_field: InstructionFieldOption = None,
    skip_bad: SkipBadOption = False,
    limit: LimitOption = None,
    action_set: ActionSetOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
    from_ledger: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Learn from the chains that a finished run evolved, without a new call; may be given several times. "
            "[agents: fitted_q (default), behaviour_cloning]",
        ),
    ] = None,
    learn_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Let the agent that is trained in the run's folder learn train.steps (or train.calls) more.",
        ),
    ] = False,
    retry_failed: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train an instructor.

    `evolve --policy DIR` takes the folder that it is saved in. `train DIR --continue` goes on from there; what was
    made with the agent before is then out of date, and the next `run` makes it again.
    """
    if learn_on and from_ledger:
        from instructgym.errors import ConfigError

        raise ConfigError("--continue and --from-ledger exclude each other: an agent learns from logs all at once.")
    if learn_on and out is not None and (out / "config.toml").is_file() and not _is_given(context, "config"):
        config = str(out)  # what is trained there says how
    if from_ledger:
        given = _learning_from(from_ledger, config, given)
    resolved = resolve(
        config,
        seeds=seeds,
        format=format,
        instruction_field=instruction_field,
        skip_bad=skip_bad,
        limit=limit,
        action_set=action_set,
        backend=backend,
        base_url=base_url,
        model=model,
        concurrency=concurrency,
        given=given,
    )
    run_stages(resolved, out or default_folder(config), ("train",), retry_failed, dry_run, learn_on)


def _learning_from(folders: Sequence[Path], config: str, given: list[str] | None) -> list[str]:
    """What `given` is with these logs, and with an agent that learns from logs where the config has none."""
    from instructgym.agents.registry import AGENTS

    name = resolve(config, given=given).agent.name
    online = name in AGENTS and "offline" not in AGENTS[name].made_by
    own = ["agent.name=fitted_q", "agent.kwargs={}"] if online and not _sets_agent(given) else []
    return [*own, *(given or []), f"train.logs={json.dumps([str(folder) for folder in folders])}"]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _sets_agent(given: Sequence[str] | None) -> bool:
    return any(value.partition("=")[0].strip() == "agent.name" for value in given or ())


def evolve(
    config: ConfigArgument = "quickstart",
    policy: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="A saved agent's folder, trained, random, round_robin or fixed:OPERATION."),
    ] = None,
    seeds: SeedsOption = None,
    out: OutOption = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Rewrites a chain (env.horizon).")] = None,
    reviewer: Annotated[
        ReviewerChoice, typer.Option(metavar="config|none", help="none: without its reward and its rule.")
    ] = ReviewerChoice.config,
    given: SetOption = None,
    format: FormatOption = None,
    instruction_field: InstructionFieldOption = None,
    skip_bad: SkipBadOption = False,
    limit: LimitOption = None,
    action_set: ActionSetOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
    retry_failed: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Evolve every seed with a policy.

    lineage.jsonl then holds every rewrite. `instructgym train --out DIR`, then `instructgym evolve DIR`, evolves with
    what was trained.
    """
    more = {
        "evolve.policy": None if policy is None else _policy(policy),
        "env.horizon": steps,
    }
    if reviewer is ReviewerChoice.none:
        more |= _without_reviewer(config, given)
    resolved = resolve(
        config,
        seeds=seeds,
        format=format,
        instruction_field=instruction_field,
        skip_bad=skip_bad,
        limit=limit,
        action_set=action_set,
        backend=backend,
        base_url=base_url,
        model=model,
        concurrency=concurrency,
        more=more,
        given=given,
    )
    run_stages(resolved, out or default_folder(config), ("evolve",), retry_failed, dry_run)


def respond(folder: FolderArgument, given: SetOption = None, retry_failed: RetryFailedOption = False) -> None:
    """Ask the expert to answer what a run evolved."""
    _continue(folder, given, ("respond",), retry_failed)


def filter_answers(folder: FolderArgument, given: SetOption = None) -> None:
    """Choose a run's answers for the dataset.

    The others go to dataset/rejected.jsonl, each with its reason.
    """
    _continue(folder, given, ("filter",), False)


def export(folder: FolderArgument, given: SetOption = None) -> None:
    """Write a run's dataset and its card."""
    _continue(folder, given, ("export",), False)


def _written(ran: set[str], summary: Mapping[str, Any]) -> dict[str, str]:
    """What a user may want to open after these stages, and a word on what is in it."""
    files = {"rejected_seeds.jsonl": "records that were no seeds, with reasons"}
    if "train" in ran:
        files["agent"] = "the trained instructor"
    if "evolve" in ran:
        files["lineage.jsonl"] = "every rewrite"
    if "respond" in ran and "export" not in ran:
        files["stages/answers.jsonl"] = ""
    if "filter" in ran and "export" not in ran:
        files["dataset/rejected.jsonl"] = f"{summary['filter']['rejected']} answers, with reasons"
    if "export" in ran:
        rejected = summary["filter"]["rejected"]
        files["dataset"] = f"{summary['export']['rows']} instructions with answers; {rejected} rejected"
    return {**files, "summary.json": "", "report.html": ""}


def default_folder(config: str) -> Path:
    return Path(config) if Path(config).is_dir() else Path("runs") / Path(config).stem


def _policy(name: str) -> str:
    """A saved agent's folder by its absolute path, also when the run that trained it was named; else the name."""
    folder = Path(name)
    if name in ("trained", "random", "round_robin") or not folder.is_dir():
        return name
    return str((folder / "agent" if (folder / "agent").is_dir() else folder).absolute())


def _without_reviewer(base: str, given: list[str] | None) -> dict[str, Any]:
    """The config values that keep every part from asking the reviewer. Raises `ConfigError` if no reward is left."""
    from instructgym.envs.elimination import DEFAULT_RULES
    from instructgym.errors import ConfigError
    from instructgym.rewards.building import requires
    from instructgym.train.config_text import load_config

    config = load_config(config_source(base), given or [])
    terms = {
        name: weight
        for name, weight in config.reward.terms.items()
        if "reviewer" not in requires(name, config.reward.define)
    }
    if not any(terms.values()):
        raise ConfigError(
            f"--reviewer none leaves no reward: the terms {', '.join(config.reward.terms)} all ask the reviewer. Name "
            "another, e.g. --set reward.terms.novelty=1.0."
        )
    rules = DEFAULT_RULES if config.env.elimination == "default" else config.env.elimination
    kwargs = {name: options for name, options in config.reward.kwargs.items() if name in terms}
    return {
        "reward.terms": terms,
        "reward.kwargs": kwargs,
        "env.elimination": [rule for rule in rules if rule != "no_gain"],
    }


def _continue(folder: Path, given: list[str] | None, stages: Sequence[str], retry_failed: bool) -> None:
    """Run stages of an existing run by its own config."""
    from instructgym.errors import RunFolderError

    if not (folder / "config.toml").is_file():
        raise RunFolderError(f"'{folder}' is no run's folder (it holds no config.toml). Start with `instructgym run`.")
    run_stages(resolve(str(folder), given=given), folder, stages, retry_failed)


def run_stages(
    config: Config,
    folder: Path,
    stages: Sequence[str],
    retry_failed: bool,
    dry_run: bool = False,
    learn_on: bool = False,
) -> None:
    """Run `stages`, show how it went, and end with the run's exit code."""
    from instructgym.cli.progress import open_progress
    from instructgym.train import pipeline

    if dry_run:
        from instructgym.cli.traffic import print_estimate

        print_estimate(pipeline.dry_run(config, stages=stages or pipeline.ALL), config, folder)
        return
    # Thousands of small objects a second are the work here, not rubbish: the default thresholds would look through all
    # that torch holds again and again, a tenth of a stage's time.
    gc.set_threshold(50_000, 20, 50)
    with open_progress() as progress:
        result = pipeline.run(
            config,
            folder,
            stages=stages or pipeline.ALL,
            progress=progress,
            retry_failed=retry_failed,
            continue_training=learn_on,
        )
    _conclude(result, config)
    if result.lost:
        raise typer.Exit(LOST_ITEMS)


def _conclude(result: RunResult, config: Config) -> None:
    from instructgym.cli.report import chosen_policies, print_policies
    from instructgym.cli.traffic import print_traffic, say_failures

    ran = {report.stage for report in result.stages}
    evaluation = result.summary.get("evaluation")
    if evaluation is not None and "evaluate" in ran:
        print_policies(
            evaluation,
            chosen_policies(evaluation),
            title="Policies at equal numbers of expert calls",
            simulated=bool(result.summary.get("simulated")),
        )
    print_traffic(result.traffic)
    if any(row.failed for row in result.traffic):
        say_failures(result.out)
    for name, note in _written(ran, result.summary).items():
        path = result.out / name
        if path.exists():
            typer.echo(f"wrote {path}{'/' if path.is_dir() else ''}{f' ({note})' if note else ''}")
    if result.lost:
        lost = ", ".join(f"{report.lost} in {report.stage}" for report in result.stages if report.lost)
        say(
            f"finished, but failed calls or missing rewards ended work early: {lost}. Ask again with the same command "
            "and --retry-failed."
        )


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(train)
    app.command()(evolve)
    app.command()(respond)
    app.command("filter")(filter_answers)
    app.command()(export)
