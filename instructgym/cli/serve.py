"""`serve`: the simulated backend behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from instructgym.cli.faults import say, stand_down
from instructgym.errors import ConfigError

__all__ = ["register"]


def serve(
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(metavar="NAME", help="The address to listen on.")] = "127.0.0.1",
    latency: Annotated[float, typer.Option(metavar="S", min=0.0, help="Mean seconds an answer takes.")] = 0.0,
    sigma: Annotated[float, typer.Option(metavar="X", min=0.0, help="Spread of the latency (lognormal); 0: none.")] = 0,
    capacity: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="More requests at once are refused (429).")
    ] = None,
    retry_after: Annotated[float, typer.Option(metavar="S", min=0.0, help="What a 429 asks clients to wait.")] = 1.0,
    fault_rate: Annotated[
        float, typer.Option(metavar="F", min=0.0, max=1.0, help="Share of requests that meet a fault.")
    ] = 0.0,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Which faults: 429, 500, reset, hang, ...; else the usual.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="K", min=0, help="Decides answers, latencies and faults.")] = 0,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A model name it answers to.")] = None,
) -> None:
    """Put the simulated backend behind HTTP.

    It answers /v1/chat/completions, /v1/models and /stats; Ctrl-C ends it.
    Latency and faults depend on the seed and the prompt alone, never on the order of arrival.
    """
    import asyncio
    import shlex

    from instructgym.llm_backends.server import FAULTS, ServerBehaviour, SimulatedServer, serve_forever
    from instructgym.llm_backends.simulated import SimulatedBackend

    if fault and not fault_rate:
        raise ConfigError(
            "--fault names faults, and --fault-rate is 0; say how often they come, e.g. --fault-rate 0.05"
        )
    names = tuple(model or ("simulated",))
    behaviour = ServerBehaviour(
        latency_s=latency,
        sigma=sigma,
        capacity=capacity,
        retry_after_s=retry_after,
        fault_rate=fault_rate,
        faults=tuple(fault or FAULTS),
        seed=seed,
        models=names,
    )
    server = SimulatedServer(SimulatedBackend(seed), behaviour, host=host, port=port)

    def ready(running: SimulatedServer) -> None:
        line = f"--backend openai --base-url {running.base_url} --model {shlex.quote(names[0])}"
        typer.echo(f"serving the simulated backend at {running.base_url}; Ctrl-C ends it. Use it with")
        typer.echo(f"  OPENAI_API_KEY=none instructgym run quickstart {line}")

    try:
        asyncio.run(serve_forever(server, ready))
    except KeyboardInterrupt:
        stand_down()  # this is how it is meant to end
        say(f"stopped after {server.stats()['requests']} requests")


def register(app: typer.Typer) -> None:
    app.command()(serve)
