"""Stage `evolve`: the policy's chains over all seeds; `lineage.jsonl` holds every transition."""

from __future__ import annotations

from typing import Any

from instructgym.train.chain_statistics import chain_statistics
from instructgym.train.chains import Chain, ChainJob, run_chains, step_row
from instructgym.train.policies import policy_named, reward_of
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput

__all__ = ["EVOLVED", "LINEAGE", "emitted_rows", "run_evolve"]

LINEAGE = "lineage.jsonl"
EVOLVED = "stages/evolved.jsonl"


def run_evolve(context: StageContext) -> StageOutput:
    """Writes `lineage.jsonl` and `stages/evolved.jsonl`.

    Raises `BudgetExhausted` with what was done in the ledger; the stage then starts over from there.
    """
    config, runtime = context.config, context.runtime
    policy = policy_named(config.evolve.policy, context)
    reward = reward_of(context, "evolve")
    per_seed = config.evolve.chains_per_seed
    jobs = [
        ChainJob(chain, seed, draw=chain, policy=policy, policy_name=config.evolve.policy)
        for chain, seed in enumerate(seed for seed in context.seeds.all for _ in range(per_seed))
    ]
    context.progress.started("evolve", len(jobs))
    log = context.folder.log("lineage.partial.jsonl")
    lines: dict[int, list[str]] = {}

    def on_chain(chain: Chain) -> None:
        lines[chain.job.chain] = [canonical_json(step_row(chain, index)) for index in range(len(chain.steps))]
        log.append(lines[chain.job.chain])
        context.progress.advance("evolve", len(lines))

    try:
        chains = runtime.call(
            lambda: run_chains(
                jobs,
                dynamics=runtime.dynamics("evolve", reward),
                observer=runtime.observer,
                run_seed=config.run.seed,
                width=config.limits.concurrency,
                deterministic=config.evolve.deterministic,
                on_chain=on_chain,
            )
        )
    finally:
        log.close()
    reward.commit([step.transition for chain in chains for step in chain.steps if step.failure is None])
    context.folder.write_lines(LINEAGE, [line for chain in chains for line in lines[chain.job.chain]])
    rows = [row for chain in chains for row in emitted_rows(chain, config.evolve.emit)]
    context.folder.write_lines(EVOLVED, [canonical_json(row) for row in rows])
    log.discard()
    result = {
        "policy": config.evolve.policy,
        **chain_statistics(chains, runtime.encoder),
        "emitted": len(rows),
        "accounting": runtime.accounting("evolve"),
    }
    return StageOutput((LINEAGE, EVOLVED), result, lost=sum(chain.incomplete for chain in chains))


def emitted_rows(chain: Chain, emit: str) -> list[dict[str, Any]]:
    """The instructions of a chain that go on to be answered: the last accepted one, or all of them."""
    rows = []
    for number, step in enumerate(chain.accepted, start=1):
        child = step.transition.child
        if child is None or (emit == "final" and number < len(chain.accepted)):
            continue
        path = chain.accepted[:number]
        name = f"chain-{chain.job.chain:06d}"
        rows.append(
            {
                "id": name if emit == "final" else f"{name}-{step.transition.step}",
                "instruction": child.text,
                "input": child.input,
                "seed_id": chain.job.seed.id,
                "chain": chain.job.chain,
                "operations": [each.transition.operation for each in path],
                "rewards": [each.reward for each in path],
                "prompt_versions": sorted({each.transition.prompt_version for each in path}),
                "incomplete": chain.incomplete,
            }
        )
    return rows
