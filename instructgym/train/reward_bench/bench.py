"""The reward benchmark: cards, labels, hacking and cost of any list of rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instructgym import __version__
from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.registry import COMPOSITIONS, REWARDS, label_of
from instructgym.train.reward_bench.card import RewardCard, reward_card
from instructgym.train.reward_bench.hacking import HackingMatrix, hacking_matrix
from instructgym.train.reward_bench.label_files import check_files
from instructgym.train.reward_bench.labels import LabelRow, measure_labels
from instructgym.train.reward_bench.probes import ProbeSet, probe_set
from instructgym.train.reward_bench.scoring import Scored, score_all
from instructgym.train.runtime import Runtime
from instructgym.train.stage import SeedSplit

__all__ = ["ALL_OFFLINE", "CONFIG_REWARD", "Cost", "RewardBench", "bench_rewards", "expand_names"]

ALL_OFFLINE = "all-offline"
"""Stands for every reward of the package that needs no option without a default."""
CONFIG_REWARD = "config"
"""Stands for the reward that the config describes, gate and all."""
STAGE = "bench"


@dataclass(frozen=True)
class Cost:
    """What a reward takes for a transition, on the probes, with the encoder's cache empty at the start.

    `calls` and tokens are those asked for, answered from the ledger or not; `milliseconds` is wall time divided by the
    number of transitions, many of which are scored at the same time.
    """

    calls: float
    prompt_tokens: float
    completion_tokens: float
    milliseconds: float


@dataclass(frozen=True)
class RewardBench:
    """All that was measured. `skipped`: rewards that could not be built, with the reason. `facts` says with what."""

    facts: dict[str, Any]
    cards: tuple[RewardCard, ...]
    costs: dict[str, Cost]
    skipped: dict[str, str]
    labels: tuple[LabelRow, ...] = ()
    hacking: HackingMatrix | None = None
    asks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self)
        found["labels"] = [asdict(row) for row in self.labels]
        return found


def expand_names(names: Sequence[str]) -> list[str]:
    """`names` with ``all-offline`` replaced by what it stands for; each name once."""
    own = [CONFIG_REWARD, *(name for name in REWARDS if name not in COMPOSITIONS)]
    spread = [one for name in names for one in (own if name == ALL_OFFLINE else [name])]
    return list(dict.fromkeys(spread))


def bench_rewards(
    names: Sequence[str],
    runtime: Runtime,
    seeds: SeedSplit,
    *,
    data: Path | None = None,
    data_limit: int | None = None,
    hacking_steps: int = 0,
    progress: Callable[[str], None] = lambda note: None,
) -> RewardBench:
    """Measure rewards by name; `runtime` must be connected.

    Args:
        names: of the package, of ``reward.define``, ``file.py:NAME``, ``config``, ``all-offline``.
        data: the folder of the label sets; None leaves them out. `data_limit`: records of each at most.
        hacking_steps: environment steps to train on each reward; 0 leaves the matrix out.
        progress: hears what is being done.

    Raises:
        ConfigError: a reward that was named cannot be built, or two are called alike (one that ``all-offline``
            brought is skipped instead); or `data` lacks a label set.
    """
    if not expand_names(names):
        raise ConfigError("no reward is named; expected names with commas between, or 'all-offline'.")
    labelled = [label_of(name) for name in expand_names(names)]
    doubled = sorted({label for label in labelled if labelled.count(label) > 1})
    if doubled:
        raise ConfigError(f"more than one reward is called {doubled}; names must be unique.")
    if data is not None:
        check_files(data)  # before anything is asked that costs
    probes = probe_set(seeds.all)
    skipped: dict[str, str] = {}
    rewards: dict[str, Reward] = {}
    for name in expand_names(names):
        try:
            rewards[name] = _built(name, runtime)
        except ConfigError as error:
            if name in names:
                raise
            skipped[name] = str(error)
    cards, costs = [], {}
    for name, reward in rewards.items():
        progress(f"probing {label_of(name)}")
        scored = _probed(name, reward, probes, runtime)
        cards.append(reward_card(label_of(name), probes.probes, scored.values))
        costs[label_of(name)] = _cost(scored)
    labels: tuple[LabelRow, ...] = ()
    if data is not None:
        progress("labels")
        labels = tuple(_labels(rewards, runtime, data, data_limit))
    matrix = None
    if hacking_steps:
        by_label = {label_of(name): name for name in rewards}
        matrix = hacking_matrix(
            list(by_label),
            lambda label: _built(by_label[label], runtime),
            runtime,
            seeds.train,
            seeds.for_evaluation[: runtime.config.evaluate.seeds],
            steps=hacking_steps,
            progress=progress,
        )
    return RewardBench(
        facts=_facts(runtime, probes),
        cards=tuple(cards),
        costs=costs,
        skipped={label_of(name): reason for name, reason in skipped.items()},
        labels=labels,
        hacking=matrix,
        asks={label_of(name): tuple(sorted(runtime.reward_needs(_spec(name, runtime)))) for name in rewards},
    )


def _spec(name: str, runtime: Runtime) -> str | Mapping[str, Any]:
    return runtime.config.reward.spec if name == CONFIG_REWARD else name


def _built(name: str, runtime: Runtime) -> Reward:
    options = runtime.config.reward.kwargs if name == CONFIG_REWARD else None
    return runtime.build_reward(_spec(name, runtime), STAGE, options=options)


def _probed(name: str, reward: Reward, probes: ProbeSet, runtime: Runtime) -> Scored:
    runtime.encoder.clear_cache()
    width = runtime.config.limits.width

    async def probe() -> Scored:
        reward.commit(probes.archived)
        return await score_all(label_of(name), reward, [probe.transition for probe in probes.probes], width=width)

    return runtime.call(probe)


def _cost(scored: Scored) -> Cost:
    count = max(1, len(scored.scores))
    return Cost(
        scored.calls / count,
        scored.usage.prompt_tokens / count,
        scored.usage.completion_tokens / count,
        1000 * scored.seconds / count,
    )


def _labels(rewards: Mapping[str, Reward], runtime: Runtime, data: Path, limit: int | None) -> list[LabelRow]:
    judge: LLM = runtime.llm("reviewer", STAGE)
    named = {label_of(name): reward for name, reward in rewards.items()}
    return runtime.call(
        lambda: measure_labels(named, data, limit=limit, preference_llm=judge, width=runtime.config.limits.width)
    )


def _facts(runtime: Runtime, probes: ProbeSet) -> dict[str, Any]:
    return {
        "version": __version__,
        "encoder": runtime.encoder.name,
        "models": {role: runtime.model_name(role) for role in ("expert", "reviewer")},
        "simulated": list(runtime.simulated_roles),
        "run_seed": runtime.config.run.seed,
        "probes": len(probes.probes),
        "archived": len(probes.archived),
    }
