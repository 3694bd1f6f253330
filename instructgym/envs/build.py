"""From an `EnvConfig` to what steps: what needs nothing opened at once, the rest at the first reset."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from instructgym.envs.dynamics import Dynamics, Eliminates, State
from instructgym.envs.elimination import EliminationRules
from instructgym.envs.loading import load_action_set
from instructgym.envs.observations import Observer
from instructgym.envs.operations import ActionSet
from instructgym.envs.rollout_log import RolloutLog
from instructgym.envs.seeds import as_instruction, load_seeds
from instructgym.envs.spec import REVIEWER_SAMPLING, EnvConfig
from instructgym.errors import ConfigError, SeedError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.llm_backends.by_role import ByRole
from instructgym.llm_backends.ledger import Ledger
from instructgym.llm_backends.portal import Portal, acquire_portal
from instructgym.llm_backends.stack import BackendStack, open_stack
from instructgym.plugins import nearest
from instructgym.rewards.base import Reward
from instructgym.rewards.building import make_reward, requires
from instructgym.rewards.composition import as_reward
from instructgym.rewards.encoders import open_encoder
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Instruction, Seed

__all__ = ["Blueprint", "Session"]

T = TypeVar("T")

STAGE = "env"
CHAIN_DRAWS = 2**31
RESET_OPTIONS = ("instruction", "input", "seed_id")

_encoders: dict[tuple[int, str], Encoder] = {}
_encoders_lock = threading.Lock()


class Blueprint:
    """Action set, seeds and observer of a config. Opens nothing.

    The one exception is an observation that holds embeddings of a model: its shape is the model's to say, so the model
    is loaded here, once a process.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        action_set = load_action_set(config.action_set)
        self.action_set: ActionSet = action_set.with_stop() if config.with_stop else action_set
        self.seeds: tuple[Seed, ...] = load_seeds(config.seeds)
        self._by_id = {seed.id: seed for seed in self.seeds}
        self.observer = Observer(
            config.observation,
            self.action_set,
            config.horizon,
            encoder=self.encoder() if config.embeds else None,
            tokenizer=config.tokenizer,
            length=config.observation_length,
        )

    def encoder(self) -> Encoder:
        """The config's encoder; one of a name is shared by all envs of the process."""
        given = self.config.encoder
        return given if isinstance(given, Encoder) else _shared_encoder(given)

    def start(self, dynamics: Dynamics, rng: np.random.Generator, options: Mapping[str, Any] | None = None) -> State:
        """Draw the first state of an episode: a seed, unless `options` bring one, and the chain's draw.

        Args:
            dynamics: what the state is for.
            rng: the row's own generator; two draws are taken from it, one where `options` say the seed.
            options: ``instruction`` (a text or an Instruction; with ``input``) or ``seed_id``.

        Raises:
            ConfigError: an option that there is not. SeedError: no such seed, or no text.
        """
        seed = self._asked_for(options or {})
        if seed is None:
            seed = self.seeds[int(rng.integers(len(self.seeds)))]
        return dynamics.start(seed, int(rng.integers(self.config.draws_per_seed or CHAIN_DRAWS)))

    def _asked_for(self, options: Mapping[str, Any]) -> Seed | None:
        for name in options:
            if name not in RESET_OPTIONS:
                raise ConfigError(f"unknown reset option '{name}'; {nearest(name, RESET_OPTIONS)}")
        if "instruction" in options:
            if "seed_id" in options:
                raise ConfigError("reset options 'instruction' and 'seed_id' exclude each other; pass one.")
            instruction = as_instruction(options["instruction"], "reset option 'instruction'")
            if "input" in options:
                instruction = Instruction(instruction.text, str(options["input"]))
            return Seed(id="user", instruction=instruction)
        if "input" in options:
            raise ConfigError("reset option 'input' has no 'instruction'; pass both.")
        if "seed_id" not in options:
            return None
        seed_id = str(options["seed_id"])
        if seed_id not in self._by_id:
            raise SeedError(f"there is no seed '{seed_id}' among the {len(self.seeds)} of this environment.")
        return self._by_id[seed_id]


class Session:
    """What an environment holds open: the process's portal and a backend stack. Bound to its process.

    Opening with backend ``openai`` asks the endpoint once (`EndpointUnreachable`, `AuthenticationFailed`), so that a
    wrong address is an error here and not a row of failed steps.
    """

    def __init__(self, blueprint: Blueprint, rows: int) -> None:
        self._process = os.getpid()
        self.portal: Portal = acquire_portal()
        self._stack: BackendStack | None = None
        self._undo: Callable[[], None] | None = None
        try:
            # A model loads here and not on the portal's loop, where it would hold up every other env's calls.
            encoder = blueprint.encoder() if _needs_encoder(blueprint.config) else None
            self.dynamics: Dynamics = self.portal.call(self._open, blueprint, encoder)
            self.rollout = RolloutLog(self.dynamics.reward, rows)
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Await ``function(*args)`` on the portal. Raises `UsageError` in another process than the session's."""
        return self.portal.call(function, *args)

    @property
    def usable(self) -> bool:
        """False in any process but the session's, and once the portal is closed."""
        return os.getpid() == self._process and not self.portal.closed

    def close(self) -> None:
        """Close the stack and give the portal back. In a forked child, where neither is ours, it does nothing."""
        if not self.usable:
            return
        if self._undo is not None:
            self._undo()
        try:
            if self._stack is not None:
                self.portal.call(self._stack.aclose)
        finally:
            self.portal.release()

    async def _open(self, blueprint: Blueprint, encoder: Encoder | None) -> Dynamics:
        config = blueprint.config
        expert, reviewer = await self._llms(config)
        changes_topic = [operation.name for operation in blueprint.action_set.operations if operation.changes_topic]
        reward: Reward
        if isinstance(config.reward, (str, Mapping)):
            reward = make_reward(
                config.reward_spec, expert=expert, reviewer=reviewer, encoder=encoder, changes_topic=changes_topic
            )
        else:
            reward = as_reward(config.reward)
        rules: Eliminates
        if config.rule_names is None:
            rules = cast(Eliminates, config.elimination)
        else:
            rules = EliminationRules(config.rule_names, encoder=encoder, reviewer=reviewer, changes_topic=changes_topic)
        return Dynamics(
            expert=expert,
            action_set=blueprint.action_set,
            reward=reward,
            elimination=rules,
            horizon=config.horizon,
            penalty=config.penalty,
        )

    async def _llms(self, config: EnvConfig) -> tuple[LLM, LLM]:
        """Expert and reviewer; whichever of them is not an LLM already shares one stack."""
        reviewer = config.expert if config.reviewer is None else config.reviewer
        transports: dict[str, LLMBackend] = {}
        for role, part in (("expert", config.expert), ("reviewer", reviewer)):
            if not isinstance(part, LLM):
                same = transports["expert"] if role == "reviewer" and part is config.expert and transports else None
                transports[role] = same or await _transport(part, config)
        backend: LLMBackend | None = None
        if transports:
            distinct = {id(transport) for transport in transports.values()}
            transport = next(iter(transports.values())) if len(distinct) == 1 else ByRole(transports)
            if isinstance(transport, Ledger):
                backend = transport
            else:
                path = None if config.ledger_path is None else Path(config.ledger_path)
                # A step that failed may be asked for again (`retry_rows`), and then it is asked.
                self._stack = open_stack(transport, ledger_path=path, run_seed=config.run_seed, retry_failed=True)
                self._undo = self.portal.at_close(self._stack.aclose)
                backend = self._stack.backend
        return _as_llm("expert", config.expert, backend, config), _as_llm("reviewer", reviewer, backend, config)


async def _transport(part: str | LLMBackend, config: EnvConfig) -> LLMBackend:
    if not isinstance(part, str):
        return part
    if part == "simulated":
        from instructgym.llm_backends.simulated import SimulatedBackend

        return SimulatedBackend(run_seed=config.run_seed)
    from instructgym.llm_backends.endpoint_pool import EndpointPool
    from instructgym.llm_backends.limits import Limits
    from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend

    endpoint = OpenAICompatibleBackend(config.base_url, api_key_env=config.api_key_env, run_seed=config.run_seed)
    try:
        await endpoint.check()
    except BaseException:
        await endpoint.aclose()
        raise
    return EndpointPool([endpoint], Limits(concurrency=config.concurrency))


def _as_llm(role: str, part: str | LLMBackend | LLM, backend: LLMBackend | None, config: EnvConfig) -> LLM:
    sampling = config.sampling if role == "expert" else REVIEWER_SAMPLING
    if isinstance(part, LLM):
        if part.role == role:
            return part
        return LLM(part.backend, role=role, model=part.model, sampling=sampling, stage=part.stage)
    assert backend is not None  # a part that is no LLM has a transport
    model = config.model or (part if isinstance(part, str) else part.name)
    return LLM(backend, role=role, model=model, sampling=sampling, stage=STAGE)


def _needs_encoder(config: EnvConfig) -> bool:
    spec = config.reward_spec
    return "off_topic" in (config.rule_names or ()) or (bool(spec) and "encoder" in requires(spec))


def _shared_encoder(name: str) -> Encoder:
    key = (os.getpid(), name)
    with _encoders_lock:
        if key not in _encoders:
            _encoders[key] = open_encoder(name)
        return _encoders[key]
