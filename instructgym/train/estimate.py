"""What a run will ask for, before its first call: the dry run.

A few chains are walked with a random policy on the simulated backend, by the same code and the same prompts as the run
itself, so whatever reward, rules and operations a config names are counted and not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from instructgym.agents.base import Agent
from instructgym.llm_backends.answering import ANSWER_VERSION, answer_messages
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.pricing import Price, price_of, tokens_at_most
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.train.chains import Chain, ChainJob, run_chains
from instructgym.train.config import INSTRUCTOR, LLM_ROLES, BudgetSection, Config, LimitsSection
from instructgym.train.connection import budget_of
from instructgym.train.policies import PROMPTED, build_agent, policy_names
from instructgym.train.respond import answer_sampling
from instructgym.train.runtime import Runtime
from instructgym.train.stage import SeedSplit
from instructgym.train.transports import instructor_models
from instructgym.types import Completion, Request

__all__ = ["Estimate", "EstimateRow", "estimate", "over_budget"]

_ASKING = ("train", "evaluate", "evolve", "respond")
_SAMPLED_SEEDS = 48


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """What a stage will ask one role: `calls` if nothing is asked twice, attempts after failures not counted.

    Tokens are those of the prompts, and of answers as long as the simulated backend's; `tokens_at_most` is what a
    budget reserves for them. Costs are in US dollars, None where nobody said the model's price.
    """

    stage: str
    role: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    tokens_at_most: int
    cost_usd: float | None
    cost_usd_at_most: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A row for each stage and role that is asked. `sampled` chains stand behind it."""

    rows: tuple[EstimateRow, ...]
    sampled: int

    @property
    def calls(self) -> int:
        return sum(row.calls for row in self.rows)

    @property
    def tokens(self) -> int:
        return sum(row.prompt_tokens + row.completion_tokens for row in self.rows)

    @property
    def cost_usd(self) -> float | None:
        """None unless the price of every model is known."""
        costs = [row.cost_usd for row in self.rows]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


@dataclass(slots=True)
class _Asked:
    """Sums over the calls to one role."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_at_most: int = 0
    completion_at_most: int = 0

    def times(self, factor: float) -> _Asked:
        return _Asked(*(round(getattr(self, name) * factor) for name in self.__slots__))


@dataclass
class _Watched:
    """Passes requests on to `inner` and sums up, by stage and role, what they would cost."""

    inner: LLMBackend
    name: str = "simulated"
    asked: dict[tuple[str, str], _Asked] = field(default_factory=dict)

    async def complete(self, request: Request) -> Completion:
        completion = await self.inner.complete(request)
        sums = self.asked.setdefault((request.stage, request.role), _Asked())
        bound = tokens_at_most(request)
        sums.calls += 1
        if completion.usage is not None:
            sums.prompt_tokens += completion.usage.prompt_tokens
            sums.completion_tokens += completion.usage.completion_tokens
        sums.prompt_at_most += bound.prompt
        sums.completion_at_most += bound.completion or 0
        return completion

    async def aclose(self) -> None:
        await self.inner.aclose()


def estimate(config: Config, seeds: SeedSplit, stages: Sequence[str]) -> Estimate:
    """What `stages` of the run will ask, without asking. Takes a second or two; nothing is written.

    Raises `ConfigError` and the like for what the run itself would refuse.
    """
    watched = _Watched(SimulatedBackend(run_seed=config.run.seed))
    unhurried = {"budget": BudgetSection(prices=config.budget.prices), "limits": LimitsSection()}
    runtime = Runtime(config.model_copy(update=unhurried))
    try:
        runtime.connect(None, transport=watched)
        chains = _walk(config, seeds, runtime)
        _answer(config, chains, runtime)
    finally:
        runtime.close()
    transitions = max(1, sum(len(chain.steps) for chain in chains))
    scale = {
        "train": _trained(config) / transitions,
        "evaluate": _evaluated(config, seeds, runtime) / len(chains),
        "evolve": len(seeds.all) * config.evolve.chains_per_seed / len(chains),
        "respond": len(seeds.all) * config.evolve.chains_per_seed / len(chains),
    }
    chosen = {
        "evaluate": scale["evaluate"] * _prompted_share(policy_names(config.evaluate.policies, runtime.action_set)),
        "evolve": scale["evolve"] * _prompted_share([config.evolve.policy]),
    }
    rows = []
    for stage in (stage for stage in _ASKING if stage in stages):
        sampled_as = "respond" if stage == "respond" else "walk"
        for (of_stage, role), asked in sorted(watched.asked.items()):
            if of_stage == sampled_as:
                factor = chosen.get(stage, 0.0) if role == INSTRUCTOR else scale[stage]
                rows.append(_row(stage, role, asked.times(factor), config, runtime))
    return Estimate(tuple(row for row in rows if row.calls), len(chains))


def _walk(config: Config, seeds: SeedSplit, runtime: Runtime) -> list[Chain]:
    """A chain from each of a few seeds, evenly spread over their file."""
    policy = _walker(config, runtime)
    stride = max(1, len(seeds.all) // _SAMPLED_SEEDS)
    chosen = seeds.all[::stride][:_SAMPLED_SEEDS]
    jobs = [ChainJob(index, seed, draw=index, policy=policy) for index, seed in enumerate(chosen)]
    dynamics = runtime.dynamics("walk", runtime.reward_for("walk"))
    return runtime.call(
        lambda: run_chains(
            jobs, dynamics=dynamics, observer=runtime.observer_for, run_seed=config.run.seed, width=len(jobs)
        )
    )


def _walker(config: Config, runtime: Runtime) -> Agent:
    """A random policy, or the chat model that chooses in this run: the simulated backend answers for it."""
    from instructgym.agents.baselines import RandomAgent

    models = instructor_models(config)
    return build_agent(f"{PROMPTED}{models[0]}", runtime, {}, config.run.seed, "walk") if models else RandomAgent()


def _prompted_share(policies: Sequence[str]) -> float:
    """The share of `policies` that ask a chat model at every step. Saved agents that do are not counted."""
    return sum(name.startswith(PROMPTED) for name in policies) / max(1, len(policies))


def _answer(config: Config, chains: Sequence[Chain], runtime: Runtime) -> None:
    """Ask for the answers to what the chains emit."""
    expert = runtime.llm("expert", "respond")
    sampling = answer_sampling(config, expert.sampling)
    emitted = [
        step.transition.child
        for chain in chains
        for step in (chain.accepted if config.evolve.emit == "all" else chain.accepted[-1:])
        if step.transition.child is not None
    ]

    async def ask_all() -> None:
        for number, instruction in enumerate(emitted):
            await expert.ask(
                answer_messages(instruction), prompt_version=ANSWER_VERSION, sample=(number, 0), sampling=sampling
            )

    runtime.call(ask_all)


def _trained(config: Config) -> int:
    return 0 if config.train.logs else min(config.train.steps, config.train.calls or config.train.steps)


def _evaluated(config: Config, seeds: SeedSplit, runtime: Runtime) -> int:
    """The chains of stage `evaluate`."""
    policies = policy_names(config.evaluate.policies, runtime.action_set)
    return len(policies) * len(seeds.for_evaluation[: config.evaluate.seeds]) * config.evaluate.draws


def _row(stage: str, role: str, asked: _Asked, config: Config, runtime: Runtime) -> EstimateRow:
    model = ", ".join(instructor_models(config)) if role == INSTRUCTOR else runtime.model_name(role)
    price = price_of(model, budget_of(config.budget, LLM_ROLES).prices)
    if runtime.settings(role).backend in ("transformers", "replay"):
        price = Price(0.0, 0.0)

    def cost(prompt_tokens: int, completion_tokens: int) -> float | None:
        return None if price is None else price.picodollars(prompt_tokens, completion_tokens) / 1e12

    return EstimateRow(
        stage=stage,
        role=role,
        model=model,
        calls=asked.calls,
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        tokens_at_most=asked.prompt_at_most + asked.completion_at_most,
        cost_usd=cost(asked.prompt_tokens, asked.completion_tokens),
        cost_usd_at_most=cost(asked.prompt_at_most, asked.completion_at_most),
    )


def over_budget(found: Estimate, config: Config) -> list[str]:
    """What the budget does not allow of it, a line a bound."""
    lines = []
    scopes = [("budget", config.budget, found.rows)]
    for role in LLM_ROLES:
        own = tuple(row for row in found.rows if row.role == role)
        scopes.append((f"budget.{role}", getattr(config.budget, role), own))
    for name, bounds, rows in scopes:
        part = Estimate(rows, found.sampled)
        for bound, needed in (
            ("max_calls", part.calls),
            ("max_tokens", part.tokens),
            ("max_cost_usd", part.cost_usd),
        ):
            allowed = getattr(bounds, bound)
            if allowed is not None and needed is not None and needed > allowed:
                lines.append(f"{name}.{bound} is {allowed:,}, and the run will need about {needed:,.6g}")
    return lines
