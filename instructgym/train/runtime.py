"""What a run works with, built from its config: backends, LLMs by role, encoder, reward, rules, dynamics, observer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from instructgym.errors import UsageError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.train.accounting import CountingBackend
from instructgym.train.config import Config, LLMSettings
from instructgym.types import Completion, Request, Sampling

if TYPE_CHECKING:
    from instructgym.envs.dynamics import Dynamics
    from instructgym.envs.elimination import EliminationRules
    from instructgym.envs.observations import Observer
    from instructgym.envs.operations import ActionSet
    from instructgym.llm_backends.portal import Portal
    from instructgym.llm_backends.stack import BackendStack
    from instructgym.rewards.base import Reward
    from instructgym.rewards.encoder_base import Encoder

__all__ = ["ROLES", "Runtime"]

ROLES = ("expert", "reviewer")

T = TypeVar("T")


class Runtime:
    """Parts are built when they are first asked for. `connect` opens what talks to LLMs, `close` closes it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._portal: Portal | None = None
        self._stack: BackendStack | None = None
        self._counting: CountingBackend | None = None

    # --- before any call ----------------------------------------------------------------------------------------------
    @cached_property
    def action_set(self) -> ActionSet:
        """Raises `ActionSetError` or `ConfigError`."""
        from instructgym.envs.loading import load_action_set

        action_set = load_action_set(self.config.env.action_set)
        return action_set.with_stop() if self.config.env.with_stop else action_set

    @cached_property
    def encoder(self) -> Encoder:
        from instructgym.rewards.encoders import open_encoder

        return open_encoder(self.config.env.encoder)

    @cached_property
    def observer(self) -> Observer:
        from instructgym.envs.observations import Observer

        env = self.config.env
        return Observer(env.observation, self.action_set, env.horizon, encoder=self.encoder)

    def settings(self, role: str) -> LLMSettings:
        return self.config.llm.for_role(role)

    def model_name(self, role: str) -> str:
        """The model that a role asks for; the simulator's carries its version."""
        from instructgym.llm_backends.simulated import SIMULATOR_VERSION

        settings = self.settings(role)
        return f"simulated-{SIMULATOR_VERSION}" if settings.backend == "simulated" else settings.model

    def models(self, policy: str) -> dict[str, str]:
        """Who chooses, writes and reviews, by name."""
        names = {role: self.model_name(role) for role in ROLES}
        return {"instructor": self.config.agent.name if policy == "trained" else policy, **names}

    @property
    def simulated_roles(self) -> tuple[str, ...]:
        """The roles whose text is simulated, be it in this process or behind an endpoint that says so."""
        return tuple(role for role in ROLES if self.model_name(role).startswith("simulated"))

    def check_names(self) -> None:
        """Raise `ConfigError` or `ActionSetError` for names that nothing answers to, before any work is done."""
        from instructgym.envs.elimination import RULES
        from instructgym.envs.observations import OBSERVATION_MODES
        from instructgym.errors import ConfigError
        from instructgym.plugins import nearest
        from instructgym.rewards.registry import requires

        env = self.config.env
        if env.observation not in OBSERVATION_MODES:
            raise ConfigError(
                f"'env.observation' is '{env.observation}'; {nearest(env.observation, OBSERVATION_MODES)}"
            )
        for rule in env.elimination if env.elimination != "default" else ():
            if rule not in RULES:
                raise ConfigError(f"'env.elimination' holds '{rule}'; {nearest(rule, RULES)}")
        requires(self.config.reward.spec)

    # --- connected ----------------------------------------------------------------------------------------------------
    def connect(self, ledger_path: Path | None, *, retry_failed: bool = False) -> None:
        """Open the portal and the backend stack on the run's ledger."""
        from instructgym.llm_backends.budget import Budget
        from instructgym.llm_backends.limits import Limits
        from instructgym.llm_backends.portal import acquire_portal
        from instructgym.llm_backends.pricing import Price
        from instructgym.llm_backends.stack import open_stack

        config = self.config
        budget = config.budget
        self._stack = open_stack(
            self._transport,
            ledger_path=ledger_path,
            run_seed=config.run.seed,
            max_attempts=config.retry.max_attempts,
            deadline_s=config.retry.deadline_s,
            budget=Budget(
                max_calls=budget.max_calls,
                max_tokens=budget.max_tokens,
                max_cost_usd=budget.max_cost_usd,
                prices={model: Price(price.prompt, price.completion) for model, price in budget.prices.items()},
            ),
            limits=Limits(
                concurrency=config.limits.concurrency,
                requests_per_minute=config.limits.requests_per_minute,
                tokens_per_minute=config.limits.tokens_per_minute,
            ),
            fsync=config.ledger.fsync,
            retry_failed=retry_failed,
        )
        self._counting = CountingBackend(self._stack.backend)
        self._portal = acquire_portal()

    @property
    def connected(self) -> bool:
        return self._portal is not None

    @property
    def counting(self) -> CountingBackend:
        if self._counting is None:
            raise UsageError("the runtime is not connected; call connect() before asking an LLM")
        return self._counting

    def traffic(self, stage: str) -> tuple[int, int]:
        """How many calls `stage` has made in this process, and how many of them the ledger answered."""
        if self._counting is None or self._stack is None:
            return 0, 0
        calls = sum(row["calls"] for row in self._counting.rows(stage))
        return calls, sum(self._stack.ledger.hits(role, stage) for role in ROLES)

    @property
    def has_answers(self) -> bool:
        """True if the ledger holds an answer or a final failure: something that was paid for or decided."""
        if self._stack is None:
            return False
        return any(stats.calls or stats.failed for stats in self._stack.stats().values())

    @cached_property
    def _transport(self) -> LLMBackend:
        by_settings: dict[tuple[Any, ...], LLMBackend] = {}
        by_role: dict[str, LLMBackend] = {}
        for role in ROLES:
            settings = self.settings(role)
            endpoint = (
                settings.backend,
                settings.base_url,
                settings.api_key_env,
                settings.timeout_s,
                settings.send_seed,
                settings.replay_path,
            )
            if endpoint not in by_settings:
                by_settings[endpoint] = _transport(settings, self.config)
            by_role[role] = by_settings[endpoint]
        return next(iter(by_settings.values())) if len(by_settings) == 1 else ByRole(by_role)

    def llm(self, role: str, stage: str) -> LLM:
        """The LLM of a role, its calls accounted to `stage`."""
        settings = self.settings(role)
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens)
        return LLM(self.counting, role, self.model_name(role), sampling, stage)

    def reward_for(self, stage: str) -> Reward:
        """A new reward; its memory is empty."""
        from instructgym.rewards.registry import make_reward

        config = self.config
        return make_reward(
            config.reward.spec,
            reviewer=self.llm("reviewer", stage),
            encoder=self.encoder,
            options=config.reward.kwargs,
            changes_topic=[operation.name for operation in self.action_set.operations if operation.changes_topic],
        )

    def rules_for(self, stage: str) -> EliminationRules:
        from instructgym.envs.elimination import DEFAULT_RULES, EliminationRules

        names = self.config.env.elimination
        return EliminationRules(
            DEFAULT_RULES if names == "default" else names,
            encoder=self.encoder,
            reviewer=self.llm("reviewer", stage),
            changes_topic=self.action_set,
        )

    def dynamics(self, stage: str, reward: Reward) -> Dynamics:
        """The MDP, its calls accounted to `stage`."""
        from instructgym.envs.dynamics import Dynamics

        return Dynamics(
            expert=self.llm("expert", stage),
            action_set=self.action_set,
            reward=reward,
            elimination=self.rules_for(stage),
            horizon=self.config.env.horizon,
            penalty=self.config.env.penalty,
        )

    def accounting(self, stage: str) -> list[dict[str, Any]]:
        """What `stage` has asked so far, a row a role."""
        return self.counting.rows(stage)

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await ``function()`` on the portal's loop and return its result."""
        if self._portal is None:
            raise UsageError("the runtime is not connected; call connect() before asking an LLM")
        return self._portal.call(function)

    def check_endpoints(self) -> Mapping[str, list[str]]:
        """Ask each HTTP endpoint once for its models; ``base_url -> names`` (empty: it does not list them).

        Raises `EndpointUnreachable` or `AuthenticationFailed`.
        """
        found: dict[str, list[str]] = {}
        for role in ROLES:
            settings = self.settings(role)
            backend = self._transport.of(role) if isinstance(self._transport, ByRole) else self._transport
            check = getattr(backend, "check", None)
            if check is not None and settings.base_url not in found:
                found[settings.base_url] = self.call(check)
        return found

    def close(self) -> None:
        """Cancel what is in flight, commit what is queued, and give the portal back. Closing twice does nothing."""
        portal, stack = self._portal, self._stack
        self._portal = self._stack = self._counting = None
        if portal is not None:
            try:
                if stack is not None:
                    portal.call(stack.aclose)
            finally:
                portal.release()
        if "encoder" in self.__dict__:
            self.encoder.close()


class ByRole:
    """A transport for each role, below one ledger, one budget and one set of limits."""

    def __init__(self, transports: Mapping[str, LLMBackend]) -> None:
        self._transports = dict(transports)
        self.name = "+".join(dict.fromkeys(transport.name for transport in transports.values()))

    def of(self, role: str) -> LLMBackend:
        return self._transports[role]

    async def complete(self, request: Request) -> Completion:
        return await self._transports[request.role].complete(request)

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


def _transport(settings: LLMSettings, config: Config) -> LLMBackend:
    if settings.backend == "simulated":
        from instructgym.llm_backends.simulated import SimulatedBackend

        return SimulatedBackend(run_seed=config.run.seed)
    if settings.backend == "replay":
        from instructgym.llm_backends.replay import ReplayBackend

        return ReplayBackend(Path(settings.replay_path))
    from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend

    return OpenAICompatibleBackend(
        settings.base_url,
        api_key_env=settings.api_key_env,
        timeout_s=settings.timeout_s,
        send_seed=settings.send_seed,
        max_connections=max(1000, config.limits.concurrency),
        run_seed=config.run.seed,
    )
