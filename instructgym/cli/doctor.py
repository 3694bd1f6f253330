"""`doctor`: what a run would stand on here, and whether it would work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructgym.cli.options import ModelOption
from instructgym.cli.tables import print_table

__all__ = ["register"]

PACKAGES = ("gymnasium", "numpy", "openai", "sb3-contrib", "sentence-transformers", "stable-baselines3", "torch")
NEEDED_MB = 200


def doctor(
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible endpoint.")] = None,
    model: ModelOption = None,
    encoder: Annotated[str, typer.Option(metavar="NAME", help="The encoder to look for.")] = "auto",
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs would be written.")] = Path("runs"),
) -> None:
    """Say what a run would stand on here.

    Versions, device, encoder, key and disk; with --base-url also whether the endpoint answers.

    Ends with 2 if something is in the way.
    """
    rows = [*_versions(), ("device", _device(), ""), _encoder(encoder), _key(base_url), _disk(folder)]
    if base_url is not None:
        rows.append(_endpoint(base_url, model))
    print_table(("what", "found", "trouble"), rows, left=3)
    if any(trouble for *_, trouble in rows):
        raise typer.Exit(2)


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def _versions() -> list[tuple[str, str, str]]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from instructgym import __version__

    rows = [("instructgym", __version__, ""), ("python", platform.python_version(), "")]
    for name in PACKAGES:
        try:
            rows.append((name, version(name), ""))
        except PackageNotFoundError:
            rows.append((name, "none", f"not installed: pip install {name}"))
    return rows


def _device() -> str:
    import os

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{cores} CPU cores"
    return f"{torch.cuda.get_device_name(0)}, {cpu}" if torch.cuda.is_available() else f"{cpu}, no GPU"


def _encoder(name: str) -> tuple[str, str, str]:
    from instructgym.errors import ConfigError
    from instructgym.rewards.encoders import open_encoder

    try:
        encoder = open_encoder(name)
    except ConfigError as error:
        return "encoder", "none", str(error)
    found = f"{encoder.name}, {encoder.dim} dimensions"
    encoder.close()
    return "encoder", found, ""


def _key(base_url: str | None) -> tuple[str, str, str]:
    import os

    if os.environ.get("OPENAI_API_KEY"):
        return "key", "OPENAI_API_KEY is set", ""
    trouble = "set OPENAI_API_KEY (any word will do for an endpoint that asks for none)" if base_url else ""
    return "key", "OPENAI_API_KEY is not set", trouble


def _disk(folder: Path) -> tuple[str, str, str]:
    import shutil

    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free_mb = shutil.disk_usage(place).free // 2**20
    trouble = f"less than {NEEDED_MB} MB" if free_mb < NEEDED_MB else ""
    return "free disk", f"{free_mb / 1024:,.1f} GB at {place}", trouble


def _endpoint(base_url: str, model: str | None) -> tuple[str, str, str]:
    import asyncio

    from instructgym.errors import InstructGymError
    from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend

    async def ask() -> list[str]:
        backend = OpenAICompatibleBackend(base_url)
        try:
            return await backend.check()
        finally:
            await backend.aclose()

    try:
        names = asyncio.run(ask())
    except InstructGymError as error:
        return "endpoint", base_url, str(error)
    found = f"{base_url} answers; models: {', '.join(names[:8]) if names else 'it does not say'}"
    trouble = f"it has no model '{model}'" if model is not None and names and model not in names else ""
    return "endpoint", found, trouble
