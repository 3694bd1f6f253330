"""Who answers each role: the transports that a config names, one for all roles that mean the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from instructgym.errors import EndpointUnreachable
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.llm_backends.by_role import ByRole
from instructgym.train.config import INSTRUCTOR, MAX_CONCURRENCY, ROLES, Config, LLMSettings
from instructgym.types import Completion, Request

if TYPE_CHECKING:
    from instructgym.llm_backends.endpoint_pool import EndpointPool
    from instructgym.llm_backends.limits import Limits
    from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend

__all__ = ["TransportMaker", "Transports", "instructor_models"]

_MADE_OF = {
    "simulated": (),
    "replay": ("replay_path",),
    "openai": ("urls", "api_key_env", "timeout_s", "send_seed"),
    "transformers": ("model", "device", "dtype", "batch_tokens", "max_batch", "trust_remote_code"),
}
"""The settings of which a backend is made; what a request says (model, temperature, ...) is not among them."""
_PROMPTED = "llm:"  # as in `policies`, which builds on what is built of this


class TransportMaker:
    """Makes the transports of a run, one for all settings that mean the same.

    `pools` are those of the HTTP endpoints, each with an adaptive limit of its own.
    """

    def __init__(self, run_seed: int, limits: Limits) -> None:
        self.pools: list[EndpointPool] = []
        self._endpoints: list[dict[str, OpenAICompatibleBackend]] = []
        self._made: dict[str, LLMBackend] = {}
        self._run_seed = run_seed
        self._limits = limits

    def of(self, settings: LLMSettings) -> LLMBackend:
        """The transport that `settings` describe."""
        same = json.dumps([settings.backend, *(getattr(settings, name) for name in _MADE_OF[settings.backend])])
        if same not in self._made:
            self._made[same] = self._make(settings)
        return self._made[same]

    async def check(self) -> Mapping[str, list[str]]:
        """Ask each HTTP endpoint once for its models; ``base_url -> names`` (empty: it does not list them).

        Of several endpoints for one role it is enough that one answers. Raises `EndpointUnreachable` if none does, and
        `AuthenticationFailed`.
        """
        found: dict[str, list[str]] = {}
        for endpoints in self._endpoints:
            absent = []
            for url, backend in endpoints.items():
                try:
                    found[url] = await backend.check()
                except EndpointUnreachable as error:
                    absent.append(error)
            if len(absent) == len(endpoints):
                raise absent[0]
        return found

    def _make(self, settings: LLMSettings) -> LLMBackend:
        if settings.backend == "openai":
            return self._make_pool(settings)
        if settings.backend == "transformers":
            from instructgym.llm_backends.local_transformers import TransformersBackend

            return TransformersBackend(
                settings.model,
                device=settings.device,
                dtype=settings.dtype,
                batch_tokens=settings.batch_tokens,
                max_batch=settings.max_batch,
                trust_remote_code=settings.trust_remote_code,
                run_seed=self._run_seed,
            )
        if settings.backend == "replay":
            from instructgym.llm_backends.replay import ReplayBackend

            return ReplayBackend(Path(settings.replay_path))
        from instructgym.llm_backends.simulated import SimulatedBackend

        return SimulatedBackend(run_seed=self._run_seed)

    def _make_pool(self, settings: LLMSettings) -> LLMBackend:
        from instructgym.llm_backends.endpoint_pool import EndpointPool
        from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend

        endpoints = {
            url: OpenAICompatibleBackend(
                url,
                api_key_env=settings.api_key_env,
                timeout_s=settings.timeout_s,
                send_seed=settings.send_seed,
                max_connections=self._limits.concurrency or MAX_CONCURRENCY,
                run_seed=self._run_seed,
            )
            for url in settings.urls
        }
        pool = EndpointPool(list(endpoints.values()), self._limits)
        self.pools.append(pool)
        self._endpoints.append(endpoints)
        return pool


class Transports(ByRole):
    """The transports of the main job's roles."""

    def __init__(self, config: Config, limits: Limits) -> None:
        maker = TransportMaker(config.run.seed, limits)
        by_role = {role: maker.of(config.llm.for_role(role)) for role in ROLES}
        models = instructor_models(config)
        if models:
            settings = config.llm.for_role(INSTRUCTOR)
            of_model = {model: maker.of(settings.model_copy(update={"model": model})) for model in models}
            distinct = list({id(each): each for each in of_model.values()}.values())
            by_role[INSTRUCTOR] = distinct[0] if len(distinct) == 1 else _ByModel(of_model)
        super().__init__(by_role)
        self.pools = maker.pools
        self.check = maker.check


class _ByModel:
    """Hands each request to the transport of its model, where one transport has one model."""

    def __init__(self, transports: Mapping[str, LLMBackend]) -> None:
        self._transports = dict(transports)
        self.name = "+".join(dict.fromkeys(transport.name for transport in transports.values()))
        self.instant = all(map(is_instant, transports.values()))

    async def complete(self, request: Request) -> Completion:
        return await self._transports[request.model].complete(request)

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


def instructor_models(config: Config) -> tuple[str, ...]:
    """The chat models that the config's policies ask: what follows ``llm:``, saved agents included."""
    names = [config.agent.name, config.evolve.policy, *config.evaluate.policies]
    names += [_saved_name(name) for name in names]
    models = [name.removeprefix(_PROMPTED) for name in names if name.startswith(_PROMPTED)]
    return tuple(dict.fromkeys(model for model in models if model))


def _saved_name(policy: str) -> str:
    """The registry's name of the agent that a folder holds; empty if it holds none."""
    try:
        return str(json.loads((Path(policy) / "agent.json").read_text("utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # whoever loads it says what is wrong with it
