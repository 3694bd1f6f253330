"""What a run works with, built from its config: backends, LLMs by role, encoder, reward, rules, dynamics, observer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.train.config import INSTRUCTOR, LLM_ROLES, ROLES, Config, LLMSettings
from instructgym.train.connection import Connection, limits_of, sampling_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from instructgym.envs.dynamics import Dynamics
    from instructgym.envs.elimination import EliminationRules
    from instructgym.envs.observations import Observer
    from instructgym.envs.operations import ActionSet
    from instructgym.llm_backends.tokenizing import Tokenizer
    from instructgym.rewards.base import Reward
    from instructgym.rewards.encoders.base import Encoder
    from instructgym.train.transports import Transports

__all__ = ["Runtime", "observation_of"]

_BYTES, _TOKENS = 2048, 512
"""How long observation 'tokens' is where the config does not say: about as much text in both."""


class Runtime(Connection):
    """Parts are built when they are first asked for. `connect` opens what talks to LLMs, `close` closes it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._transports: Transports | None = None
        self._recorded: dict[str, list[tuple[str, str]]] = {}
        self._observers: dict[tuple[str, str, int], Observer] = {}

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

    @property
    def observer(self) -> Observer:
        """What makes the run's own observations. Raises `ConfigError`."""
        return self._observer(None, None)

    def observer_for(self, policy: object) -> Observer:
        """What makes the observations that `policy` reads: its own kind, if it says one. Raises `ConfigError`."""
        return self._observer(getattr(policy, "observation", None), getattr(policy, "observation_tokenizer", None))

    def observer_before(self, name: str, kwargs: Mapping[str, Any]) -> Observer:
        """The same for an agent that is not made yet, by its name in the registry and its arguments."""
        return self._observer(*observation_of(name, kwargs))

    def observation_options(self, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those options of `EnvConfig` that make the observations of an agent of the registry."""
        mode, tokenizer, length = self._observation(*observation_of(name, kwargs))
        return {"observation": mode, "tokenizer": self._tokenizer(mode, tokenizer), "observation_length": length}

    def _observation(self, mode: str | None, tokenizer: str | None) -> tuple[str, str, int]:
        """Mode, tokenizer and length, by what an agent asks for and what the config says."""
        from instructgym.llm_backends.tokenizing import BYTES

        env = self.config.env
        named = tokenizer or env.tokenizer
        return mode or env.observation, named, env.observation_length or (_BYTES if named == BYTES else _TOKENS)

    def _tokenizer(self, mode: str, name: str) -> Tokenizer | None:
        from instructgym.llm_backends.tokenizing import open_tokenizer

        return open_tokenizer(name) if mode == "tokens" else None

    def _observer(self, mode: str | None, tokenizer: str | None) -> Observer:
        from instructgym.envs.observations import EMBEDDING_MODES, Observer

        wanted = self._observation(mode, tokenizer)
        if wanted not in self._observers:
            kind, named, length = wanted
            self._observers[wanted] = Observer(
                kind,
                self.action_set,
                self.config.env.horizon,
                encoder=self.encoder if kind in EMBEDDING_MODES else None,
                tokenizer=self._tokenizer(kind, named),
                length=length,
            )
        return self._observers[wanted]

    @cached_property
    def action_features(self) -> NDArray[np.float32]:
        """What is known of each operation, (A, E): the run's embedding of its name and description."""
        from instructgym.llm_backends.portal import acquire_portal

        portal = acquire_portal()
        try:
            texts = [f"{each.name.replace('_', ' ')}: {each.description}" for each in self.action_set.operations]
            return portal.call(self.encoder.encode, texts)
        finally:
            portal.release()

    def settings(self, role: str) -> LLMSettings:
        return self.config.llm.for_role(role)

    def model_name(self, role: str) -> str:
        """The model that a role asks for: the simulator's carries its version, a recording says its own.

        Raises `ConfigError` if a recording holds several models and the config names none, `RunFolderError` if there is
        no recording.
        """
        from instructgym.llm_backends.simulated import SIMULATOR_VERSION

        settings = self.settings(role)
        if settings.backend == "replay" and not settings.model:
            return self._recorded_model(role, settings.replay_path)
        return f"simulated-{SIMULATOR_VERSION}" if settings.backend == "simulated" else settings.model

    def _recorded_model(self, role: str, path: str) -> str:
        from instructgym.llm_backends.ledger_store import SqliteStore
        from instructgym.llm_backends.ledger_transfer import recording

        if path not in self._recorded:
            with recording(Path(path)) as file, contextlib.closing(SqliteStore(file, read_only=True)) as store:
                self._recorded[path] = sorted({(of, model) for of, _, model in store.tallies()})
        models = [model for of, model in self._recorded[path] if of == role]
        if len(models) > 1:
            raise ConfigError(
                f"the recording {path} holds answers of {', '.join(models)} for the {role}; "
                f"say which with llm.{role}.model"
            )
        return models[0] if models else ""

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
        from instructgym.plugins import nearest

        env = self.config.env
        if env.observation not in OBSERVATION_MODES:
            raise ConfigError(
                f"'env.observation' is '{env.observation}'; {nearest(env.observation, OBSERVATION_MODES)}"
            )
        for rule in env.elimination if env.elimination != "default" else ():
            if rule not in RULES:
                raise ConfigError(f"'env.elimination' holds '{rule}'; {nearest(rule, RULES)}")
        self.reward_needs(self.config.reward.spec)

    # --- connected ----------------------------------------------------------------------------------------------------
    def connect(
        self, ledger_path: Path | None, *, retry_failed: bool = False, transport: LLMBackend | None = None
    ) -> None:
        """Open the portal and the backend stack on the run's ledger; `transport` takes the place of the config's."""
        from instructgym.train.transports import Transports

        if transport is None:
            transport = self._transports = Transports(self.config, limits_of(self.config.limits))
        self.open(transport, self.config, ledger_path=ledger_path, roles=LLM_ROLES, retry_failed=retry_failed)

    def llm(self, role: str, stage: str) -> LLM:
        """The LLM of a role, its calls accounted to `stage`."""
        return self._llm(role, self.model_name(role), stage)

    def instructor(self, stage: str) -> Callable[[str], LLM]:
        """What gives the chat model of a name in the role of the instructor; only then it must be connected.

        It raises `ConfigError` for a name that says another model than the one that answers.
        """

        def of_model(model: str) -> LLM:
            simulated = self.model_name(INSTRUCTOR) if self.settings(INSTRUCTOR).backend == "simulated" else ""
            if simulated and model not in ("simulated", simulated):
                raise ConfigError(
                    f"policy 'llm:{model}' asks a model, and the backend of the instructor is 'simulated'; set "
                    "llm.instructor.backend (or llm.backend), or call the policy 'llm:simulated'."
                )
            return self._llm(INSTRUCTOR, simulated or model, stage)

        return of_model

    def _llm(self, role: str, model: str, stage: str) -> LLM:
        return self.llm_of(role, model, sampling_of(self.settings(role)), stage)

    def reward_for(self, stage: str) -> Reward:
        """The config's reward, new; its memory is empty."""
        return self.build_reward(self.config.reward.spec, stage, options=self.config.reward.kwargs)

    def build_reward(
        self, spec: str | Mapping[str, Any], stage: str, *, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Reward:
        """The reward that `spec` describes, made of this run's parts and definitions. Raises `ConfigError`."""
        from instructgym.rewards.building import make_reward

        return make_reward(
            spec,
            expert=self.llm("expert", stage),
            reviewer=self.llm("reviewer", stage),
            encoder=self.encoder,
            options=options,
            define=self.config.reward.define,
            changes_topic=[operation.name for operation in self.action_set.operations if operation.changes_topic],
        )

    def reward_needs(self, spec: str | Mapping[str, Any]) -> frozenset[str]:
        """Which parts a reward asks for: ``encoder``, ``expert``, ``reviewer``. Raises `ConfigError`."""
        from instructgym.rewards.building import requires

        return requires(spec, self.config.reward.define)

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

    def check_endpoints(self) -> Mapping[str, list[str]]:
        """Ask each HTTP endpoint once for its models; ``base_url -> names`` (empty: it does not list them).

        Raises `EndpointUnreachable` or `AuthenticationFailed`.
        """
        transports = self._transports
        return {} if transports is None else self.call(transports.check)

    def close(self) -> None:
        """Cancel what is in flight, commit what is queued, and give the portal back. Closing twice does nothing."""
        self._transports = None
        super().close()
        if "encoder" in self.__dict__:
            self.encoder.close()


def observation_of(name: str, kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Observation and tokenizer that an agent of the registry reads; None is the run's. Raises `ConfigError`."""
    from instructgym.agents.registry import agent_type

    reads = getattr(agent_type(name), "reads", None)
    return (None, None) if reads is None else reads(kwargs)
