"""`config show` and `config schema`."""

from __future__ import annotations

import typer

from instructgym.cli.options import ConfigArgument, SetOption, config_source

__all__ = ["register"]

group = typer.Typer(help="Look at configs.", no_args_is_help=True)


@group.command()
def show(config: ConfigArgument, given: SetOption = None) -> None:
    """Print a config as it is resolved: every value, defaults included. Redirect it to a file to start your own."""
    from instructgym.train.config_text import load_config, to_toml

    typer.echo(to_toml(load_config(config_source(config), given or [])), nl=False)


@group.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors that check TOML."""
    import json

    from instructgym.train.config_text import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="config")
