"""`evaluate`: policies compared on held-out seeds by new chains, or judged by chains that are already there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.options import (
    BackendOption,
    BaseUrlOption,
    ConcurrencyOption,
    ConfigArgument,
    DryRunOption,
    LimitOption,
    ModelOption,
    OutOption,
    RetryFailedOption,
    SeedsOption,
    SetOption,
    resolve,
)
from instructgym.cli.stages import default_folder, run_stages
from instructgym.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from instructgym.train.config import Config

__all__ = ["register"]


def evaluate(
    context: typer.Context,
    config: ConfigArgument = "quickstart",
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Policies by name with commas between: trained, random, fixed, greedy, the folder of a saved agent, "
            "FILE.py:NAME. [default: evaluate.policies; with --off-policy: trained if it is, and random]",
        ),
    ] = None,
    off_policy: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Ask nobody: judge the policies by the chains that a finished run evolved; may be given several "
            "times. Without CONFIG that run's own is taken.",
        ),
    ] = None,
    seeds: SeedsOption = None,
    out: OutOption = None,
    given: SetOption = None,
    limit: LimitOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
    retry_failed: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Compare policies on the held-out seeds of a run.

    By new chains, with the same draws of the expert for every policy. With --off-policy by chains that were evolved
    before: off_policy.json in the run's folder then holds what each policy would have earned on them.
    """
    given_config = context.get_parameter_source("config")
    if off_policy and given_config is not None and given_config.name != "COMMANDLINE":
        config = str(off_policy[0])
        _need_run(off_policy[0])
    names = None if policies is None else [name.strip() for name in policies.split(",") if name.strip()]
    if names == []:
        raise ConfigError("--policies names no policy; expected at least one.")
    resolved = resolve(
        config,
        seeds=seeds,
        limit=limit,
        backend=backend,
        base_url=base_url,
        model=model,
        concurrency=concurrency,
        more={"evaluate.policies": names},
        given=given,
    )
    if off_policy:
        folder = out or (Path(config) if Path(config).is_dir() else off_policy[0])
        _judge(resolved, folder, off_policy, names, asked_in_vain=retry_failed or dry_run)
    else:
        run_stages(resolved, out or default_folder(config), ("evaluate",), retry_failed, dry_run)


def _need_run(folder: Path) -> None:
    if not (folder / "config.toml").is_file():
        raise RunFolderError(f"'{folder}' is no run's folder: there is no config.toml in it. Give the folder of a run.")


def _judge(config: Config, folder: Path, logs: list[Path], policies: list[str] | None, *, asked_in_vain: bool) -> None:
    from instructgym.train.off_policy import OFF_POLICY, judge_from_logs, judged_by_default

    if asked_in_vain:
        raise ConfigError("--off-policy asks nobody: --dry-run and --retry-failed mean nothing with it.")
    names = judged_by_default(folder) if policies is None else policies
    document = judge_from_logs(config, folder, logs, names)
    _print(document)
    typer.echo(f"wrote {folder / OFF_POLICY}")


def _print(document: dict[str, Any]) -> None:
    from instructgym.cli.tables import print_table

    rows = [
        (
            name,
            f"{row['value']:.3f}",
            f"{row['interval_95'][0]:.3f} .. {row['interval_95'][1]:.3f}",
            f"{row['effective_sample_size']:,.1f}",
            f"{row['chains']:,}",
            f"{row['seeds']:,}",
            "" if row["trustworthy"] else "means little",
        )
        for name, row in document["policies"].items()
    ]
    first = next(iter(document["policies"].values()))
    seeds = "held-out seeds" if document["held_out"] else "all seeds: the config holds none out"
    note = (
        f"\nSIMULATED: {', '.join(document['simulated'])}; nothing here is said of a language model."
        if document["simulated"]
        else ""
    )
    print_table(
        ("policy", "mean episode\nreward", "95%", "effective\nchains", "chains", "seeds", ""),
        rows,
        title=f"What policies would have earned on the logged chains, by {first['estimator']}",
        caption=f"On {seeds}; nobody was asked. Effective chains: as many chains of the policy itself would be worth "
        f"as much. Below 10 an interval means little.{note}",
    )


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
