"""Options that several commands share, and what they mean as config values."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from instructgym.train.config import Config

__all__ = [
    "ActionSetOption",
    "BackendName",
    "BackendOption",
    "BaseUrlOption",
    "ConcurrencyOption",
    "ConfigArgument",
    "DryRunOption",
    "FolderArgument",
    "FormatOption",
    "InstructionFieldOption",
    "LimitOption",
    "ModelOption",
    "OutOption",
    "RetryFailedOption",
    "SeedLicenseOption",
    "SeedsOption",
    "SetOption",
    "SkipBadOption",
    "config_source",
    "overrides_of",
    "resolve",
]


class BackendName(StrEnum):
    """Who answers."""

    simulated = "simulated"
    openai = "openai"
    transformers = "transformers"
    replay = "replay"


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A named config, a TOML file, or a run's folder.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a config value; may be given several times."),
]
SeedsOption = Annotated[str | None, typer.Option(metavar="FILE", help="Your own instructions; else the config's.")]
OutOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The run's folder. [default: runs/CONFIG, or the folder that CONFIG is]"),
]
FormatOption = Annotated[
    str | None,
    typer.Option(help="auto, alpaca, dolly, self_instruct, messages, text, csv or parquet.", show_default=False),
]
InstructionFieldOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The field or column that holds the instruction.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Go on without broken records; they go to a file.")]
LimitOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Take the first N seeds.")]
BackendOption = Annotated[
    BackendName | None, typer.Option(metavar="|".join(name.value for name in BackendName), help="Who answers.")
]
BaseUrlOption = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="An OpenAI-compatible endpoint; several, if more than one serves the model."),
]
ModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model to ask there; with transformers a name or a folder.")
]
ConcurrencyOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="At most so many calls in flight; else it finds itself.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Estimate calls, tokens and cost; ask and write nothing.")
]
SeedLicenseOption = Annotated[str | None, typer.Option(metavar="NAME", help="Licence of the seeds, for the card.")]
ActionSetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="An action set, or FILE.py:NAME for your own.")
]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed for good before.")]


def overrides_of(values: dict[str, Any], given: list[str] | None) -> list[str]:
    """``section.key=value`` for every value that was given as an option of its own, then what --set says."""
    return [f"{key}={_toml(value)}" for key, value in values.items() if value is not None] + (given or [])


def _toml(value: Any) -> str:
    """A value in TOML; strings and lists of strings look as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    # Python's \u escapes of half surrogate pairs are no TOML; a path that holds one is passed as it stands.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def resolve(
    name: str,
    *,
    seeds: str | None = None,
    format: str | None = None,
    instruction_field: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    backend: BackendName | None = None,
    base_url: list[str] | None = None,
    model: str | None = None,
    concurrency: int | None = None,
    seed_license: str | None = None,
    action_set: str | None = None,
    more: dict[str, Any] | None = None,
    given: list[str] | None = None,
) -> Config:
    """The config that a command's options describe. Raises `ConfigError`."""
    from instructgym.train.config_text import load_config

    values = {
        # absolute: the run's own config.toml must mean the same file from wherever a later stage is started
        "seeds.path": None if seeds is None else seeds if seeds == "default" else str(Path(seeds).absolute()),
        "seeds.format": format,
        "seeds.instruction_field": instruction_field,
        "seeds.skip_bad": skip_bad or None,
        "seeds.limit": limit,
        "seeds.license": seed_license,
        "llm.backend": backend.value if backend else None,
        "llm.base_url": base_url[0] if base_url else None,
        "llm.base_urls": base_url if base_url and len(base_url) > 1 else None,
        "llm.model": model,
        "limits.concurrency": concurrency,
        "env.action_set": action_set,
        **(more or {}),
    }
    return load_config(config_source(name), overrides_of(values, given))


def config_source(name: str) -> str:
    """Where a CONFIG is read from: the folder of a run stands for the config that is kept in it."""
    own = Path(name) / "config.toml"
    return str(own) if own.is_file() else name
