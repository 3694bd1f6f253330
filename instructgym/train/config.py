"""The config of a run: frozen, validated when built, written back as TOML.

`load_config("quickstart")` reads a named config of the package, `load_config("my.toml")` a file;
``section.key=value`` overrides are applied before validation. Unknown keys are errors that name the nearest one.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from instructgym.errors import ConfigError
from instructgym.train.config_faults import fault_lines, unknown_keys

__all__ = [
    "INSTRUCTOR",
    "LLM_ROLES",
    "MAX_CONCURRENCY",
    "ROLES",
    "AgentSection",
    "BudgetSection",
    "Config",
    "EnvSection",
    "EvaluateSection",
    "EvolveSection",
    "ExportSection",
    "FilterSection",
    "InstructorOverride",
    "LLMOverride",
    "LLMSection",
    "LLMSettings",
    "LedgerSection",
    "LimitsSection",
    "PriceSection",
    "RespondSection",
    "RetrySection",
    "ReviewerOverride",
    "RewardSection",
    "RoleBudgetSection",
    "RunSection",
    "Section",
    "SeedsSection",
    "TrainSection",
    "advice",
    "build",
    "build_config",
    "flatten",
]

logger = logging.getLogger(__name__)

MAX_CONCURRENCY = 1000
"""Calls in flight where no number is given; what an endpoint takes of them, its adaptive limit finds out."""
ROLES = ("expert", "reviewer")
"""Who is asked in every run."""
INSTRUCTOR = "instructor"
LLM_ROLES = (*ROLES, INSTRUCTOR)
"""Who may be asked: the instructor only where a policy is ``llm:MODEL``."""

FILTER_RULES = ("refused", "stop_words", "leaked", "cut", "same_as_instruction", "duplicate")
EXPORT_FORMATS = ("alpaca", "messages", "parquet")


class Section(BaseModel):
    """A part of a config: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


C = TypeVar("C", bound=Section)


class RunSection(Section):
    """`seed` decides every draw of the run; `name` is for people."""

    name: str = "run"
    seed: int = Field(default=0, ge=0)


class SeedsSection(Section):
    """Where chains start. `holdout` is the share of seeds that training never sees."""

    path: str = Field(default="default", min_length=1, description="'default' (the package's own seeds) or a file")
    format: str = "auto"
    instruction_field: str | None = None
    holdout: float = Field(default=0.25, ge=0.0, lt=1.0)
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    license: str = Field(default="unknown", min_length=1, description="of the user's seeds; stands in the dataset card")


BackendName = Literal["simulated", "openai", "transformers", "replay"]


class LLMOverride(Section):
    """What one role has of its own; None takes the value of section `llm`."""

    backend: BackendName | None = None
    base_url: str | None = Field(default=None, min_length=1)
    base_urls: tuple[str, ...] | None = None
    model: str | None = None
    api_key_env: str | None = None
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: tuple[str, ...] | None = None
    extra: dict[str, Any] | None = None
    timeout_s: float | None = Field(default=None, gt=0.0)
    send_seed: bool | None = None
    replay_path: str | None = None
    device: str | None = Field(default=None, min_length=1)
    dtype: str | None = Field(default=None, min_length=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    max_batch: int | None = Field(default=None, ge=1)
    trust_remote_code: bool | None = None


class ReviewerOverride(LLMOverride):
    """The reviewer gives a verdict, not prose: greedy and short unless the user says otherwise."""

    temperature: float | None = Field(default=0.0, ge=0.0)
    top_p: float | None = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=256, ge=1)


class InstructorOverride(LLMOverride):
    """The chat model of a policy ``llm:MODEL``: it may think, and answers with a name."""

    max_tokens: int | None = Field(default=512, ge=1)

    @field_validator("model")
    @classmethod
    def _the_policy_names_it(cls, model: str | None) -> str | None:
        if model is not None:
            raise ValueError("the instructor's model is what its policy's name says: llm:MODEL")
        return model


class LLMSettings(Section):
    """One role's settings, every override resolved."""

    backend: BackendName = "simulated"
    base_url: str = Field(default="https://api.openai.com/v1", min_length=1)
    base_urls: tuple[str, ...] = Field(default=(), description="several endpoints that serve the model; else base_url")
    model: str = Field(default="", description="its name at the endpoint; a name or a folder for 'transformers'")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", min_length=1, description="name of the variable that holds the key"
    )
    temperature: float = Field(default=0.7, ge=0.0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    max_tokens: int = Field(default=1024, ge=1)
    stop: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict, description="further fields of the request's body")
    timeout_s: float = Field(default=120.0, gt=0.0)
    send_seed: bool = True
    replay_path: str = Field(default="", description="of backend 'replay': a run's folder, its ledger, or an export")
    device: str = Field(default="auto", min_length=1, description="of backend 'transformers': cpu, cuda, cuda:1, ...")
    dtype: str = Field(default="auto", min_length=1, description="of backend 'transformers': float32, bfloat16, ...")
    batch_tokens: int = Field(default=16_384, ge=1, description="of backend 'transformers': tokens a batch")
    max_batch: int = Field(default=64, ge=1, description="of backend 'transformers': answers a batch")
    trust_remote_code: bool = False

    @property
    def urls(self) -> tuple[str, ...]:
        """Where backend 'openai' asks."""
        return tuple(dict.fromkeys(url.rstrip("/") for url in self.base_urls or (self.base_url,)))


class LLMSection(LLMSettings):
    """Who answers; `llm.expert`, `llm.reviewer` and `llm.instructor` override single values for that role."""

    expert: LLMOverride = LLMOverride()
    reviewer: ReviewerOverride = ReviewerOverride()
    instructor: InstructorOverride = InstructorOverride()

    def for_role(self, role: str) -> LLMSettings:
        """The settings of a role (one of `LLM_ROLES`; any other has none of its own)."""
        common = {name: getattr(self, name) for name in LLMSettings.model_fields}
        own = getattr(self, role) if role in LLM_ROLES else LLMOverride()
        return LLMSettings(**{**common, **own.model_dump(exclude_none=True)})

    @field_validator("extra")
    @classmethod
    def _nothing_that_has_its_own_place(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in ("n", "stream"):
            if name in extra:
                raise ValueError(f"'{name}' is no further field here: a call asks for one answer, and reads it whole")
        return extra

    @model_validator(mode="after")
    def _each_role_is_whole(self) -> LLMSection:
        for role in LLM_ROLES:
            settings = self.for_role(role)
            if settings.backend == "openai":
                _check_urls(settings)
            if role == INSTRUCTOR:
                continue  # its model is its policy's, and there may be none
            if settings.backend in ("openai", "transformers") and not settings.model:
                raise ValueError(
                    f"backend '{settings.backend}' has no model for the {role}; set llm.model (or llm.{role}.model)"
                )
            if settings.backend == "replay" and not settings.replay_path:
                raise ValueError(
                    f"backend 'replay' has no recording for the {role}; set llm.replay_path to a run's folder, its "
                    "ledger.sqlite, or what `ledger export` wrote"
                )
        return self


def _check_urls(settings: LLMSettings) -> None:
    """Here and not when they are first asked: a config is written into its run's folder, and must hold no password."""
    from instructgym.llm_backends.openai_compatible import check_url

    for url in settings.urls:
        try:
            check_url(url, settings.api_key_env)
        except ConfigError as error:
            raise ValueError(str(error)) from None


class LimitsSection(Section):
    """How fast calls go out; None is no limit.

    `adaptive`: each endpoint's limit finds itself, below `concurrency` calls in flight where that is given.
    """

    concurrency: int | None = Field(default=None, ge=1)
    adaptive: bool = True
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)

    @property
    def width(self) -> int:
        """How many chains go on at the same time: one for each call that may be in flight."""
        return self.concurrency or MAX_CONCURRENCY


class PriceSection(Section):
    """US dollars for a million tokens."""

    prompt: float = Field(ge=0.0)
    completion: float = Field(ge=0.0)


class RoleBudgetSection(Section):
    """What one role may spend within the run's budget."""

    max_calls: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    max_cost_usd: float | None = Field(default=None, ge=0.0)


class BudgetSection(RoleBudgetSection):
    """Where a run stops (exit code 3, can go on). None is no bound; `prices` by model, for `max_cost_usd`."""

    expert: RoleBudgetSection = RoleBudgetSection()
    reviewer: RoleBudgetSection = RoleBudgetSection()
    instructor: RoleBudgetSection = RoleBudgetSection()
    prices: dict[str, PriceSection] = Field(default_factory=dict)


class RetrySection(Section):
    """`max_attempts` a call; `deadline_s` covers a call's attempts and the waits between them."""

    max_attempts: int = Field(default=5, ge=1)
    deadline_s: float | None = Field(default=600.0, gt=0.0)
    backoff_s: float = Field(default=0.5, ge=0.0, description="the longest first wait; it doubles up to backoff_cap_s")
    backoff_cap_s: float = Field(default=30.0, ge=0.0)


class LedgerSection(Section):
    """`fsync` makes each commit durable against power loss; without it, against the death of the process."""

    fsync: bool = False


class EnvSection(Section):
    """The task. `elimination` is the rules in order, 'default' for the package's choice.

    `tokenizer` is of observation 'tokens'. An agent that reads an observation of its own gets that one instead.
    """

    action_set: str = Field(default="evol_instruct", min_length=1)
    with_stop: bool = False
    observation: str = Field(default="flat", min_length=1)
    tokenizer: str = Field(default="bytes", min_length=1, description="'bytes', or a name or folder of transformers")
    observation_length: int | None = Field(
        default=None, ge=1, description="of observation 'tokens'; none: 512 tokens, or 2048 bytes"
    )
    horizon: int = Field(default=4, ge=1)
    elimination: Literal["default"] | tuple[str, ...] = "default"
    penalty: float = Field(default=0.1, ge=0.0, description="what an eliminated rewrite costs")
    encoder: str = Field(default="auto", min_length=1)
    draws_per_seed: int | None = Field(default=None, ge=1)


class RewardSection(Section):
    """A weighted sum of named rewards. `gate`: an invalid rewrite earns nothing whatever the terms say.

    `define` gives names to rewards of the user's own making, each a table with ``type`` and options; `terms` and `gate`
    speak of them like of any other.
    """

    terms: dict[str, float] = Field(default_factory=lambda: {"reviewer_equality": 1.0, "novelty": 0.15})
    kwargs: dict[str, dict[str, Any]] = Field(default_factory=dict, description="arguments of single terms, by name")
    gate: bool | str | dict[str, float] = Field(
        default=True, description="true, the name of another reward, or {name = threshold}"
    )
    define: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description='rewards by names of your own, e.g. {type = "clip", reward = "novelty"}'
    )

    @property
    def spec(self) -> dict[str, Any]:
        """What `make_reward` takes."""
        return {**self.terms, "gate": self.gate}

    @model_validator(mode="after")
    def _something_counts(self) -> RewardSection:
        if not any(weight != 0 for weight in self.terms.values()):
            raise ValueError("no term has a weight other than 0; name at least one, e.g. reward.terms.novelty=1.0")
        gate = {True: ["validity"], False: []}[self.gate] if isinstance(self.gate, bool) else self.gate
        known = {*self.terms, *([gate] if isinstance(gate, str) else gate)}
        strangers = sorted(set(self.kwargs) - known)
        if strangers:
            raise ValueError(f"kwargs are given for {strangers}, but the reward is made of {sorted(known)}")
        return self

    @field_validator("terms", mode="before")
    @classmethod
    def _terms_are_weights(cls, terms: Any) -> Any:
        for name, weight in terms.items() if isinstance(terms, Mapping) else ():
            if isinstance(weight, Mapping):
                raise ValueError(
                    f"'{name}' is {dict(weight)}; expected a weight. Options stand in reward.kwargs, rewards that are "
                    "made of others in reward.define"
                )
        return terms

    @field_validator("gate", mode="before")
    @classmethod
    def _gate_is_one(cls, gate: Any) -> Any:
        threshold = next(iter(gate.values())) if isinstance(gate, Mapping) and len(gate) == 1 else None
        is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and math.isfinite(threshold)
        if not isinstance(gate, (bool, str)) and not is_number:
            raise ValueError(f"got {gate!r}; expected true, false, a reward's name or {{name = threshold}}")
        return gate

    @field_validator("define")
    @classmethod
    def _definitions_have_types(cls, define: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        from instructgym.rewards.building import check_definitions

        try:
            check_definitions(define)
        except ConfigError as error:
            raise ValueError(str(error).removesuffix(".")) from None
        return define


class AgentSection(Section):
    """The instructor by name; `kwargs` go to its constructor."""

    name: str = Field(default="ppo", min_length=1)
    kwargs: dict[str, Any] = Field(default_factory=dict)


class TrainSection(Section):
    """How long the instructor learns: `steps` of the environment, or `calls` to the expert, whichever comes first.

    A step is a call, but for `stop` and illegal choices, which ask nobody. `calls` is never exceeded. With `logs`, the
    folders of runs that evolved, it learns from their chains instead, and asks nobody.
    """

    steps: int = Field(default=20_000, ge=0)
    calls: int | None = Field(default=None, ge=1)
    num_envs: int = Field(default=16, ge=1)
    logs: tuple[str, ...] = Field(default=(), description="folders of runs to learn from instead")


class EvaluateSection(Section):
    """Policies compared on held-out seeds; 'fixed' stands for every fixed operation."""

    policies: tuple[str, ...] = ("trained", "random", "round_robin", "fixed")
    seeds: int = Field(default=64, ge=1, description="at most so many held-out seeds")
    draws: int = Field(default=1, ge=1, description="chains a seed and policy")
    bootstrap: int = Field(default=2000, ge=100, description="resamples for the 95% intervals")
    reward_memory: Literal["trained", "empty"] = Field(
        default="trained", description="the memory of a reward that has one: as training left it, or none"
    )
    lineage: bool = Field(default=False, description="write every transition to stages/evaluation_lineage.jsonl")


class EvolveSection(Section):
    """`policy`: trained, random, round_robin, fixed:OPERATION, or a folder with a saved agent."""

    policy: str = Field(default="trained", min_length=1)
    chains_per_seed: int = Field(default=1, ge=1)
    emit: Literal["final", "all"] = "final"
    deterministic: bool = False


class RespondSection(Section):
    """The sampling of answers; None takes the expert's."""

    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=1)


class FilterSection(Section):
    rules: tuple[Literal["refused", "stop_words", "leaked", "cut", "same_as_instruction", "duplicate"], ...] = (
        FILTER_RULES  # type: ignore[assignment]  # the tuple of all of them
    )


class ExportSection(Section):
    formats: tuple[Literal["alpaca", "messages", "parquet"], ...] = EXPORT_FORMATS  # type: ignore[assignment]


class Config(Section):
    """A whole run. Build it with `load_config`, or by keyword in code."""

    run: RunSection = RunSection()
    seeds: SeedsSection = SeedsSection()
    llm: LLMSection = LLMSection()
    limits: LimitsSection = LimitsSection()
    budget: BudgetSection = BudgetSection()
    retry: RetrySection = RetrySection()
    ledger: LedgerSection = LedgerSection()
    env: EnvSection = EnvSection()
    reward: RewardSection = RewardSection()
    agent: AgentSection = AgentSection()
    agents: dict[str, dict[str, Any]] | None = Field(
        default=None, description="arguments of policies by name, where several are compared"
    )
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    evolve: EvolveSection = EvolveSection()
    respond: RespondSection = RespondSection()
    filter: FilterSection = FilterSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _say_what_is_odd(self) -> Config:
        for text in advice(self):
            logger.warning(text)
        return self


def advice(config: Config) -> tuple[str, ...]:
    """What is allowed, but hardly meant; logged as warnings when a config is built."""
    found = []
    if "no_gain" in config.env.elimination and config.reward.terms.get("reviewer_equality"):
        found.append(
            "env.elimination holds 'no_gain' and reward.terms 'reviewer_equality': the reviewer eliminates every "
            "rewrite that the reward would score 0, so the reward of the others is constant; drop one of the two."
        )
    settings = [config.llm.for_role(role) for role in ROLES]
    if all(own.backend in ("openai", "transformers") for own in settings):
        strangers = sorted(set(config.budget.prices) - {own.model for own in settings})
        found += [f"budget.prices holds a price of '{model}', which no role asks." for model in strangers]
    if config.seeds.holdout == 0.0 and config.evaluate.policies:
        found.append("seeds.holdout is 0: the policies are compared on seeds that the instructor was trained on.")
    return tuple(found)


def build_config(data: Mapping[str, Any], source: str = "config") -> Config:
    """Validate plain values. Raises `ConfigError` with every fault, one a line."""
    return build(Config, data, source)


def build(kind: type[C], data: Mapping[str, Any], source: str) -> C:
    """The config of a kind from plain values. Raises `ConfigError` with every fault, one a line."""
    faults = unknown_keys(kind, data)
    if not faults:
        try:
            return kind.model_validate(dict(data))
        except ValidationError as error:
            faults = fault_lines(error)
    raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def flatten(config: Section) -> dict[str, Any]:
    """Every value under its dotted key, in the order of the sections; None stands for 'not set'."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for name, inner in value.items() for k, v in walk(f"{prefix}.{name}", inner).items()}
        return {prefix: value}

    data = json.loads(config.model_dump_json())
    return {key: value for section, inner in data.items() for key, value in walk(section, inner).items()}
