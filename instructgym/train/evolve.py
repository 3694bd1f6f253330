"""Stage `evolve`: the policy's chains over all seeds; `lineage.jsonl` holds every transition."""

from __future__ import annotations

from typing import Any

from instructgym.train.chain_statistics import chain_statistics
from instructgym.train.chains import Chain, ChainJob, Step, run_chains, step_row
from instructgym.train.policies import how_chosen, policy_named, reward_of
from instructgym.train.reward_memory import save_memory
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput

__all__ = ["EVOLVED", "EVOLVED_MEMORY", "LINEAGE", "PARTIAL_LINEAGE", "emitted_rows", "run_evolve"]

LINEAGE = "lineage.jsonl"
PARTIAL_LINEAGE = "lineage.partial.jsonl"
EVOLVED = "stages/evolved.jsonl"
EVOLVED_MEMORY = "stages/reward"
"""The folder of the memory that the reward has after this stage, if it has one."""


def run_evolve(context: StageContext) -> StageOutput:
    """Writes `lineage.jsonl` and `stages/evolved.jsonl`, and `stages/reward/` for a reward with memory.

    Steps go to `lineage.partial.jsonl` as they come, in the order of their ends; it stays where the stage is cut off.
    Raises `BudgetExhausted` with what was done in the ledger; the stage then starts over from there.
    """
    config, runtime = context.config, context.runtime
    policy = policy_named(config.evolve.policy, context, "evolve")
    reward = reward_of(context, "evolve")
    per_seed = config.evolve.chains_per_seed
    jobs = [
        ChainJob(chain, seed, draw=chain, policy=policy, policy_name=config.evolve.policy)
        for chain, seed in enumerate(seed for seed in context.seeds.all for _ in range(per_seed))
    ]
    context.progress.started("evolve", len(jobs))
    log = context.folder.log(PARTIAL_LINEAGE)
    done = 0

    def on_step(job: ChainJob, step: Step) -> None:
        log.append([canonical_json(step_row(job, step))])

    def on_chain(_: Chain) -> None:
        nonlocal done
        done += 1
        context.progress.advance("evolve", done)

    try:
        chains = runtime.call(
            lambda: run_chains(
                jobs,
                dynamics=runtime.dynamics("evolve", reward),
                observer=runtime.observer_for,
                run_seed=config.run.seed,
                width=config.limits.width,
                deterministic=config.evolve.deterministic,
                on_chain=on_chain,
                on_step=on_step,
            )
        )
    finally:
        log.close()
    reward.commit([step.transition for chain in chains for step in chain.steps if step.failure is None])
    remembers = save_memory(reward.state_dict(), context.folder.path / EVOLVED_MEMORY)
    lineage = [canonical_json(step_row(chain.job, step)) for chain in chains for step in chain.steps]
    context.folder.write_lines(LINEAGE, lineage)
    rows = [row for chain in chains for row in emitted_rows(chain, config.evolve.emit)]
    context.folder.write_lines(EVOLVED, [canonical_json(row) for row in rows])
    log.discard()
    result = {
        "policy": config.evolve.policy,
        **chain_statistics(chains, runtime.encoder),
        **how_chosen(policy),
        "emitted": len(rows),
        "accounting": runtime.accounting("evolve"),
    }
    files = (LINEAGE, EVOLVED, EVOLVED_MEMORY) if remembers else (LINEAGE, EVOLVED)
    return StageOutput(files, result, lost=sum(chain.incomplete for chain in chains))


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
